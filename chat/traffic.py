"""The six demonstration users and what they do: real requests to the real endpoint of a running Omni2.

Their names say what they are for, and all of them are marked as demonstration. They are answered
by the scripted model alone (chat.demonstration).
"""

import asyncio
import itertools
import json
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta

import httpx2
from django.db.models.functions import Now

from chat.demonstration import DOMAIN
from chat.models import UserBlock, UserLimits
from omni2.accounts.models import ApiToken, User

TOKEN_DAYS = 1
TOKEN_NAME = "demonstration"  # noqa: S105 (what it is for)
REQUESTS_OF_LOU = 3

Say = Callable[[str], object]


@dataclass(frozen=True, slots=True)
class Act:
    """One question; `leaves_after` so many tokens the client hangs up."""

    question: str
    leaves_after: int | None = None


@dataclass(frozen=True, slots=True)
class Person:
    """A demonstration user, and what he asks again and again."""

    first_name: str
    surname: str
    acts: tuple[Act, ...]
    goes_on: bool = True
    """continues one conversation instead of beginning a new one each time"""

    @property
    def email(self) -> str:
        return f"{self.first_name.lower()}@{DOMAIN}"

    @property
    def name(self) -> str:
        return f"{self.first_name} {self.surname} (demonstration)"


DORA = Person(
    "Dora",
    "Done",
    (
        Act("What can you tell me about the tide tables of the North Sea?"),
        Act("And why does the water come back twice a day?"),
        Act("Thank you. Please say that in one sentence."),
    ),
)
THEO = Person(
    "Theo",
    "Tools",
    (
        Act("What time is it in Berlin?"),
        Act("How much is (17.5 * 3 - 2) / 7 ?"),
        Act("Compare the time here and in Tokyo, and what is 19 times 23?"),
        Act("How much is 1 / 0 ? (script:bad_sum)"),
    ),
    goes_on=False,
)
BELLA = Person("Bella", "Blocked", (Act("Why can I not ask anything any more?"),))
IAN = Person("Ian", "Inactive", (Act("Is my account still alive?"),))
LOU = Person("Lou", "Limit", (Act("One more question, please?"),))
FAY = Person(
    "Fay",
    "Fails",
    (
        Act("Please fail at once. (script:error_500)"),
        Act("I shall leave in the middle. (script:slow)", leaves_after=4),
        Act("Please break off in the middle. (script:cut)"),
        Act("Please have too much to do. (script:error_429)"),
        Act("Please never stop calling tools. (script:endless)"),
    ),
    goes_on=False,
)
CAST = (DORA, THEO, BELLA, IAN, LOU, FAY)


def make_cast() -> dict[str, str]:
    """Make the six users, or put them back to how they begin; returns a new token for each, by
    e-mail address. The tokens live a day, those of earlier demonstrations are revoked."""
    ApiToken.objects.filter(user__email__endswith=f"@{DOMAIN}", name=TOKEN_NAME).revoke()
    tokens = {}
    for person in CAST:
        user, _ = User.objects.get_or_create(email=person.email, defaults={"name": person.name})
        User.objects.filter(pk=user.pk).update(name=person.name, is_active=person is not IAN)
        tokens[person.email] = ApiToken.objects.issue(user, name=TOKEN_NAME, days=TOKEN_DAYS)[1]
        if person is BELLA:
            words = {"message": "You are blocked for this demonstration.", "reason": "shows what a block looks like"}
            UserBlock.objects.update_or_create(user=user, defaults=words)
        if person is LOU:
            UserLimits.objects.update_or_create(user=user, defaults={"requests_per_day": REQUESTS_OF_LOU})
    return tokens


def end_cast() -> None:
    """Revoke the tokens of the demonstration; what it made stays to be looked at."""
    ApiToken.objects.filter(user__email__endswith=f"@{DOMAIN}", name=TOKEN_NAME, expires_at__gt=Now()).revoke()


@dataclass(slots=True)
class Traffic:
    """Sends the six users' requests to `base_url`, `rate` a second in all, for `lasting`."""

    base_url: str
    tokens: dict[str, str]
    lasting: timedelta
    rate: float
    say: Say
    outcomes: Counter[str] = field(default_factory=Counter)
    sessions: dict[str, str] = field(default_factory=dict)

    async def send(self) -> Counter[str]:
        """Returns how the turns ended, when the time is up and the last of them is over."""
        until = time.monotonic() + self.lasting.total_seconds()
        acts = _in_turn()
        limits = httpx2.Limits(max_connections=None)
        async with (
            httpx2.AsyncClient(base_url=self.base_url, timeout=120, limits=limits) as client,
            asyncio.TaskGroup() as turns,
        ):
            while (now := time.monotonic()) < until:
                turns.create_task(self._turn(client, *next(acts)))
                # an even rate would look like a machine
                pause_s = random.expovariate(self.rate)
                await asyncio.sleep(min(pause_s, 5 / self.rate, until - now))
        return self.outcomes

    async def _turn(self, client: httpx2.AsyncClient, person: Person, act: Act) -> None:
        try:
            outcome = await self._ask(client, person, act)
        except httpx2.HTTPError as problem:
            outcome = f"no answer ({type(problem).__name__})"
        self.outcomes[outcome] += 1
        self.say(f"{person.first_name:<6} {act.question:<64.64} {outcome}")

    async def _ask(self, client: httpx2.AsyncClient, person: Person, act: Act) -> str:
        body = {"message": act.question}
        if person.goes_on and person.email in self.sessions:
            body["session_id"] = self.sessions[person.email]
        headers = {"Authorization": f"Bearer {self.tokens[person.email]}"}
        async with client.stream("POST", "/api/v1/ask/stream", json=body, headers=headers) as answer:
            if answer.status_code != httpx2.codes.OK:
                await answer.aread()
                return f"refused: {answer.json().get('code')}"
            tokens = 0
            async for name, data in _events(answer):
                tokens += name == "token"
                if act.leaves_after is not None and tokens >= act.leaves_after:
                    return "left in the middle"
                if name == "error":
                    return f"failed: {data['code']}"
                if name == "done":
                    self.sessions[person.email] = str(data["session_id"])
                    return "completed"
        return "broke off"


def _in_turn() -> Iterator[tuple[Person, Act]]:
    """Everybody in turn, each with his next act."""
    acts = {person.email: itertools.cycle(person.acts) for person in CAST}
    for person in itertools.cycle(CAST):
        yield person, next(acts[person.email])


async def _events(answer: httpx2.Response) -> AsyncIterator[tuple[str, dict[str, object]]]:
    name = ""
    async for line in answer.aiter_lines():
        if line.startswith("event: "):
            name = line.removeprefix("event: ")
        elif line.startswith("data: "):
            yield name, json.loads(line.removeprefix("data: "))
