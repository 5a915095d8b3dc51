"""The people of the pictures, what they ask, and what the scripted model answers them.

They are demonstration users (chat.demonstration), so nobody else's model is ever asked, and the model
says on every page what it is. What they ask is prepared here, sentence by sentence.
"""

import asyncio
import json
import os
import secrets
import threading
import uuid
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2

PAUSE_S = 0.03


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody in the pictures."""

    name: str
    requests_per_day: int | None = None

    @property
    def email(self) -> str:
        from chat.demonstration import DOMAIN

        return f"{self.name.split()[0].lower().replace('á', 'a')}@{DOMAIN}"


MIRA, TOMAS, AIKO, JONAS = (
    Person("Mira Kovač"),
    Person("Tomás Beltrán", requests_per_day=6),
    Person("Aiko Sato"),
    Person("Jonas Lindqvist"),
)
CAST = (MIRA, TOMAS, AIKO, JONAS)

Call = tuple[str, dict[str, Any]]


@dataclass(frozen=True, slots=True)
class Scene:
    """A question, how long the model thinks in each round, the tools it calls in the first, its answer."""

    question: str
    answer: str = ""
    think_s: tuple[float, ...] = (0.5, 0.5)
    calls: tuple[Call, ...] = ()
    fails: bool = False
    pause_s: float = PAUSE_S
    begins: bool = False
    """opens a conversation instead of going on with the last one"""
    leaves: bool = False
    """whoever asked goes away in the middle of the answer"""


def clock(zone: str) -> Call:
    return "clock", {"time_zone": zone}


def sums(expression: str) -> Call:
    return "calculator", {"expression": expression}


# --- what is seen on the live page ----------------------------------------------------------------

LATE_ORDERS = Scene(
    "Is the Tokyo office still open, and what does each late order cost us?",
    "It is evening in Tokyo and the office is closed. I could not share 48,200 by no orders at all.",
    think_s=(0.9, 6.0),
    begins=True,
    calls=(clock("Europe/Zagreb"), clock("Asia/Tokyo"), sums("48200 / (7 - 7)")),
)
ONE_MORE = Scene("Translate page 7 of the contract, please", "Página siete.")

# --- what is seen in the session and in play: stored, since the built-in tools answer at once -------------

OVERDUE = "Which invoices of the Oslo office are overdue, and by how much?"


def overdue(person: Person, began: datetime, *, slow: bool) -> list[bytes]:
    """The checkpoints of a turn with three tools at once, as the log carries them; `slow`: one is not answered."""
    turn_id, session_id = str(uuid.uuid4()), str(uuid.uuid5(uuid.NAMESPACE_URL, began.date().isoformat()))
    documents: list[bytes] = []

    def add(at_ms: float, name: str, parent: str | None, **metadata: Any) -> str:
        flow_id = str(uuid.uuid4()) if documents else turn_id
        at = (began + timedelta(milliseconds=at_ms)).isoformat(timespec="microseconds")
        document: dict[str, Any] = {
            "flow_id": flow_id,
            "user_id": person.email,
            "session_id": session_id,
            "turn_id": turn_id,
        }
        document |= {"checkpoint": name, "parent_id": parent, "created_at": at, "metadata": metadata}
        documents.append(json.dumps(document).encode())
        return flow_id

    model = {"model": "scripted-demo", "provider": "scripted"}
    asked = {"method": "token", "token": "laptop", "question": OVERDUE}
    auth = add(0, "auth_check", None, status="passed", duration_ms=1.4, **asked)
    block = add(2, "block_check", auth, status="passed", duration_ms=0.6)
    limit = {"limit_name": "requests_per_day", "used": 48 if slow else 49, "limit": 500}
    usage = add(3, "usage_check", block, status="passed", duration_ms=2.1, **limit)
    think = add(6, "llm_thinking", usage, status="started", round=1, **model)
    used = {"input_tokens": 812, "output_tokens": 64, "cost_usd": 0.0034}
    end = 5300.0 if slow else 3600.0
    calls = [
        ("search_invoices", {"office": "Oslo", "status": "overdue"}, 1100, '{"rows": 12, "sum": "NOK 418,300"}'),
        ("exchange_rate", {"from": "NOK", "to": "EUR"}, 2000 if slow else 700, '{"rate": 0.0853}'),
        ("calendar", {"days": 30}, 450, '{"working_days": 21}'),
    ]
    facts = {"server": "office", "status": "started"}
    started = [
        add(
            1400 + number, "tool_call", think, tool=tool, arguments=json.dumps(given), call_id=f"call_{number}", **facts
        )
        for number, (tool, given, _, _) in enumerate(calls)
    ]
    add(1404, "llm_complete", think, status="ok", duration_ms=1398, ttft_ms=620, finish_reason="tool_calls", **used)
    for number, (tool, _, took_ms, result) in sorted(enumerate(calls), key=lambda each: each[1][2]):
        failed = slow and tool == "exchange_rate"
        told = {"status": "error", "error": "timed out after 2 s"} if failed else {"status": "ok", "result": result}
        add(1400 + number + took_ms, "tool_result", started[number], tool=tool, duration_ms=took_ms, **told)
    last = 1404 + (2000 if slow else 1100)
    again = add(last, "llm_thinking", usage, status="started", round=2, **model)
    answer = "Twelve invoices are overdue, NOK 418,300 in all; the oldest since 43 days. "
    answer += "I could not convert that: the exchange rate did not come." if slow else "That is EUR 35,681."
    used = {"input_tokens": 1140, "output_tokens": 58, "cost_usd": 0.0042}
    spoken = {"duration_ms": end - last - 4, "ttft_ms": 540, "finish_reason": "stop", "answer": f"{answer} (scripted)"}
    add(end - 4, "llm_complete", again, status="ok", **spoken, **used)
    add(end, "flow_end", turn_id, outcome="completed", duration_ms=end, ttft_ms=last + 540)
    return documents


# --- what is seen in compare -------------------------------------------------------------------------

SHARE = Scene(
    "Compare the time here and in Tokyo, and what is 19 % of 48,200?",
    "Here it is afternoon, in Tokyo already night: wait until tomorrow. 19 % of 48,200 is 9,158.",
    think_s=(0.7, 0.9),
    begins=True,
    calls=(clock("Europe/Zagreb"), clock("Asia/Tokyo"), sums("48200 * 0.19")),
)
SHARE_AGAIN = Scene(
    "Compare the time here and in Tokyo, and what is 19 % of 48,200? Please check twice.",
    "Here it is afternoon, in Tokyo already night. 19 % of 48,200 is 9,158, and 9,158 / 0.19 is 48,200 again.",
    think_s=(0.6, 1.7),
    calls=(clock("Europe/Zagreb"), clock("Asia/Tokyo"), sums("48200 * 0.19"), sums("9158 / 0.19")),
)

# --- what is seen in the chat -----------------------------------------------------------------------

TIDES = Scene(
    "Why does the water come back twice a day?",
    "Because the Earth turns under **two** bulges of water, one towards the moon and one away from it:\n\n"
    "1. the moon pulls the near water more than the Earth,\n"
    "2. and the Earth more than the far water;\n"
    "3. so we pass a bulge about every *12 hours and 25 minutes*.\n\n",
    think_s=(0.5,),
)
MEETING = Scene(
    "When it is 09:00 in Tokyo, what time is it in Berlin, and how many hours lie between?",
    "| city | time |\n|---|---|\n| Tokyo | 09:00 |\n| Berlin | 01:00 |\n\n"
    "Eight hours lie between them in winter, so a call at **16:00 in Tokyo** is a good hour for both. ",
    think_s=(0.6, 0.6),
    calls=(clock("Asia/Tokyo"), clock("Europe/Berlin"), sums("9 - 1")),
)
SPRING = Scene(
    "And the days around the full moon?",
    "Around the new and the full moon the sun pulls in the same line as the moon. "
    "The tides are then higher and lower than usual: people call them *spring tides*, "
    "though they have nothing to do with the season. Halfway between, at the quarter moons, ",
    pause_s=0.2,
)

# --- what happened before: enough to know what is usual ----------------------------------------------

BEFORE: tuple[tuple[Person, Scene], ...] = (
    (MIRA, Scene("What time is it in Zagreb?", "It is afternoon in Zagreb.", (0.5, 0.4), (clock("Europe/Zagreb"),))),
    (TOMAS, Scene("Translate page 1 of the contract, please", "Página uno: las partes.", (0.6,))),
    (AIKO, Scene("Which of the three drafts is the shortest?", "The second one, by two paragraphs.", (0.4,))),
    (JONAS, Scene("How much is (17.5 * 3 - 2) / 7 ?", "About 7.21.", (0.6, 0.5), (sums("(17.5 * 3 - 2) / 7"),))),
    (MIRA, Scene("What is 12 % of 1,830?", "219.6", (0.5, 0.5), (sums("1830 * 0.12"),))),
    (TOMAS, Scene("Translate page 2 of the contract, please", "Página dos: el objeto.", (0.5,))),
    (AIKO, Scene("Name a good title for the annual report", "“What we carried.”", (0.7,))),
    (JONAS, Scene("What time is it in Lima?", "Still morning in Lima.", (0.4, 0.6), (clock("America/Lima"),))),
    (MIRA, Scene("Write a friendly reminder for invoice 2031", "Dear Ms Novak, a small reminder.", (0.6,))),
    (TOMAS, Scene("Translate page 3 of the contract, please", "Página tres: los plazos.", (0.6,))),
    (AIKO, Scene("Is 7919 a prime number?", "Yes: the thousandth.", (0.5, 0.6), (sums("7919 % 89"),))),
    (JONAS, Scene("What is the date in Auckland?", "Tomorrow already.", (0.6, 0.4), (clock("Pacific/Auckland"),))),
    (MIRA, SHARE),
    (
        TOMAS,
        Scene("Translate page 4 of the contract, please", "Página cuatro: el precio. " * 9, pause_s=0.1, leaves=True),
    ),
    (AIKO, Scene("How many weeks are 180 days?", "25 and 5 days.", (0.4, 0.5), (sums("180 / 7"),))),
    (JONAS, Scene("What is 2^20?", "1,048,576", (0.5, 0.5), (sums("2^20"),))),
    (TOMAS, Scene("Translate page 5 of the contract, please", think_s=(0.6,), fails=True)),
    (JONAS, Scene("What time is it in Oslo?", "The same as here.", (0.5, 0.5), (clock("Europe/Oslo"),))),
    (MIRA, SHARE_AGAIN),
    (TOMAS, Scene("Translate page 6 of the contract, please", "Página seis: la firma.", (0.5,))),
    (AIKO, Scene("Add 19.99, 4.50 and 12", "36.49", (0.6, 0.5), (sums("19.99 + 4.50 + 12"),))),
)
LEAVES_AFTER = 12


# --- the scripted model and the people's requests ---------------------------------------------------


def scenes() -> dict[str, Scene]:
    """By question."""
    shown = (LATE_ORDERS, ONE_MORE, TIDES, MEETING, SPRING)
    return {scene.question: scene for scene in (*shown, *(scene for _, scene in BEFORE))}


async def play(seen: Any) -> AsyncIterator[Any]:
    """The script that plays the scene whose question was asked."""
    from chat import scripted_model as model

    scene = scenes().get(seen.question) or Scene(seen.question, f"You asked: {seen.question}")
    await asyncio.sleep(scene.think_s[min(seen.round, len(scene.think_s) - 1)])
    if scene.fails:
        raise model.Rejected(500, "server_error", "The scripted model fails, as the scene wants it.")
    if scene.calls and not seen.results:
        yield model.calls(*scene.calls)
        yield model.ends("tool_calls")
        yield model.used(412, 18 * len(scene.calls))
        return
    async for chunk in model.speak(seen, scene.answer, pause_s=scene.pause_s):
        yield chunk


@dataclass(slots=True)
class Stage:
    """Sends the people's questions to the Omni2 at `url`, and answers them; on a thread of its own."""

    url: str
    tokens: dict[str, str] = field(default_factory=dict)
    sessions: dict[str, str] = field(default_factory=dict)
    _loop: asyncio.AbstractEventLoop = field(default_factory=asyncio.new_event_loop)

    def open(self) -> None:
        """Make the people and start their model."""
        from chat import demonstration
        from chat.scripted_model import SCRIPTS, ScriptedModel

        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        SCRIPTS["demo"] = play
        model = ScriptedModel(key=secrets.token_urlsafe(24), keep_requests=False)
        address = self._run(model.start()).result()
        demonstration.announce(demonstration.ModelServer(address, model.key, os.getpid()))
        self.tokens = {person.email: _make(person) for person in CAST}

    def play_before(self) -> None:
        """Everything that was asked before the pictures are taken; returns when it is over."""
        from flows.store import store

        for minutes, slow in ((52, True), (47, False)):
            store(overdue(JONAS, datetime.now(UTC) - timedelta(minutes=minutes), slow=slow))
        self._run(self._play_before()).result()

    def ask(self, person: Person, scene: Scene) -> Callable[[], object]:
        """One question, not waited for: call what is returned to wait for its end."""
        return self._run(self._ask(person, scene)).result

    def _run(self, work: Any) -> "Future[Any]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _play_before(self) -> None:
        """Each person's questions in their order, the people at once."""

        async def all_of(person: Person) -> None:
            for asking, scene in BEFORE:
                if asking is person:
                    await self._ask(person, scene)

        await asyncio.gather(*(all_of(person) for person in CAST))

    async def _ask(self, person: Person, scene: Scene) -> None:
        body = {"message": scene.question}
        if person.email in self.sessions and not scene.begins:
            body["session_id"] = self.sessions[person.email]
        headers = {"Authorization": f"Bearer {self.tokens[person.email]}"}
        read = 0
        async with (
            httpx2.AsyncClient(base_url=self.url, timeout=120) as client,
            client.stream("POST", "/api/v1/ask/stream", json=body, headers=headers) as answer,
        ):
            async for line in answer.aiter_lines():
                if "session_id" in line:
                    self.sessions[person.email] = str(json.loads(line.removeprefix("data: "))["session_id"])
                read += line.startswith("event: token")
                if scene.leaves and read > LEAVES_AFTER:
                    return


def _make(person: Person) -> str:
    """The text of a token for this person, who is made."""
    from chat.models import UserLimits
    from omni2.accounts.models import ApiToken, User

    user, _ = User.objects.get_or_create(email=person.email, defaults={"name": person.name})
    if person.requests_per_day:
        UserLimits.objects.update_or_create(user=user, defaults={"requests_per_day": person.requests_per_day})
    return ApiToken.objects.issue(user, name="laptop", days=1)[1]
