"""A conversation question by question: what was answered, what became of it, which tools were used."""

import uuid
from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from chat.exchanges import Step, Stop, asked_in, talk
from chat.models import Conversation, Message, Role, TurnUsage
from flows.models import InteractionFlow, Turn

pytestmark = pytest.mark.django_db


@pytest.fixture
def conversation(bob: Any) -> Conversation:
    return Conversation.objects.create(session_id=uuid.uuid4(), user=bob, title="t")


def say(conversation: Conversation, question: str, answer: str = "") -> uuid.UUID:
    turn_id = uuid.uuid4()
    Message.objects.create(conversation=conversation, role=Role.USER, content=question, turn_id=turn_id)
    if answer:
        Message.objects.create(conversation=conversation, role=Role.ASSISTANT, content=answer, turn_id=turn_id)
    return turn_id


def store(conversation: Conversation, turn_id: uuid.UUID, *, outcome: str | None = "completed", **more: Any) -> None:
    owner = conversation.user.user_id
    session_id = str(conversation.session_id)
    Turn.objects.create(
        turn_id=turn_id, session_id=session_id, user_id=owner, outcome=outcome, started_at=timezone.now(), **more
    )


def use(conversation: Conversation, turn_id: uuid.UUID, tool: Any, result: dict[str, Any] | None) -> None:
    common = {"user_id": conversation.user.user_id, "session_id": conversation.session_id, "turn_id": turn_id}
    call = InteractionFlow.objects.create(
        **common, checkpoint="tool_call", metadata={"tool": tool, "status": "started"}, created_at=timezone.now()
    )
    if result is not None:
        InteractionFlow.objects.create(
            **common, checkpoint="tool_result", parent=call, metadata=result, created_at=timezone.now()
        )


def usage(conversation: Conversation, turn_id: uuid.UUID, **more: Any) -> None:
    TurnUsage.objects.create(
        turn_id=turn_id,
        user=conversation.user,
        session_id=conversation.session_id,
        day=timezone.now().date(),
        process_id=uuid.uuid4(),
        **more,
    )


def test_it_is_ones_own(conversation: Conversation, bob: Any, charlie: Any) -> None:
    turn_id = say(conversation, "one", "eins")
    session_id = str(conversation.session_id)
    assert [(each.question, each.answer) for each in talk(bob.pk, session_id).asked] == [("one", "eins")]
    assert talk(charlie.pk, session_id).asked == []
    assert asked_in(charlie.pk, session_id, turn_id) is None
    assert asked_in(bob.pk, str(uuid.uuid4()), turn_id) is None


def test_pages_meet_and_cost_the_same(conversation: Conversation, bob: Any, django_assert_max_num_queries: Any) -> None:
    for number in range(25):
        store(conversation, say(conversation, f"q{number}", f"a{number}"), tool_calls=1)
    session_id = str(conversation.session_id)
    seen: list[str] = []
    before: int | None = None
    for _ in range(3):
        with django_assert_max_num_queries(4):
            part = talk(bob.pk, session_id, before=before, limit=10)
        seen = [f"{each.question} {each.answer}" for each in part.asked] + seen
        before = part.earlier
    assert before is None
    assert seen == [f"q{number} a{number}" for number in range(25)]


def test_tools_are_told_in_order_with_their_time_or_why_they_failed(conversation: Conversation, bob: Any) -> None:
    turn_id = say(conversation, "two tools", "done")
    store(conversation, turn_id, tool_calls=4)
    use(conversation, turn_id, "clock", {"status": "ok", "duration_ms": 12.5})
    use(conversation, turn_id, "calculator", {"status": "error", "duration_ms": 1, "error": "Division by zero."})
    use(conversation, turn_id, {"not": "a name"}, {"status": "ok", "duration_ms": "soon"})
    use(conversation, turn_id, "search", None)
    (asked,) = talk(bob.pk, str(conversation.session_id)).asked
    assert asked.steps[:2] == [
        Step("clock", "ok", 12.5),
        Step("calculator", "error", 1.0, "Division by zero."),
    ]
    assert asked.steps[2].duration_ms is None
    assert asked.steps[3] == Step("search")


@pytest.mark.parametrize(
    ("ended_ago", "outcome", "running"),
    [(None, None, True), (1, None, True), (60, None, False), (1, "completed", False)],
)
def test_an_answer_is_awaited_until_its_turn_is_stored(
    conversation: Conversation, bob: Any, ended_ago: int | None, outcome: str | None, running: bool
) -> None:
    turn_id = say(conversation, "one")
    store(conversation, turn_id, outcome=outcome)
    usage(
        conversation,
        turn_id,
        ended_at=None if ended_ago is None else timezone.now() - timedelta(seconds=ended_ago),
    )
    (asked,) = talk(bob.pk, str(conversation.session_id)).asked
    assert asked.is_running is running


def test_who_stopped_it_is_told(conversation: Conversation, bob: Any) -> None:
    for by, message in ((bob.user_id, "You stopped this answer."), ("olga@example.com", "Call me.")):
        turn_id = say(conversation, by)
        store(conversation, turn_id, outcome="stopped")
        InteractionFlow.objects.create(
            user_id=bob.user_id,
            session_id=conversation.session_id,
            turn_id=turn_id,
            checkpoint="error",
            metadata={"code": "stopped", "message": message, "stopped_by": by},
            created_at=timezone.now(),
        )
    unknown = say(conversation, "nobody knows")
    store(conversation, unknown, outcome="stopped")
    own, others, nobodys = talk(bob.pk, str(conversation.session_id)).asked
    assert own.stop == Stop(True, "You stopped this answer.")
    assert others.stop == Stop(False, "Call me.")
    assert nobodys.stop is None
