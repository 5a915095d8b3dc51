"""Which model of the catalogue answers whom: judged by the statement that lets a turn in."""

from typing import Any

import pytest
from django.contrib.auth.models import Group

from chat.catalogue import catalogue
from chat.models import GroupPrompt, LanguageModel, TurnUsage
from chat.tests.conftest import Client
from omni2.database import in_database
from tests.llm_server import KEY, LlmServer

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("chatting")]


@pytest.fixture
def offer(llm: LlmServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Put a model into the catalogue that the scripted server answers, and let this process know."""
    monkeypatch.setenv("KEY_OF_THE_TESTS", KEY)

    def offered(name: str, *, to: tuple[Any, ...] = (), **fields: Any) -> LanguageModel:
        fields = {"model": name, "base_url": llm.url, "key_variable": "KEY_OF_THE_TESTS", **fields}
        made = LanguageModel.objects.create(name=name, **fields)
        made.groups.set(each for each in to if isinstance(each, Group))
        made.users.set(each for each in to if not isinstance(each, Group))
        catalogue.read()
        return made

    return offered


async def model_of(client: Client, **asked: Any) -> Any:
    """The model that answered, or the code of the refusal."""
    call = await client.stream("Hello", **asked)
    return call.last.data["model"] if call.status == 200 else (call.status, call.json["code"])


async def test_the_named_one_answers_else_the_default_else_the_one_of_the_environment(
    bob: Any, client_of: Any, offer: Any
) -> None:
    client = client_of(bob)
    assert await model_of(client) == "scripted-model"
    assert await model_of(client, model="scripted-model") == "scripted-model"
    assert await model_of(client, model="quick") == (404, "model_not_found")
    await in_database(offer, "quick")
    assert await model_of(client) == "scripted-model", "there is no default: LLM_MODEL answers"
    assert await model_of(client, model="quick") == "quick"
    await in_database(offer, "clever", is_default=True)
    assert await model_of(client) == "clever"
    assert await model_of(client, model="scripted-model") == (404, "model_not_found")
    await in_database(LanguageModel.objects.filter(name="clever").update, enabled=False)
    assert await model_of(client, model="clever") == (404, "model_not_found"), "counts at once"
    assert await model_of(client) == "scripted-model"


async def test_only_those_to_whom_it_is_offered_may_use_it(bob: Any, charlie: Any, client_of: Any, offer: Any) -> None:
    group = await in_database(lambda: Group.objects.create(name="writers"))
    await in_database(bob.groups.add, group)
    await in_database(lambda: offer("grand", is_default=True, to=(group,)))
    await in_database(lambda: offer("plain"))
    await in_database(lambda: offer("private", to=(charlie,)))
    assert await model_of(client_of(bob)) == "grand"
    assert await model_of(client_of(charlie)) == "plain", "the first that is offered to him"
    assert await model_of(client_of(bob), model="private") == (404, "model_not_found")
    assert await model_of(client_of(charlie), model="private") == "private"
    await in_database(bob.groups.remove, group)
    assert await model_of(client_of(bob), model="grand") == (404, "model_not_found")


async def test_a_change_of_a_row_counts_for_the_next_turn(bob: Any, client_of: Any, offer: Any) -> None:
    """Also when the watch list has not told of it yet."""
    await in_database(lambda: offer("quick", is_default=True))
    assert await model_of(client_of(bob)) == "quick"
    await in_database(LanguageModel.objects.filter(name="quick").update, name="quicker")
    assert await model_of(client_of(bob)) == "quicker"


async def test_a_turn_that_nobody_can_answer_is_not_counted(bob: Any, client_of: Any, offer: Any) -> None:
    await in_database(lambda: offer("nowhere", is_default=True, base_url="", model="no-such-provider:x"))
    assert await model_of(client_of(bob)) == (503, "llm_unavailable")
    assert await in_database(TurnUsage.objects.count) == 0


async def test_who_is_offered_nothing_and_has_no_other_model_is_not_counted(
    bob: Any, charlie: Any, client_of: Any, offer: Any, settings: Any, tree_of: Any
) -> None:
    await in_database(lambda: offer("private", to=(charlie,)))
    settings.LLM_BASE_URL = settings.LOCAL_MODEL_URL = ""
    settings.LLM_MODEL = "local"
    call = await client_of(bob).stream("Hello")
    assert (call.status, call.json["code"]) == (503, "llm_unavailable")
    assert await in_database(TurnUsage.objects.count) == 0
    tree = await tree_of(bob, call.json["turn_id"])
    assert tree.names == ["auth_check", "block_check", "usage_check", "error", "flow_end"]


async def test_a_fallback_answers_for_what_cannot(bob: Any, client_of: Any, offer: Any) -> None:
    other = await in_database(lambda: offer("other"))
    await in_database(
        lambda: offer("nowhere", is_default=True, base_url="", model="no-such-provider:x", fallback=other)
    )
    assert await model_of(client_of(bob)) == "other"


async def test_it_knows_the_prompts_of_groups(bob: Any, client_of: Any, offer: Any) -> None:
    group = await in_database(lambda: Group.objects.create(name="writers"))
    await in_database(bob.groups.add, group)
    await in_database(lambda: GroupPrompt.objects.create(group=group, prompt="Answer in verse."))
    await in_database(catalogue.read)
    assert catalogue.is_asked
    assert await model_of(client_of(bob)) == "scripted-model"
