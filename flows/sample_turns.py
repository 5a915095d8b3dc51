"""Made-up turns by the hundred thousand: what they are, for `manage.py sample_flows`. Pure; no database.

Turn number n of a seed is always the same turn, so a run that was broken off goes on where it ended.
Everybody in it has an address under sample.example.com, which belongs to nobody (RFC 2606).
"""

import bisect
import itertools
import json
import math
import random
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

DOMAIN = "sample.example.com"
CHECKPOINTS_A_TURN = 8.55
"""About so many: tells how many turns are wanted."""


def _listed(words: str, by: str = " ") -> list[str]:
    return words.split(by)


FIRST_NAMES = _listed(
    "Aiko Amara Anders Anna Arjun Beatriz Carlos Chloe Daniel Dilara Elif Emma Fatima Felix Giulia Hannah Hugo Ines "
    "Ivan Jana Jonas Kofi Lars Layla Lena Liam Lucia Malik Maria Mei Mikael Nadia Noah Olga Omar Paula Pedro Priya "
    "Rania Sofia Tariq Tomas Valentina Viktor Wei Yara Yusuf Zoe"
)
SURNAMES = _listed(
    "Adeyemi Alvarez Andersen Bauer Bianchi Chen Costa Dubois Eriksson Fischer Garcia Haddad Hansen Ito Ivanova "
    "Jansen Kaya Khan Kowalski Kumar Larsen Lindqvist Lopez Martin Mensah Meyer Moreau Nakamura Nguyen Novak Okafor "
    "Olsen Patel Pereira Petrov Ricci Rossi Sato Schmidt Silva Singh Svensson Tanaka Weber Yilmaz Zhang"
)
THINGS = _listed(
    "invoice contract delivery warranty refund password calendar meeting budget forecast printer laptop holiday "
    "expense receipt customer supplier shipment warehouse inventory purchase licence dashboard report spreadsheet "
    "presentation newsletter campaign survey interview onboarding payroll pension insurance flight hotel visa "
    "translation summary proposal roadmap release incident outage backup migration certificate firewall database "
    "server firmware sensor turbine battery valve pump filter manual drawing tolerance sample measurement protocol"
)
PLACES = _listed("Berlin Tokyo Lagos Lima Oslo Porto Prague Quito Rome Seoul Sofia Tunis Vienna Warsaw Zagreb Zurich")
WHEN = _listed("today|tomorrow|this week|next month|before Friday|since March|last quarter|in 2025|for the audit", "|")
ASKING = _listed(
    "What is the status of the {a} for {b}?|How do I change the {a} of a {b}?|Please write a {a} about the {b} in {p}.|"
    "Which {a} did we send to {p} {w}?|Compare the {a} and the {b} {w}.|Why was my {a} refused?|"
    "Find the {a} number {n} and say what is missing.|How late is it in {p}, and is the {a} team there?|"
    "Translate the {a} of our {b} for the office in {p}.|How much is {n} times {m}, and does the {a} allow it?|"
    "Summarise the {a} {w} in three sentences.|Who is responsible for the {b} {a} in {p}?",
    "|",
)

# name, provider, share, first token and whole answer in ms (medians), dollars per token in and out
MODELS = (
    ("gpt-5.2", "openai", 46, 620, 2900, 1.75e-6, 14e-6),
    ("claude-sonnet-4.6", "anthropic", 31, 710, 3600, 3e-6, 15e-6),
    ("gpt-5.2-mini", "openai", 18, 340, 1200, 0.25e-6, 2e-6),
    ("local-mistral", "ollama", 4.97, 180, 5200, None, None),
    ("gpt-4.1-legacy", "openai", 0.03, 900, 6100, 2e-6, 8e-6),
)
# name, server, share, ms (median), share that fails
TOOLS = (
    ("search", "builtin", 38, 850, 0.03),
    ("database_query", "mcp-data", 24, 140, 0.02),
    ("calculator", "builtin", 15, 2, 0.01),
    ("clock", "builtin", 10, 1, 0.0),
    ("send_mail", "mcp-office", 8, 420, 0.05),
    ("render_chart", "mcp-data", 4.98, 2600, 0.08),
    ("legacy_lookup", "mcp-old", 0.02, 7200, 0.4),
)
# how a turn goes, in per mille
KINDS = {
    "completed": 820.0,
    "inactive": 8,
    "expired": 10,
    "revoked": 2,
    "user_blocked": 14,
    "requests_per_day": 24,
    "tokens_per_day": 6,
    "turns_at_once": 9,
    "llm_unavailable": 7,
    "llm_failed": 19,
    "llm_timeout": 14,
    "llm_rate_limited": 6,
    "tool_failed": 6,
    "too_many_rounds": 1,
    "internal_error": 0.5,
    "disconnected": 42,
    "abandoned": 6.5,
    "server_stopping": 5,
}
WORDS = {
    "llm_failed": "The model failed.",
    "llm_timeout": "The model did not answer in time.",
    "llm_rate_limited": "The model has too much to do at the moment.",
    "llm_unavailable": "No model can be reached at the moment.",
    "tool_failed": "The tool failed.",
    "too_many_rounds": "The model asked for its tools too often without answering.",
    "internal_error": "Something went wrong.",
    "server_stopping": "The server is being restarted. Please ask again.",
}
BY_HOUR = (1, 1, 1, 1, 1, 2, 4, 9, 16, 20, 20, 18, 14, 18, 20, 19, 16, 12, 8, 6, 5, 4, 3, 2)
WEEKEND = 0.25
AT_ONCE_MS = 0.4  # between two checkpoints of which the second waits for nothing


@dataclass(frozen=True, slots=True)
class Person:
    """A made-up user."""

    user_id: str
    name: str


class Weighted:
    """Picks one of several by their weights."""

    def __init__(self, choices: Any, weights: Any) -> None:
        self.choices = list(choices)
        self.ends = list(itertools.accumulate(weights))

    def pick(self, chance: random.Random) -> Any:
        return self.choices[bisect.bisect_left(self.ends, chance.random() * self.ends[-1])]


def people(count: int) -> list[Person]:
    """So many different people, each name once as far as names reach; the first ones ask most."""
    chance = random.Random(count)  # noqa: S311 (made-up people)
    names = [f"{first} {last}" for first in FIRST_NAMES for last in SURNAMES]
    chance.shuffle(names)
    found = []
    for number in range(count):
        name, again = names[number % len(names)], number // len(names)
        address = name.lower().replace(" ", ".") + (f".{again + 1}" if again else "")
        found.append(Person(f"{address}@{DOMAIN}", f"{name} (sample)"))
    return found


class SampleTurns:
    """All the turns of one seed, from `since` on for so many days, spread as office hours would."""

    def __init__(self, *, seed: int, since: datetime, days: int, users: int, checkpoints: int) -> None:
        self.seed, self.since = seed, since.astimezone(UTC)
        self.expected = max(1, round(checkpoints / CHECKPOINTS_A_TURN))
        # as people are: the second asks half as often as the first, the tenth a tenth
        self.people = Weighted(people(users), [1 / rank for rank in range(1, users + 1)])
        hours = [self.since + timedelta(hours=number) for number in range(days * 24)]
        self.hours = list(
            itertools.accumulate(BY_HOUR[hour.hour] * (WEEKEND if hour.weekday() > 4 else 1) for hour in hours)
        )
        self.models = Weighted(MODELS, [model[2] for model in MODELS])
        self.tools = Weighted(TOOLS, [tool[2] for tool in TOOLS])
        self.kinds = Weighted(KINDS, KINDS.values())

    def turn_id(self, number: int) -> str:
        """The same for the same seed and number, whatever the rest is."""
        return str(uuid.UUID(int=_chance(self.seed, number, "id").getrandbits(128), version=4))

    def documents(self, number: int) -> list[bytes]:
        """The checkpoints of turn `number`, in order, as the log carries them."""
        chance = _chance(self.seed, number, "turn")
        turn = _Turn(self.turn_id(number), self.people.pick(chance).user_id, self._began(number, chance), chance)
        kind = self.kinds.pick(chance)
        turn.tell(kind, self.models.pick(chance), self.tools)
        return turn.documents

    def _began(self, number: int, chance: random.Random) -> datetime:
        """Turn 0 begins at `since` exactly, which tells a later run when that was."""
        if number == 0:
            return self.since
        share = (number + chance.random()) / self.expected
        place = (share if share < 1 else chance.random()) * self.hours[-1]
        hour = min(bisect.bisect_left(self.hours, place), len(self.hours) - 1)
        before = self.hours[hour - 1] if hour else 0.0
        return self.since + timedelta(hours=hour + (place - before) / (self.hours[hour] - before))


def _chance(*words: object) -> random.Random:
    return random.Random(" ".join(map(str, words)))  # noqa: S311 (made-up turns)


class _Turn:
    """One turn being made up: the clock goes on with each checkpoint."""

    def __init__(self, turn_id: str, user_id: str, began: datetime, chance: random.Random) -> None:
        self.chance, self.began, self.at = chance, began, began
        # whoever asks several times within the hour does so in one conversation, or in two
        hour = began.replace(minute=0, second=0, microsecond=0).isoformat()
        session = uuid.uuid5(uuid.NAMESPACE_URL, f"{user_id} {hour} {chance.randrange(2)}")
        self.envelope = {"user_id": user_id, "session_id": str(session), "turn_id": turn_id}
        self.documents: list[bytes] = []
        self.root: str | None = None
        self.first_token_ms: float | None = None
        self.question = chance.choice(ASKING).format(
            a=chance.choice(THINGS),
            b=chance.choice(THINGS),
            p=chance.choice(PLACES),
            w=chance.choice(WHEN),
            n=chance.randrange(10_000),
            m=chance.randrange(100),
        )

    def add(self, checkpoint: str, parent: str | None, wait_ms: float, /, **metadata: Any) -> str:
        """One more checkpoint, `wait_ms` after the last one; returns its flow_id."""
        flow_id = str(uuid.UUID(int=self.chance.getrandbits(128), version=4))
        if not self.documents:
            flow_id = self.root = self.envelope["turn_id"]
        self.at += timedelta(milliseconds=wait_ms)
        document: dict[str, Any] = {"flow_id": flow_id, **self.envelope, "checkpoint": checkpoint, "parent_id": parent}
        document |= {"metadata": metadata, "created_at": self.at.isoformat(timespec="microseconds")}
        self.documents.append(json.dumps(document, ensure_ascii=False).encode())
        return flow_id

    def ms(self, median: float, spread: float = 0.6) -> float:
        """A duration: most near the median, a few many times as long."""
        return round(median * math.exp(self.chance.gauss(0, spread)), 3)

    def end(self, outcome: str, **more: Any) -> None:
        took_ms = round((self.at - self.began) / timedelta(milliseconds=1) + AT_ONCE_MS, 3)
        first: dict[str, Any] = {} if self.first_token_ms is None else {"ttft_ms": self.first_token_ms}
        self.add("flow_end", self.root, AT_ONCE_MS, outcome=outcome, duration_ms=took_ms, **first, **more)

    def tell(self, kind: str, model: Any, tools: Weighted) -> None:
        """The whole turn."""
        check = self._checks(kind)
        if check is None:
            return
        if kind == "llm_unavailable":
            self.add("error", check, AT_ONCE_MS, code=kind, message=WORDS[kind])
            self.end("refused", code=kind)
            return
        rounds = self.chance.choices((1, 2, 3, 4), (55, 30, 11, 4))[0]
        for number in range(1, rounds + 1):
            last = number == rounds
            failing = self._round(check, number, model, tools, kind if last else "completed", last=last)
        if kind == "abandoned":
            self.end("abandoned", reason="process_died")
        elif kind in WORDS:
            self.add("error", failing, AT_ONCE_MS, code=kind, message=WORDS[kind])
            self.end("failed")
        else:
            self.end(kind)

    def _checks(self, kind: str) -> str | None:
        """The last check, or None when the turn was refused."""
        chance = self.chance
        asked = {
            "method": chance.choice(["token", "session"]),
            "process": str(uuid.UUID(int=1)),
            "question": self.question,
        }
        if kind in ("inactive", "expired", "revoked"):
            self.add("auth_check", None, 0, status="failed", reason=kind, duration_ms=self.ms(1.4), **asked)
            code = "inactive" if kind == "inactive" else f"token_{kind}"
            self.end("refused", code=code)
            return None
        check = self.add("auth_check", None, 0, status="passed", duration_ms=self.ms(1.4), **asked)
        took_ms = self.ms(2.3)
        if kind == "user_blocked":
            facts: dict[str, Any] = {
                "status": "failed",
                "code": kind,
                "message": "You have been blocked from this chat.",
            }
            self.add("block_check", check, AT_ONCE_MS, **facts, reason="sample", duration_ms=took_ms)
            self.end("refused", code=kind)
            return None
        check = self.add("block_check", check, AT_ONCE_MS, status="passed", duration_ms=took_ms)
        limit = 500 if kind != "turns_at_once" else 8
        used = limit if kind in ("requests_per_day", "tokens_per_day", "turns_at_once") else chance.randrange(1, 400)
        facts = {"limit_name": kind if used == limit else "requests_per_day", "used": used, "limit": limit}
        facts["resets_at"] = (self.began + timedelta(days=1)).strftime("%Y-%m-%dT00:00:00Z")
        if used < limit:
            return self.add("usage_check", check, AT_ONCE_MS, status="passed", **facts, duration_ms=took_ms)
        code = "too_many_turns" if kind == "turns_at_once" else "usage_limit"
        self.add("usage_check", check, AT_ONCE_MS, status="failed", code=code, **facts, duration_ms=took_ms)
        self.end("refused", code=code)
        return None

    def _round(self, check: str, number: int, model: Any, tools: Weighted, kind: str, *, last: bool) -> str:
        """One round of the model with the tools it asks for; returns the step that fails, if one does."""
        name, provider, _, first_ms, whole_ms, price_in, price_out = model
        chance = self.chance
        thinking = self.add(
            "llm_thinking", check, AT_ONCE_MS, status="started", model=name, provider=provider, round=number,
            input=self.question if number == 1 else "{\"rows\": 12}",
        )  # fmt: skip
        if kind == "abandoned":
            return thinking
        spoken = last and kind in ("completed", "disconnected", "tool_failed") and chance.random() > 0.05
        took_ms = 60_000.0 if kind == "llm_timeout" else self.ms(whole_ms if last else whole_ms / 3)
        calls = (
            [] if last and kind not in ("tool_failed", "too_many_rounds") else chance.choices((1, 2, 3), (70, 20, 10))
        )
        called = [self._call(thinking, tools.pick(chance)) for _ in range(calls[0] if calls else 0)]
        failing = self._results(called, fails=kind == "tool_failed") or thinking
        tokens_in, tokens_out = chance.randrange(200, 4000), chance.randrange(8, 700)
        ended: dict[str, Any] = {
            "status": "cancelled" if kind == "disconnected" else "error" if kind.startswith("llm_") else "ok"
        }
        if spoken and kind == "completed":
            ended["ttft_ms"] = min(self.ms(first_ms), took_ms)
            so_far_ms = (self.at - self.began) / timedelta(milliseconds=1)
            self.first_token_ms = round(so_far_ms + ended["ttft_ms"], 3)
        cost = None if price_in is None else round(tokens_in * price_in + tokens_out * price_out, 8)
        self.add(
            "llm_complete", thinking, took_ms, duration_ms=took_ms, input_tokens=tokens_in, output_tokens=tokens_out,
            cost_usd=cost, finish_reason="stop" if last else "tool_calls", tool_calls=len(called),
            answer="The answer to that is a little longer. " * chance.randrange(1, 5), **ended,
        )  # fmt: skip
        return failing

    def _call(self, thinking: str, tool: Any) -> tuple[Any, str]:
        name, server, *_ = tool
        arguments = json.dumps({"q": self.question[:60]})
        facts = {"tool": name, "server": server, "call_id": f"call_{self.chance.getrandbits(40):x}"}
        return tool, self.add("tool_call", thinking, AT_ONCE_MS, status="started", **facts, arguments=arguments)

    def _results(self, called: list[tuple[Any, str]], *, fails: bool) -> str | None:
        """The results of calls that ran at the same time, the quickest first; the call that broke the turn."""
        took = sorted(((self.ms(tool[3], 0.9), tool, call) for tool, call in called), key=lambda each: each[0])
        before_ms, broken = 0.0, None
        for number, (took_ms, (name, _, _, _, share), call) in enumerate(took):
            broke = fails and number == len(took) - 1
            status = "error" if broke or self.chance.random() < share else "ok"
            facts = {"error": "The tool failed."} if status == "error" else {"result": '{"rows": 12}'}
            self.add("tool_result", call, took_ms - before_ms, status=status, tool=name, duration_ms=took_ms, **facts)
            before_ms, broken = took_ms, call if broke else broken
        return broken


def numbered(turns: SampleTurns, first: int) -> Iterator[tuple[int, list[bytes]]]:
    """The turns from number `first` on, without an end."""
    for number in itertools.count(first):
        yield number, turns.documents(number)
