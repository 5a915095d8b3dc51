"""The settings an admin may change while Omni2 runs: their shape, their bounds, their values now.

Values are kept in `omni2_config`; `monitoring.watchlist` brings them into memory, so that asking
for one costs an attribute. A missing or inactive row means the defaults written here.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from types import MappingProxyType
from typing import Any, TypeVar


@dataclass(frozen=True, slots=True)
class FlowMonitoring:
    """How long a user is monitored: hours if nobody says, and hours at most."""

    default_ttl_hours: float = 24
    max_ttl_hours: float = 720


@dataclass(frozen=True, slots=True)
class UsageLimits:
    """What one user may use in a minute, a day, a month, and at once; None is no limit. Cost in US dollars."""

    requests_per_day: int | None = 500
    tokens_per_day: int | None = 500_000
    cost_usd_per_day: float | None = None
    turns_at_once: int | None = 8
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    requests_per_month: int | None = None
    tokens_per_month: int | None = None
    cost_usd_per_month: float | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """For how many days turns are kept after they ended; 0 is for ever."""

    days: int = 90


@dataclass(frozen=True, slots=True)
class Rule:
    """What a value may be: a finite number within bounds (both included), whole or not, empty or not."""

    name: str
    label: str
    low: float
    high: float
    whole: bool = False
    nullable: bool = False
    optional: bool = False
    """may be missing, which says the same as null"""

    def problem(self, value: object) -> str | None:
        """Why the value cannot be used, in words for the person who typed it."""
        if value is None:
            return None if self.nullable else "A number is needed here."
        if isinstance(value, bool) or not isinstance(value, int | float):
            return "Must be a number."
        # bounds first: an integer of a thousand digits cannot be asked whether it is finite
        if not self.low <= value <= self.high:
            return f"Must be between {self.bounds(' and ')}."
        if self.whole and not isinstance(value, int):
            return "Must be a whole number."
        return None

    def bounds(self, between: str = " to ") -> str:
        """`0 to 1,000,000`."""
        return between.join(f"{end:,}" if isinstance(end, int) else f"{end:.4g}" for end in (self.low, self.high))


ONE_SECOND_HOURS = 1 / 3600
ONE_YEAR_HOURS = 8784  # 366 days

RULES: Mapping[str, tuple[Rule, ...]] = MappingProxyType(
    {
        "flow_monitoring": (
            Rule("default_ttl_hours", "Hours when nobody says how long", ONE_SECOND_HOURS, ONE_YEAR_HOURS),
            Rule("max_ttl_hours", "Hours at most", ONE_SECOND_HOURS, ONE_YEAR_HOURS),
        ),
        "usage_limits": (
            Rule("requests_per_day", "Requests a day", 0, 10**9, whole=True, nullable=True),
            Rule("tokens_per_day", "Tokens a day", 0, 10**12, whole=True, nullable=True),
            Rule("cost_usd_per_day", "US dollars a day", 0, 10**9, nullable=True),
            Rule("turns_at_once", "Turns at once", 1, 10**6, whole=True, nullable=True),
            Rule("requests_per_minute", "Requests a minute", 0, 10**9, whole=True, nullable=True, optional=True),
            Rule("tokens_per_minute", "Tokens a minute", 0, 10**12, whole=True, nullable=True, optional=True),
            Rule("requests_per_month", "Requests a month", 0, 10**9, whole=True, nullable=True, optional=True),
            Rule("tokens_per_month", "Tokens a month", 0, 10**12, whole=True, nullable=True, optional=True),
            Rule("cost_usd_per_month", "US dollars a month", 0, 10**9, nullable=True, optional=True),
        ),
        "retention": (Rule("days", "Days that turns are kept (0: for ever)", 0, 36_500, whole=True),),
    }
)
DEFAULTS: Mapping[str, FlowMonitoring | UsageLimits | Retention] = MappingProxyType(
    {"flow_monitoring": FlowMonitoring(), "usage_limits": UsageLimits(), "retention": Retention()}
)
DESCRIPTIONS: Mapping[str, str] = MappingProxyType(
    {
        "flow_monitoring": "How long a user is monitored, in hours.",
        "usage_limits": "What each user may use in a minute, a day, a month and at once, unless he or a group of his "
        "has limits of its own.",
        "retention": "How many days turns are kept after they ended; older ones are deleted for good.",
    }
)


class BadConfig(ValueError):
    """A value that breaks its rules; `problems` says which and why, by name ("" = the whole value)."""

    def __init__(self, problems: Mapping[str, str]) -> None:
        super().__init__("; ".join(f"{name}: {text}" if name else text for name, text in problems.items()))
        self.problems = problems


def problems_of(key: str, value: object) -> dict[str, str]:
    """What is wrong with the value of a row, by name; empty when it may be saved."""
    if key not in RULES:
        return {"": f"No such setting: {key}."}
    if not isinstance(value, dict):
        return {"": "Must be a JSON object."}
    rules = {rule.name: rule for rule in RULES[key]}
    problems = {str(name): "No such setting." for name in value.keys() - rules.keys()}
    for name, rule in rules.items():
        missing = None if rule.optional else "Missing."
        problem = rule.problem(value[name]) if name in value else missing
        if problem is not None:
            problems[name] = problem
    if key == "flow_monitoring" and not problems and value["default_ttl_hours"] > value["max_ttl_hours"]:
        problems["default_ttl_hours"] = "Must not be more than the hours at most."
    return problems


Shape = TypeVar("Shape", FlowMonitoring, UsageLimits, Retention)


def read(shape: type[Shape], key: str, value: object) -> Shape:
    """The value as an object; raises BadConfig."""
    problems = problems_of(key, value)
    if problems or not isinstance(value, dict):
        raise BadConfig(problems)
    return shape(**value)


def default_value(key: str) -> dict[str, Any]:
    """What a new database starts with."""
    return without_empty_options(key, asdict(DEFAULTS[key]))


def without_empty_options(key: str, value: Mapping[str, Any]) -> dict[str, Any]:
    """The value without what says nothing: optional names that are null."""
    optional = {rule.name for rule in RULES[key] if rule.optional}
    return {name: each for name, each in value.items() if not (each is None and name in optional)}


class Current:
    """What is in force in this process. Replaced whole, so a reader never sees half a change."""

    def __init__(self) -> None:
        self.flow_monitoring = FlowMonitoring()
        self.usage_limits = UsageLimits()
        self.retention = Retention()
        self.problems: Mapping[str, str] = MappingProxyType({})

    def put(self, values: Mapping[str, object]) -> None:
        """Take over the active rows. A row that breaks its rules (only SQL by hand can write one)
        leaves what was in force before, and is named in `problems`."""
        problems: dict[str, str] = {}
        try:
            self.flow_monitoring = _value_or_default(FlowMonitoring, "flow_monitoring", values)
        except BadConfig as bad:
            problems["flow_monitoring"] = str(bad)
        try:
            self.usage_limits = _value_or_default(UsageLimits, "usage_limits", values)
        except BadConfig as bad:
            problems["usage_limits"] = str(bad)
        try:
            self.retention = _value_or_default(Retention, "retention", values)
        except BadConfig as bad:
            problems["retention"] = str(bad)
        self.problems = MappingProxyType(problems)


def _value_or_default(shape: type[Shape], key: str, values: Mapping[str, object]) -> Shape:
    return read(shape, key, values[key]) if key in values else shape()


current = Current()


def flow_monitoring() -> FlowMonitoring:
    """The monitoring times in force: no I/O, at most a second old."""
    return current.flow_monitoring


def usage_limits() -> UsageLimits:
    """The usage limits in force where neither a user nor his groups have their own: no I/O, at most a second old."""
    return current.usage_limits


def retention() -> Retention:
    """How long turns are kept: no I/O, at most a second old."""
    return current.retention
