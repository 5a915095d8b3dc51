"""The pages as the server writes them: who may see what, filters, paging, what is noted, no script needed."""

import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from chat.models import Conversation, Message, Role
from flows.models import InteractionFlow, Turn
from monitoring.models import MonitoredUser
from omni2.accounts.models import AccessLog

pytestmark = pytest.mark.django_db


def signed_in(user: Any) -> Client:
    client = Client()
    client.force_login(user)
    return client


def turn_of(user: Any, question: str = "How much?", **more: Any) -> Turn:
    """A turn with two checkpoints, as the persister leaves it."""
    started = more.pop("started_at", timezone.now())
    turn = Turn(
        turn_id=uuid.uuid4(),
        session_id=more.pop("session_id", str(uuid.uuid4())),
        user_id=user.user_id,
        started_at=started,
        question=question,
        outcome=more.pop("outcome", "completed"),
        checkpoints=2,
        **more,
    )
    turn.save()
    root = row_of(turn, "auth_check", None, started, {"status": "passed", "method": "token", "question": question})
    row_of(turn, "flow_end", root, started + timedelta(seconds=1), {"outcome": turn.outcome})
    return turn


def row_of(turn: Turn, name: str, parent: Any, at: datetime, metadata: Any) -> InteractionFlow:
    flow_id = uuid.uuid4() if parent else turn.turn_id
    return InteractionFlow.objects.create(
        flow_id=flow_id,
        user_id=turn.user_id,
        session_id=turn.session_id,
        turn_id=turn.turn_id,
        checkpoint=name,
        parent=parent,
        metadata=metadata,
        created_at=at,
    )


def page(client: Client, path: str, status: int = 200) -> str:
    answer = client.get(path)
    assert answer.status_code == status, path
    return answer.content.decode()


# --- the front door and the shell -------------------------------------------------------------------


def test_the_front_door_leads_to_the_first_page_one_may_see(ada: Any, olga: Any, august: Any, charlie: Any) -> None:
    assert Client().get("/").headers["Location"] == "/login/"
    for user, first in ((ada, "/live/"), (olga, "/live/"), (august, "/flows/"), (charlie, "/chat/")):
        assert signed_in(user).get("/").headers["Location"] == first


def test_the_navigation_offers_what_one_may_open(ada: Any, olga: Any, august: Any, charlie: Any) -> None:
    for user, offered in (
        (olga, ["/live/", "/flows/", "/chat/"]),
        (august, ["/flows/", "/chat/"]),
        (charlie, ["/flows/", "/chat/"]),
    ):
        html = page(signed_in(user), "/chat/")
        assert [
            path
            for path in ("/live/", "/flows/", "/chat/", "/admin/accounts/user/")
            if f'href="{path}"' in html.split("shell-groups")[1]
        ] == offered
    client = signed_in(ada)
    offered = [part.split('"')[0] for part in page(client, "/chat/").split("account-who")[0].split('<li><a href="')[1:]]
    assert "/admin/accounts/user/" in offered
    for path in offered:
        assert client.get(path).status_code == 200, path


def test_no_page_has_a_script_in_it(ada: Any, bob: Any) -> None:
    turn = turn_of(bob, "<script>alert(1)</script>")
    client = signed_in(ada)
    for path in ("/live/", "/flows/", f"/flows/{turn.session_id}/", "/chat/", "/account/tokens/", "/admin/"):
        html = page(client, path)
        for script in html.split("<script")[1:]:
            head, body = script.split(">", 1)
            assert "src=" in head or 'type="application/json"' in head, path
            assert "src=" not in head or body.startswith("</script>"), path
        assert "<script>alert" not in html


def test_the_answer_names_what_a_page_may_load(charlie: Any) -> None:
    policy = signed_in(charlie).get("/chat/").headers["Content-Security-Policy"]
    assert "script-src 'self' 'unsafe-eval';" in policy
    assert "frame-ancestors 'none'" in policy


# --- history ------------------------------------------------------------------------------------------


def test_a_user_without_the_right_sees_his_own_turns_only(charlie: Any, bob: Any) -> None:
    own, other = turn_of(charlie, "charlies question"), turn_of(bob, "bobs question")
    client = signed_in(charlie)
    html = page(client, "/flows/")
    assert "charlies question" in html
    assert "bobs question" not in html
    page(client, f"/flows/{own.session_id}/")
    page(client, f"/flows/{other.session_id}/", 404)
    page(client, "/flows/not-a-session/", 404)
    assert client.get(f"/flows/?user_id={bob.user_id}").status_code == 403
    assert AccessLog.objects.count() == 0


def test_looking_into_another_history_is_noted_once(august: Any, bob: Any) -> None:
    turn = turn_of(bob)
    client = signed_in(august)
    page(client, f"/flows/{turn.session_id}/")
    seen = AccessLog.objects.get(subject_user_id=bob.user_id)
    assert (seen.actor, seen.action) == (august.user_id, "history_opened")
    page(client, f"/flows/?user_id={bob.user_id}&outcome=completed")
    assert AccessLog.objects.filter(subject_user_id=bob.user_id).latest("id").detail["outcome"] == "completed"


def test_an_open_page_grows_by_its_pass_alone(august: Any, bob: Any, charlie: Any) -> None:
    turn = turn_of(bob)
    client = signed_in(august)
    answer = client.get(f"/flows/{turn.session_id}/")
    address = answer.context["data"]["grow"]
    assert len(client.get(address).json()["flows"]) == 2
    later = (turn.started_at + timedelta(milliseconds=500)).isoformat().replace("+", "%2B")
    assert [row["checkpoint"] for row in client.get(f"{address}&since={later}").json()["flows"]] == ["flow_end"]
    assert AccessLog.objects.count() == 1

    assert Client().get(address).status_code == 401
    assert signed_in(charlie).get(address).status_code == 403
    assert client.get(address.replace("pass=", "pass=x")).status_code == 403
    assert client.get(address.replace(turn.session_id, str(uuid.uuid4()))).status_code == 403
    august.groups.clear()
    assert client.get(address).status_code == 403


def test_filters_and_pages_are_the_url(olga: Any, bob: Any, charlie: Any) -> None:
    start = timezone.now() - timedelta(hours=3)
    for number in range(60):
        turn_of(bob, f"question {number:02d}", started_at=start + timedelta(minutes=number))
    turn_of(charlie, "another", outcome="failed", error="llm_timeout")
    client = signed_in(olga)
    first = client.get(f"/flows/?user_id={bob.user_id}&range=24h")
    assert len(first.context["turns"]) == 50
    second = client.get("/flows/" + first.context["next"])
    shown = [each["turn"].question for answer in (first, second) for each in answer.context["turns"]]
    assert shown == [f"question {number:02d}" for number in reversed(range(60))]
    assert second.context["next"] is None

    html = page(client, "/flows/?outcome=failed")
    assert "another" in html
    assert "the model did not answer in time" in html
    assert "question 01" not in html
    assert "question 07" in page(client, "/flows/?q=TION+07")
    assert client.get("/flows/?range=1h&q=question+07").context["turns"] == []
    assert "No such turns" in page(client, "/flows/?tool=teleport")


def test_a_name_finds_its_user(olga: Any, bob: Any, charlie: Any) -> None:
    turn_of(bob, "bobs question")
    turn_of(charlie, "charlies question")
    client = signed_in(olga)
    html = page(client, "/flows/?user_id=kahn")
    assert "bobs question" in html
    assert "charlies question" not in html
    assert "may be" in page(client, "/flows/?user_id=example.com")


@pytest.mark.parametrize(
    "query",
    [
        "outcome=x",
        "since=yesterday",
        "session_id=1",
        "user_id=%00",
        "q=%00",
        "cursor=x",
        "model=%00",
        "tool=" + "x" * 300,
        "range=x&since=%ff",
    ],
)
def test_filters_that_cannot_be_are_said_and_break_nothing(olga: Any, query: str) -> None:
    answer = signed_in(olga).get(f"/flows/?{query}")
    assert answer.status_code == 200
    assert answer.context["errors"]


def test_a_session_says_each_step_without_a_script(olga: Any, bob: Any) -> None:
    turn = turn_of(bob, "why?", outcome="failed")
    root = InteractionFlow.objects.get(pk=turn.turn_id)
    at = turn.started_at
    thinking = row_of(turn, "llm_thinking", root, at + timedelta(milliseconds=5), {"status": "started", "model": "m1"})
    row_of(turn, "llm_complete", thinking, at + timedelta(milliseconds=9), {"status": "error", "duration_ms": 1400.0})
    plain = signed_in(olga).get(f"/flows/{turn.session_id}/").content.decode().split('class="plain-tree"')[1]
    plain = plain.split("application/json")[0]
    assert plain.count("data-flow-id") == 4
    assert "<b>Model failed</b> 1.4 s" in plain
    assert plain.index("Signed in") < plain.index("Model failed") < plain.index("Failed</b>")


def test_a_checkpoint_nobody_knows_is_shown_under_its_own_name(olga: Any, bob: Any) -> None:
    turn = turn_of(bob)
    root = InteractionFlow.objects.get(pk=turn.turn_id)
    row_of(turn, "sentiment_scan", root, turn.started_at + timedelta(milliseconds=5), {"mood": "good"})
    html = page(signed_in(olga), f"/flows/{turn.session_id}/")
    assert 'data-checkpoint="sentiment_scan"' in html
    assert "<b>sentiment_scan</b>" in html
    assert "mood good" in html


# --- live ---------------------------------------------------------------------------------------------


def test_the_live_page_is_for_those_who_may_watch(olga: Any, august: Any, charlie: Any) -> None:
    assert Client().get("/live/").headers["Location"].startswith("/login/")
    for user, status in ((olga, 200), (august, 403), (charlie, 403)):
        client = signed_in(user)
        for path in ("/live/", "/live/people", "/live/search?q=bob"):
            assert client.get(path).status_code == status, (user, path)
    assert Client().get("/live/people").status_code == 401


def test_people_are_told_by_name_with_what_is_left(olga: Any, ada: Any, bob: Any, charlie: Any) -> None:
    MonitoredUser.enable(bob.user_id, by=olga, ttl=timedelta(hours=2), reason="Ticket")
    MonitoredUser.enable(charlie.user_id, by=olga, ttl=timedelta(hours=2))
    MonitoredUser.stop(charlie.user_id, by=ada)
    answer = signed_in(olga).get(f"/live/people?user={charlie.user_id}&user=ghost@example.com&user=%00").json()
    (monitored,) = answer["people"]
    assert (monitored["name"], monitored["enabled_by"], monitored["reason"]) == (bob.name, olga.name, "Ticket")
    assert 7_190_000 < monitored["remaining_ms"] <= 7_200_000
    ended, ghost = answer["others"]
    assert (ended["name"], ended["ended_by"]) == (charlie.name, ada.name)
    assert (ghost["known"], ghost["ended_at"]) == (False, None)


def test_the_search_finds_active_users_by_name_and_address(olga: Any, bob: Any) -> None:
    client = signed_in(olga)
    assert [one["user_id"] for one in client.get("/live/search?q=KAHN").json()["people"]] == [bob.user_id]
    assert [one["user_id"] for one in client.get("/live/search?q=bob@").json()["people"]] == [bob.user_id]
    for nothing in ("", "%", "_", "\0"):
        assert client.get("/live/search", {"q": nothing}).json()["people"] == []
    bob.is_active = False
    bob.save()
    assert client.get("/live/search?q=kahn").json()["people"] == []


def test_without_redis_the_live_page_says_so(olga: Any, settings: Any) -> None:
    settings.REDIS_ENABLED = False
    answer = signed_in(olga).get("/live/")
    assert "Live is off" in answer.content.decode()
    assert answer.context["page"]["live"] == "off"


# --- chat -----------------------------------------------------------------------------------------------


def conversation_of(user: Any, question: str, answer: str = "") -> Conversation:
    conversation = Conversation.objects.create(session_id=uuid.uuid4(), user=user, title=question)
    turn_id = uuid.uuid4()
    Message.objects.create(conversation=conversation, role=Role.USER, content=question, turn_id=turn_id)
    if answer:
        Message.objects.create(conversation=conversation, role=Role.ASSISTANT, content=answer, turn_id=turn_id)
    return conversation


def test_a_conversation_is_its_owners(bob: Any, charlie: Any, ada: Any) -> None:
    conversation = conversation_of(bob, "how <b>much</b>?", "**four** <script>alert(1)</script>")
    html = page(signed_in(bob), f"/chat/{conversation.session_id}/")
    assert "how &lt;b&gt;much&lt;/b&gt;?" in html
    assert "<strong>four</strong> &lt;script&gt;" in html
    for other in (charlie, ada):
        page(signed_in(other), f"/chat/{conversation.session_id}/", 404)
        assert "how" not in page(signed_in(other), "/chat/").split('id="conversations"')[1].split("</nav>")[0]
    page(signed_in(bob), "/chat/nonsense/", 404)
    assert Client().get("/chat/").headers["Location"].startswith("/login/")


def test_it_says_who_answers_and_who_may_watch(bob: Any, settings: Any) -> None:
    client = signed_in(bob)
    settings.LLM_BASE_URL, settings.LLM_MODEL, settings.NOTICE = "", "local", False
    html = page(client, "/chat/")
    assert "A small local model answers here." in html
    assert "may be watched" not in html
    settings.LLM_MODEL, settings.NOTICE = "openai:gpt-5.2", True
    html = page(client, "/chat/")
    assert "openai:gpt-5.2 answers." in html
    assert "may be watched" in html
    assert "local model" not in html
    settings.LLM_BASE_URL, settings.LLM_MODEL = "http://127.0.0.1:1/v1", "scripted-model"
    assert "A scripted model answers here." in page(client, "/chat/")


def test_rendering_is_for_signed_in_people_and_texts(bob: Any) -> None:
    client = signed_in(bob)
    post: Any = {"content_type": "application/json"}
    assert client.post("/chat/render", {"text": "**x**"}, **post).json() == {"html": "<p><strong>x</strong></p>\n"}
    for bad in ("", "[]", '{"text": 1}', '{"text"', "[" * 100_000, '{"text": null}', '{"text": "x", "growing": 1}'):
        assert client.post("/chat/render", bad, **post).status_code == 400, bad[:20]
    assert client.post("/chat/render", json.dumps({"text": "\ud800"}), **post).status_code == 200
    assert Client().post("/chat/render", {"text": "x"}, **post).status_code == 401
    assert client.get("/chat/render").status_code == 405
    strict = Client(enforce_csrf_checks=True)
    strict.force_login(bob)
    assert strict.post("/chat/render", {"text": "x"}, **post).status_code == 403


def test_a_growing_answer_is_rendered_from_where_it_still_grows(bob: Any) -> None:
    client = signed_in(bob)
    body = {"text": "# One\n\n- two\n- <b>three</b>\n", "growing": True}
    answer = client.post("/chat/render", body, content_type="application/json").json()
    assert answer == {
        "html": "<h1>One</h1>\n",
        "growing": "<ul>\n<li>two</li>\n<li>&lt;b&gt;three&lt;/b&gt;</li>\n</ul>\n",
        "lines": 2,
    }


def test_a_long_conversation_opens_at_its_end_and_older_questions_come_on_demand(bob: Any, charlie: Any) -> None:
    conversation = conversation_of(bob, "question 0", "answer 0")
    for number in range(1, 70):
        turn_id = uuid.uuid4()
        for role, text in ((Role.USER, "question"), (Role.ASSISTANT, "answer")):
            Message.objects.create(conversation=conversation, role=role, content=f"{text} {number}", turn_id=turn_id)
    client, path = signed_in(bob), f"/chat/{conversation.session_id}/"
    seen: list[str] = []
    address = path
    while address:
        html = page(client, address)
        seen = re.findall(r'class="question"[^>]*>question (\d+)<', html) + seen
        assert html.count('class="answer"') == html.count('class="question"') <= 30
        older = re.search(r'href="([^"]+)" data-before="(\d+)"', html)
        if older:
            piece = page(client, f"{path}exchanges?before={older[2]}")
            assert "<html" not in piece
            assert 'class="question"' in piece
        address = older[1] if older else ""
    assert seen == [str(number) for number in range(70)]
    for bad in ("?before=x", "?before=-1", "?before=1", "?turn=x", f"?turn={uuid.uuid4()}", "?before=" + "9" * 30):
        page(client, path + "exchanges" + bad, 404)
    page(signed_in(charlie), path + "exchanges", 404)
    assert Client().get(path + "exchanges").status_code == 401


def test_times_are_said_in_utc_until_a_script_knows_better(olga: Any, bob: Any) -> None:
    turn_of(bob, started_at=datetime(2026, 11, 20, 7, 8, 9, tzinfo=UTC))
    html = page(signed_in(olga), "/flows/")
    assert '<time datetime="2026-11-20T07:08:09.000000Z">20 Nov 07:08 UTC</time>' in html
