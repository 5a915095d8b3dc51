"""The catalogue of models: its admin page, its rules, its keys, and who is told of which model."""

import json
import logging
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Group, Permission
from django.core.management import call_command
from django.core.management.base import CommandError

from chat.catalogue import catalogue, entry_of, models_for
from chat.llm import Models, ModelUnavailable, make
from chat.model_settings import problems_of
from chat.models import GroupPrompt, LanguageModel
from chat.wanted import wanted_entry
from omni2.database import in_database
from omni2.sealing import seal, unseal
from tests.llm_server import KEY, LlmServer

pytestmark = pytest.mark.django_db(transaction=True)

SECRET = "sk-a-secret-nobody-sees-0123456789"
LIST, ADD = "/admin/chat/languagemodel/", "/admin/chat/languagemodel/add/"


@pytest.fixture
def browser(ada: Any, client: Any) -> Any:
    client.force_login(ada)
    return client


def said(**fields: Any) -> dict[str, Any]:
    """The form as a browser sends it."""
    return {
        "name": "quick",
        "model": "scripted-plain",
        "base_url": "http://127.0.0.1:1/v1",
        "enabled": "on",
        "takes_tools": "on",
        "settings": "{}",
        "history_tokens": "6000",
        "first_token_timeout_s": "90",
        "next_token_timeout_s": "60",
        "attempts": "2",
        **fields,
    }


def errors_of(answer: Any) -> dict[str, list[str]]:
    assert answer.status_code == 200, answer.headers
    return {name: list(problems) for name, problems in answer.context["adminform"].form.errors.items()}


def change(row: LanguageModel) -> str:
    return f"/admin/chat/languagemodel/{row.pk}/change/"


# --- the page -----------------------------------------------------------------------------------------


def test_a_model_is_added_and_everybody_may_use_it(browser: Any, bob: Any) -> None:
    answer = browser.post(ADD, said(settings='{"temperature": 0.2, "max_tokens": 500}', description="for all"))
    assert answer.status_code == 302, errors_of(answer)
    row = LanguageModel.objects.get()
    assert row.settings == {"temperature": 0.2, "max_tokens": 500}
    assert "quick" in [each["name"] for each in models_for(bob)]


def test_a_key_goes_in_and_never_comes_out(browser: Any) -> None:
    assert browser.post(ADD, said(api_key=SECRET)).status_code == 302
    row = LanguageModel.objects.get()
    assert unseal(row.sealed_key) == SECRET
    assert SECRET not in row.sealed_key
    page = browser.get(change(row)).content.decode()
    assert "A key is set." in page
    for html in (page, browser.get(LIST).content.decode(), browser.get(f"{LIST}{row.pk}/history/").content.decode()):
        assert SECRET not in html
        assert row.sealed_key not in html
    # an empty field keeps it, a new key replaces it, “forget” removes it
    assert browser.post(change(row), said(description="changed")).status_code == 302
    row.refresh_from_db()
    assert unseal(row.sealed_key) == SECRET
    assert browser.post(change(row), said(api_key="another-key")).status_code == 302
    row.refresh_from_db()
    assert unseal(row.sealed_key) == "another-key"
    assert browser.post(change(row), said(forget_key="on")).status_code == 302
    row.refresh_from_db()
    assert row.sealed_key == ""
    assert SECRET not in json.dumps(list(LogEntry.objects.values_list("change_message", "object_repr")))


def test_a_key_is_not_shown_again_when_another_field_is_wrong(browser: Any) -> None:
    answer = browser.post(ADD, said(api_key=SECRET, attempts="0"))
    assert "attempts" in errors_of(answer)
    assert SECRET not in answer.content.decode()


def test_key_and_variable_exclude_each_other(browser: Any) -> None:
    assert "api_key" in errors_of(browser.post(ADD, said(api_key=SECRET, key_variable="SOME_API_KEY")))
    assert browser.post(ADD, said(api_key=SECRET)).status_code == 302
    row = LanguageModel.objects.get()
    assert "key_variable" in errors_of(browser.post(change(row), said(key_variable="SOME_API_KEY")))
    assert browser.post(change(row), said(key_variable="SOME_API_KEY", forget_key="on")).status_code == 302
    row.refresh_from_db()
    assert (row.sealed_key, row.key_variable) == ("", "SOME_API_KEY")


def test_a_stored_key_is_not_sent_to_another_server(browser: Any) -> None:
    """Whoever may edit models but does not know the key could have it sent to himself."""
    assert browser.post(ADD, said(api_key=SECRET)).status_code == 302
    row = LanguageModel.objects.get()
    assert "api_key" in errors_of(browser.post(change(row), said(base_url="https://evil.example.com/v1")))
    moved = said(base_url="https://models.example.com/v1", api_key="its-own")
    assert browser.post(change(row), moved).status_code == 302
    assert browser.post(change(row), {**moved, "api_key": "", "model": "another"}).status_code == 302


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_url", "ftp://127.0.0.1/v1"),
        ("base_url", "127.0.0.1:8000"),
        ("base_url", "http://user:password@127.0.0.1/v1"),
        ("base_url", "http://127.0.0.1:99999/v1"),
        ("base_url", "http://127.0.0.1/v1?key=1"),
        ("base_url", "http://[::1/v1"),
        ("key_variable", "SECRET_KEY"),
        ("key_variable", "OMNI2_LOCAL_MODEL_KEY"),
        ("key_variable", "DATABASE_URL"),
        ("key_variable", "lower_key"),
        ("api_key", "two words"),
        ("api_key", "schlüssel"),
        ("settings", "[1]"),
        ("settings", "{"),
        ("settings", '{"temprature": 1}'),
        ("settings", '{"temperature": "hot"}'),
        ("settings", '{"extra_headers": {"Authorization": "x"}}'),
        ("attempts", "0"),
        ("attempts", "11"),
        ("first_token_timeout_s", "0"),
        ("next_token_timeout_s", "601"),
        ("history_tokens", "-1"),
        ("name", ""),
        ("name", "a\0b"),
        ("model", ""),
    ],
)
def test_what_is_wrong_is_said_at_its_field(field: str, value: str, browser: Any) -> None:
    assert list(errors_of(browser.post(ADD, said(**{field: value})))) == [field]
    assert not LanguageModel.objects.exists()


@pytest.mark.parametrize("model", ["gpt-5.2", "no-such-provider:x", "openai:", "test", "groq:x"])
def test_a_model_that_cannot_be_made_is_no_model(model: str, browser: Any) -> None:
    assert list(errors_of(browser.post(ADD, said(model=model, base_url="")))) == ["model"]


def test_prices_are_two_or_none_and_not_negative(browser: Any) -> None:
    assert "output_usd_per_million" in errors_of(browser.post(ADD, said(input_usd_per_million="1")))
    both = said(input_usd_per_million="-1", output_usd_per_million="2")
    assert "input_usd_per_million" in errors_of(browser.post(ADD, both))
    assert browser.post(ADD, said(input_usd_per_million="0.5", output_usd_per_million="2")).status_code == 302
    assert "0.5 / 2" in browser.get(LIST).content.decode()


def test_the_price_of_the_list_is_shown(browser: Any) -> None:
    openai = said(model="openai:gpt-4o", base_url="", api_key=SECRET)
    assert browser.post(ADD, openai).status_code == 302
    assert "2.5 / 10 (list)" in browser.get(LIST).content.decode()
    assert "2.5 / 10 (input / output)" in browser.get(change(LanguageModel.objects.get())).content.decode()
    assert "does not know this model" in browser.get(ADD).content.decode()


def test_there_is_one_default(browser: Any) -> None:
    assert browser.post(ADD, said(is_default="on")).status_code == 302
    answer = browser.post(ADD, said(name="other", is_default="on"))
    assert answer.status_code == 302, errors_of(answer)
    assert list(LanguageModel.objects.filter(is_default=True).values_list("name", flat=True)) == ["other"]
    quick = LanguageModel.objects.get(name="quick")
    assert browser.post(change(quick), said(is_default="on")).status_code == 302
    assert list(LanguageModel.objects.filter(is_default=True).values_list("name", flat=True)) == ["quick"]
    disabled = said(is_default="on")
    del disabled["enabled"]
    assert "is_default" in errors_of(browser.post(change(quick), disabled))


def test_fallbacks_lead_in_no_circle(browser: Any) -> None:
    first, second, third = (
        LanguageModel.objects.create(name=name, model=name, base_url="http://127.0.0.1:1/v1") for name in "abc"
    )
    for row, fallback in ((first, second), (second, third)):
        data = said(name=row.name, model=row.name, fallback=fallback.pk)
        assert browser.post(change(row), data).status_code == 302
    assert "fallback" in errors_of(browser.post(change(third), said(name="c", model="c", fallback=first.pk)))
    assert "fallback" in errors_of(browser.post(change(third), said(name="c", model="c", fallback=third.pk)))


def test_names_are_text(browser: Any) -> None:
    hostile = "<script>alert(1)</script>"
    assert browser.post(ADD, said(name=hostile, description=hostile)).status_code == 302
    for page in (LIST, change(LanguageModel.objects.get())):
        assert hostile not in browser.get(page).content.decode()


def test_a_prompt_of_a_group(browser: Any) -> None:
    group = Group.objects.create(name="writers")
    answer = browser.post("/admin/chat/groupprompt/add/", {"group": group.pk, "prompt": "Answer in verse."})
    assert answer.status_code == 302
    assert GroupPrompt.objects.get().prompt == "Answer in verse."
    assert "Answer in verse." in browser.get("/admin/chat/groupprompt/").content.decode()


# --- who may ------------------------------------------------------------------------------------------


def test_the_right_to_look_is_no_right_to_change(charlie: Any, client: Any) -> None:
    row = LanguageModel.objects.create(
        name="quick", model="x", base_url="http://127.0.0.1:1/v1", sealed_key=seal(SECRET)
    )
    client.force_login(charlie)
    assert client.get(LIST).status_code == 302, "no staff"
    charlie.is_staff = True
    charlie.save()
    assert client.get(LIST).status_code == 403
    charlie.user_permissions.add(Permission.objects.get(codename="view_languagemodel"))
    page = client.get(change(row))
    assert page.status_code == 200
    assert SECRET not in page.content.decode()
    assert row.sealed_key not in page.content.decode()
    assert client.post(change(row), said(description="mine now")).status_code == 403
    check = {"action": "check_selected", "_selected_action": row.pk}
    client.post(LIST, check)
    assert "Check selected" not in client.get(LIST).content.decode()
    charlie.user_permissions.add(Permission.objects.get(codename="change_languagemodel"))
    assert client.post(change(row), said(model="x", description="mine now")).status_code == 302
    assert "Check selected" in client.get(LIST).content.decode()


# --- the check ----------------------------------------------------------------------------------------


@pytest.fixture
def row(llm: LlmServer) -> LanguageModel:
    fields = {"base_url": llm.url, "sealed_key": seal(KEY)}
    return LanguageModel.objects.create(name="quick", model="scripted-plain", **fields)


def messages_of(browser: Any, row: LanguageModel) -> str:
    """What the check of the list says."""
    answer = browser.post(LIST, {"action": "check_selected", "_selected_action": row.pk}, follow=True)
    return "\n".join(str(each) for each in answer.context["messages"])


def test_a_check_asks_for_one_word(browser: Any, row: LanguageModel, llm: LlmServer) -> None:
    text = messages_of(browser, row)
    assert text.startswith("quick: It answered within ")
    (asked,) = llm.requests
    assert asked.question == "Answer with the one word: ok"
    assert asked.body.get("max_tokens") or asked.body.get("max_completion_tokens")


def test_save_and_check_stores_first_and_stays_on_the_page(browser: Any, row: LanguageModel, llm: LlmServer) -> None:
    data = said(base_url=llm.url, description="new", chat_languagemodel_check_now="1")
    answer = browser.post(change(row), data, follow=True)
    assert answer.redirect_chain[-1][0].endswith(change(row))
    assert any("It answered within" in str(each) for each in answer.context["messages"])
    row.refresh_from_db()
    assert row.description == "new"
    assert len(llm.requests) == 1


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model": "scripted-error_401"}, ("did not accept the API key", "HTTP 401", "req_")),
        ({"model": "scripted-error_429"}, ("too much to do", "HTTP 429")),
        ({"model": "scripted-hang", "first_token_timeout_s": 1}, ("did not answer in time",)),
        ({"base_url": "http://127.0.0.1:1/v1"}, ("cannot be reached",)),
        ({"model": "scripted-error_500"}, ("The model could not answer.", "HTTP 500")),
        ({"sealed_key": "not sealed"}, ("cannot be opened",)),
        ({"sealed_key": "", "key_variable": "NOT_SET_KEY"}, ("NOT_SET_KEY", "is not set")),
        ({"sealed_key": seal(SECRET)}, ("HTTP 401",)),
        ({"base_url": "", "model": "no-such-provider:x"}, ("cannot be asked",)),
    ],
)
def test_a_check_says_what_is_wrong_in_words(
    fields: dict[str, Any], words: tuple[str, ...], browser: Any, row: LanguageModel
) -> None:
    LanguageModel.objects.filter(pk=row.pk).update(**fields)
    text = messages_of(browser, row)
    assert all(word in text for word in words), text
    assert not any(secret in text for secret in (SECRET, KEY + '"', "sk-", "Traceback"))


# --- settings -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0, "top_p": 1, "max_tokens": 10, "top_k": 5, "seed": -3},
        {"presence_penalty": -2, "frequency_penalty": 0.5, "stop_sequences": ["END"]},
        {"logit_bias": {"50256": -100}, "parallel_tool_calls": False, "thinking": "low", "service_tier": "flex"},
        {"thinking": True, "extra_body": {"chat_template_kwargs": {"enable_thinking": False}}},
    ],
)
def test_settings_pydantic_ai_knows(settings: dict[str, Any]) -> None:
    assert problems_of(settings) == []


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 3},
        {"temperature": True},
        {"temperature": None},
        {"max_tokens": 0},
        {"max_tokens": 1.5},
        {"max_tokens": "10"},
        {"top_p": 2},
        {"stop_sequences": "END"},
        {"stop_sequences": [1]},
        {"logit_bias": {"a": 1000}},
        {"parallel_tool_calls": 1},
        {"thinking": "hardly"},
        {"extra_body": []},
        {"timeout": 5},
        {"max_retries": 5},
        {"nonsense": 1},
    ],
)
def test_settings_that_are_wrong_are_named(settings: dict[str, Any]) -> None:
    (problem,) = problems_of(settings)
    assert next(iter(settings)) in problem


# --- keys ---------------------------------------------------------------------------------------------


def test_a_key_that_cannot_be_opened_makes_the_model_unavailable(caplog: Any, settings: Any) -> None:
    row = LanguageModel.objects.create(
        name="quick", model="x", base_url="http://127.0.0.1:1/v1", sealed_key=seal(SECRET)
    )
    settings.SECRET_KEY = "another-secret-key-of-this-installation"
    catalogue.read()
    models = Models()
    for _ in range(2):
        with pytest.raises(ModelUnavailable):
            models.chosen(row.pk, "")
    (line,) = [each.getMessage() for each in caplog.records if each.levelno == logging.ERROR]
    assert line.startswith("no model: quick cannot be used: its API key cannot be opened")


def test_a_variable_that_is_not_set_makes_the_model_unavailable(caplog: Any, monkeypatch: Any) -> None:
    row = LanguageModel.objects.create(
        name="quick", model="x", base_url="http://127.0.0.1:1/v1", key_variable="SOME_API_KEY"
    )
    catalogue.read()
    models = Models()
    for value in (None, "", "two words"):
        if value is not None:
            monkeypatch.setenv("SOME_API_KEY", value)
        with pytest.raises(ModelUnavailable):
            models.chosen(row.pk, "")
    assert "SOME_API_KEY" in caplog.text
    assert "two words" not in caplog.text
    monkeypatch.setenv("SOME_API_KEY", "  right  ")
    assert models.chosen(row.pk, "").wanted.api_key == "right"  # type: ignore[union-attr]


def test_no_repr_has_the_key() -> None:
    import httpx2

    row = LanguageModel.objects.create(
        name="quick", model="x", base_url="http://127.0.0.1:1/v1", sealed_key=seal(SECRET)
    )
    wanted = wanted_entry(entry_of(row))
    assert wanted.api_key == SECRET
    model = make(wanted, httpx2.AsyncClient())
    assert model.model.client.api_key == SECRET  # type: ignore[attr-defined]
    assert SECRET not in f"{wanted!r} {model!r} {model} {wanted.entry!r}"


# --- what one may use ---------------------------------------------------------------------------------


@pytest.mark.usefixtures("llm")
def test_everybody_is_told_what_he_may_use(bob: Any, charlie: Any, token_of: Any, client: Any) -> None:
    def told(user: Any) -> list[tuple[str, bool]]:
        headers = {"Authorization": f"Bearer {token_of(user)}"}
        answer = client.get("/api/v1/models", headers=headers)
        assert answer.status_code == 200
        for each in answer.json()["models"]:
            assert set(each) == {"name", "description", "is_default", "takes_tools"}
        return [(each["name"], each["is_default"]) for each in answer.json()["models"]]

    assert client.get("/api/v1/models").status_code == 401
    assert told(bob) == [("scripted-model", True)], "without a catalogue that of the environment"
    group = Group.objects.create(name="writers")
    bob.groups.add(group)

    def offer(name: str, **fields: Any) -> LanguageModel:
        return LanguageModel.objects.create(name=name, model="x", base_url="http://127.0.0.1:1/v1", **fields)

    offer("plain")
    offer("off", enabled=False)
    offer("grand").groups.add(group)
    offer("private").users.add(charlie)
    assert told(bob) == [("grand", False), ("plain", False), ("scripted-model", True)]
    assert told(charlie) == [("plain", False), ("private", False), ("scripted-model", True)]
    LanguageModel.objects.filter(name="grand").update(is_default=True)
    assert told(bob) == [("grand", True), ("plain", False)]
    assert told(charlie) == [("plain", True), ("private", False)], "the first that is offered to him"
    LanguageModel.objects.filter(name__in=["plain", "private"]).update(enabled=False)
    assert told(charlie) == []


# --- the command --------------------------------------------------------------------------------------


def test_the_command_adds_and_changes_by_the_same_rules(llm: LlmServer, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setenv("TESTS_API_KEY", KEY)
    key = ("--key-variable", "TESTS_API_KEY")
    call_command("add_model", "spare", "scripted-plain", "--base-url", llm.url, *key)
    settings = (
        "--model-settings",
        '{"temperature": 0}',
        "--price",
        "1",
        "2",
        "--fallback",
        "spare",
        "--default",
        "--check",
    )
    call_command("add_model", "quick", "scripted-plain", "--base-url", llm.url, *key, *settings)
    assert "It answered within" in capsys.readouterr().out
    row = LanguageModel.objects.get(name="quick")
    assert (row.settings, row.is_default, row.fallback.name) == ({"temperature": 0}, True, "spare")  # type: ignore[union-attr]
    call_command("add_model", "quick", "scripted-memory", "--description", "remembers")
    row.refresh_from_db()
    assert (row.model, row.description, row.base_url, row.is_default) == ("scripted-memory", "remembers", llm.url, True)
    assert row.output_usd_per_million == 2
    with pytest.raises(CommandError, match="settings: “heat” is not known"):
        call_command("add_model", "quick", "x", "--model-settings", '{"heat": 1}')
    with pytest.raises(CommandError, match="no group named nobody"):
        call_command("add_model", "quick", "x", "--group", "nobody")
    with pytest.raises(CommandError, match="HTTP 401"):
        call_command("add_model", "quick", "scripted-error_401", "--check")


def test_the_command_reads_a_key_from_its_input(monkeypatch: Any, capsys: Any) -> None:
    import io

    monkeypatch.setattr("sys.stdin", io.StringIO(SECRET + "\n"))
    call_command("add_model", "quick", "x", "--base-url", "http://127.0.0.1:1/v1", "--key-stdin")
    assert unseal(LanguageModel.objects.get().sealed_key) == SECRET
    assert SECRET not in "".join(capsys.readouterr())


# --- a turn -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("chatting")
async def test_a_turn_uses_what_the_entry_says(bob: Any, client_of: Any, tree_of: Any, llm: LlmServer) -> None:
    def prepare() -> None:
        group = Group.objects.create(name="writers")
        bob.groups.add(group)
        GroupPrompt.objects.create(group=group, prompt="Answer in verse.")
        LanguageModel.objects.create(
            name="grand",
            model="scripted-clock",
            base_url=llm.url,
            sealed_key=seal(KEY),
            settings={"temperature": 0.5, "max_tokens": 77, "stop_sequences": ["END"]},
            system_prompt="You are a poet.",
            input_usd_per_million=10,
            output_usd_per_million=100,
            takes_tools=False,
            is_default=True,
        )
        catalogue.read()

    await in_database(prepare)
    call = await client_of(bob).stream("Hello")
    assert call.last.name in ("done", "error")
    body = llm.requests[0].body
    system = next(each["content"] for each in body["messages"] if each["role"] in ("system", "developer"))
    assert system == "You are a poet.\n\nAnswer in verse."
    assert body["temperature"] == 0.5
    assert body.get("max_tokens", body.get("max_completion_tokens")) == 77
    assert body["stop"] == ["END"]
    assert "tools" not in body
    complete = (await tree_of(bob, call.turn_id)).every("llm_complete")[0]["metadata"]
    tokens = complete["input_tokens"], complete["output_tokens"]
    assert complete["cost_usd"] == pytest.approx((tokens[0] * 10 + tokens[1] * 100) / 1_000_000)


@pytest.mark.usefixtures("chatting")
@pytest.mark.parametrize("script", ["plain", "error_401", "error_500", "policy", "cut", "strange_shape"])
async def test_no_log_and_no_checkpoint_has_the_key(
    script: str, bob: Any, client_of: Any, tree_of: Any, llm: LlmServer, caplog: Any, monkeypatch: Any
) -> None:
    """Also of a server that repeats it."""
    monkeypatch.setattr(llm.model, "key", SECRET)
    caplog.set_level(logging.DEBUG)

    def prepare() -> None:
        fields = {"model": f"scripted-{script}", "base_url": llm.url, "sealed_key": seal(SECRET), "attempts": 1}
        LanguageModel.objects.create(name="grand", is_default=True, **fields)
        catalogue.read()

    await in_database(prepare)
    call = await client_of(bob).stream("Hello")
    assert llm.requests, "it was asked with that key"
    tree = await tree_of(bob, call.turn_id)
    for text in (caplog.text, json.dumps(tree.all), call.content.decode()):
        assert SECRET not in text
