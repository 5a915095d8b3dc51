"""What the address of the table of turns asks for, and the addresses of what it could ask for next.

Filters, order and place are the URL's; every link of the page is the same question with one thing
changed. Read here for the page, its export and its news alike.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from types import MappingProxyType
from urllib.parse import urlencode

from django.db.models import Q
from django.http import HttpRequest, QueryDict
from django.utils import timezone

from flows import history, words
from flows.history import DEFAULT_SORT, TurnFilters
from flows.models import STAGES
from flows.reader import Reader
from flows.serializers import TurnQuery
from omni2.accounts.models import User

RANGES = MappingProxyType(
    {
        "1h": ("Last hour", 1),
        "24h": ("Last 24 hours", 24),
        "7d": ("Last 7 days", 168),
        "30d": ("Last 30 days", 720),
    }
)
FILTERS = (
    *("q", "user_id", "outcome", "range", "since", "until", "slower_ms", "model", "tool", "checkpoint", "status"),
    *("error", "stage", "reached", "session_id"),
)
# Those the form shows when it is opened, or when something is wrong with one of them.
FURTHER = ("since", "until", "model", "tool", "checkpoint", "status", "error", "stage", "reached", "session_id")
LABELS = MappingProxyType(
    {
        "q": "Question holds",
        "user_id": "User",
        "range": "Time",
        "since": "From",
        "until": "Before",
        "slower_ms": "Slower than",
        "model": "Model",
        "tool": "Tool",
        "checkpoint": "Checkpoint",
        "status": "Status",
        "error": "Why",
        "stage": "Came as far as",
        "reached": "Came at least as far as",
        "session_id": "Session",
    }
)
STAGE_WORDS = MappingProxyType({name: name.replace("_", " ").capitalize() for name in STAGES.values()})
MOST_PEOPLE = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """One request for turns. `people` are those a typed name may mean, when that is not clear."""

    given: dict[str, str]
    query: TurnQuery
    errors: dict[str, str]
    people: list[dict[str, str]] = field(default_factory=list)
    began: str = ""  # when a relative time began, for the pages after the first

    @property
    def is_clear(self) -> bool:
        return not self.errors and not self.people

    @property
    def filters(self) -> TurnFilters:
        return TurnFilters(**self.query.filters())

    @property
    def sort(self) -> str:
        return str(self.query.paging()["sort"])

    def address(self, **changed: str) -> str:
        """The same question with these parameters changed (empty: left out), from its first page."""
        return "?" + urlencode(self.parameters(**changed))

    def page_address(self, cursor: str | None) -> str | None:
        """Another page of the same list; a relative time stays as it was on the first."""
        began = {"from": self.began} if self.given["range"] and not self.given["since"] else {}
        return cursor and "?" + urlencode({**self.parameters(), "cursor": cursor, **began})

    def parameters(self, **changed: str) -> dict[str, str]:
        """What stands in the address, in one order; the default order of the list is left out."""
        sort = str(self.query.data.get("sort", ""))
        asked = {**self.given, "sort": "" if sort == DEFAULT_SORT else sort, **changed}
        return {name: value for name, value in asked.items() if value}

    @property
    def narrowed(self) -> bool:
        return any(self.given.values())


def asked(request: HttpRequest, reader: Reader) -> Asked:
    """The question of this request. One query more when a user is given by name."""
    given = {name: request.GET.get(name, "").strip() for name in FILTERS}
    wanted = {name: value for name, value in given.items() if name != "range"}
    errors, began = {}, ""
    if given["range"] and given["range"] not in RANGES:
        errors["range"] = f"One of {', '.join(RANGES)} is needed."
    elif given["range"] and not given["since"]:
        began = wanted["since"] = request.GET.get("from", "") or _ago(given["range"])
    people: list[dict[str, str]] = []
    if reader.sees_all and given["user_id"] and "@" not in given["user_id"]:
        people = people_like(given["user_id"])
        if len(people) == 1:
            given["user_id"] = wanted["user_id"] = people[0]["user_id"]
            people = []
    query = TurnQuery(data=_data(wanted, request))
    if not query.is_valid():
        errors |= {name: " ".join(map(str, problem)) for name, problem in query.errors.items()}
    elif "slower_ms" in query.validated_data:
        given["slower_ms"] = _digits(query.validated_data["slower_ms"])
    return Asked(given, query, errors, people, began)


def _data(wanted: dict[str, str], request: HttpRequest) -> QueryDict:
    data = QueryDict(mutable=True)
    data.update(wanted)
    for name in ("cursor", "sort"):
        data[name] = request.GET.get(name, "")
    return data


def _ago(name: str) -> str:
    return history.wire_time(timezone.now() - timedelta(hours=RANGES[name][1]))


def people_like(typed: str) -> list[dict[str, str]]:
    """At most MOST_PEOPLE whose name or address holds this. One query."""
    if not typed.isprintable():
        return []
    found = User.objects.filter(Q(name__icontains=typed) | Q(email__icontains=typed)).order_by("name", "email")
    return [{"user_id": user.user_id, "name": user.get_full_name()} for user in found[:MOST_PEOPLE]]


def chips(asked: Asked, names: dict[str, str]) -> Iterator[dict[str, str]]:
    """The filters in force, each with the address without it. The outcome has chips of its own."""
    for name, label in LABELS.items():
        if value := asked.given[name]:
            if name == "range" and asked.given["since"]:
                continue
            without = asked.address(**{name: ""})
            yield {"name": name, "label": label, "value": said(name, value, names), "without": without}


def said(name: str, value: str, names: dict[str, str]) -> str:
    """A filter's value in words."""
    if name == "user_id":
        return names.get(value.lower(), value)
    if name == "range":
        return RANGES[value][0]
    if name == "slower_ms":
        return _spelled(value)
    if name == "error":
        return words.reason(value)
    return STAGE_WORDS[value] if name in {"stage", "reached"} else value


def as_typed(given: dict[str, str]) -> dict[str, str]:
    """The values as the form shows them."""
    return {**given, "slower_ms": _spelled(given["slower_ms"])}


def _spelled(slower: str) -> str:
    """Milliseconds as one would type them, none lost: 1.5 s, 2 min, 1234 ms. What is no number stays as it is."""
    try:
        ms = float(slower)
    except ValueError:
        return slower
    if ms >= 60_000 and ms % 60_000 == 0:
        return f"{_digits(ms / 60_000)} min"
    return f"{_digits(ms / 1000)} s" if ms >= 1000 and ms % 100 == 0 else f"{_digits(ms)} ms"


def _digits(number: float) -> str:
    return f"{number:.6f}".rstrip("0").rstrip(".")
