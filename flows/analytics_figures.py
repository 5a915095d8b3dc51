"""The figures of an analysis in words, bars and links, row by row, as templates/flows/analytics.html draws them."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.utils.html import format_html
from django.utils.safestring import SafeString, mark_safe

from flows import charts, words
from flows.analytics import Analysis, Loss, Percentiles, Slot, Spent, Stage, Step
from flows.analytics_links import Links
from flows.analytics_query import Asked
from flows.charts import Column, Part, TimeScale
from flows.history import RUNNING

Row = dict[str, Any]

# What went wrong stands on the zero line, where heights can be compared; what went well above it.
STACK = ("failed", "refused", "stopped", "disconnected", "abandoned", RUNNING, "completed")
TILES = ("completed", "failed", "refused", "disconnected", "stopped", "abandoned", RUNNING)
ALWAYS_SHOWN = frozenset({"completed", "failed", "refused"})
# A percentile is claimed only where a value or more may lie beyond it.
FEW = {50: 5, 95: 20, 99: 100}
MOST_REASONS = 4  # of a stage, before one opens the others
MANY = 2  # beyond three times as many, a percentage says little
MARKS_WIDE, MARKS_NARROW = 12, 5

STAGE_WORDS = {
    "begun": ("Asked", "chat", "idle"),
    "signed_in": ("Signed in", "key", "check"),
    "not_blocked": ("Not blocked", "shield_person", "check"),
    "within_limits": ("Within limits", "speed", "check"),
    "model_called": ("Model called", "neurology", "model"),
    "first_token": ("First token", "bolt", "model"),
    "completed": ("Completed", "check_circle", "ok"),
}
STEP_WORDS = {
    "auth_check": "Sign-in check",
    "block_check": "Block check",
    "usage_check": "Limits check",
    "mcp_permission_check": "Tool rights check",
    "tool_filter": "Tool filter",
    "tool_approval": "Approval by the user",
    "llm_complete": "Model round",
    "tool_result": "Tool",
}
HUES = {"check": "check", "model": "model", "tool": "tool", "error": "bad"}


def turns(number: int, href: str, *, title: str = "", more: str = "") -> SafeString:
    """How many turns, as a link to exactly those; as text where there is no such address, or nobody behind it."""
    if not href or not number:
        return format_html('<span class="{}">{}</span>', more or ("soft" if not number else ""), f"{number:,}")
    said = format_html(' title="{}"', title) if title else ""
    link = '<a href="{}" class="figure {}" data-turns="{}"{}>{}</a>'
    return format_html(link, href, more, number, said, f"{number:,}")


def named(name: str, href: str, *, title: str = "") -> SafeString:
    """A name from the data as a link, or as text; written in its own direction, and cut after two lines."""
    tag = format_html('a href="{}"', href) if href else mark_safe("span")
    text = '<{} class="figure name" title="{}" dir="auto">{}</{}>'
    return format_html(text, tag, title or name, name, "a" if href else "span")


# --- how turns ended ----------------------------------------------------------------------------------


def outcome(name: str) -> Row:
    """An outcome's key, label and fill."""
    return {"key": name, "label": label_of(name), "swatch": charts.swatch(name)}


def label_of(name: str) -> str:
    return words.outcome(None if name == RUNNING else name)["label"]


def in_order(outcomes: Mapping[str, int], order: Sequence[str]) -> list[str]:
    """Those in `order`, and after them whatever else there is (an outcome written from outside)."""
    return [*order, *sorted(set(outcomes) - set(order))]


def tiles(found: Analysis, before: Mapping[str, int], links: Links, period: str) -> Iterator[Row]:
    """How many turns, and of each outcome; beside each, how much more or less than in the period before."""
    yield {
        "label": "Turns",
        "count": found.turns,
        "number": f"{found.turns:,}",
        "href": links.turns(),
        **_change(found.turns, sum(before.values()), period),
    }
    for name in in_order(found.outcomes, TILES):
        number = found.outcomes.get(name, 0)
        if number or name in ALWAYS_SHOWN:
            yield {
                **outcome(name),
                "count": number,
                "number": f"{number:,}",
                "share": rate(number, found.turns),
                "href": links.turns(outcome=name),
                # what runs now says nothing about what ran then
                **({} if name == RUNNING else _change(number, before.get(name, 0), period)),
            }


def _change(now: int, before: int, period: str) -> Row:
    """In words: how much more or less; the number before on hover."""
    exact = f"{before:,} in the {period} before"
    if not before:
        return {"change": "none before" if now else "", "change_title": exact}
    part = (now - before) / before
    text = "as before" if abs(part) < 0.005 else f"{part:+.0%}".replace("%", "\u00a0%").replace("-", "\u2212")
    if part >= MANY:
        text = f"{now / before:.0f} times as many"
    return {"change": text, "change_title": exact}


def rate(number: float, of: float) -> str:
    """0 %, 0.4 %, 12 %, 100 %: never 0 % or 100 % of what is neither."""
    if not of or not number:
        return "0\u00a0%"
    value = 100 * number / of
    text = f"{value:.1f}" if value < 9.95 or 99.5 <= value < 100 else f"{value:.0f}"
    if number < of:
        text = {"100.0": "99.9", "0.0": "<0.1"}.get(text, text)
    return f"{text.removesuffix('.0')}\u00a0%"


# --- over time ------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Time:
    """A slot as it is written: "Sat 21 Nov, 14:00 to 15:00", its mark on the axis."""

    slot: Slot
    title: str
    mark: str
    major: bool

    @property
    def total(self) -> int:
        return sum(self.slot.outcomes.values())


def times(slots: Sequence[Slot], asked: Asked) -> list[Time]:
    """The slots in the viewer's words, some of them marked on the axis."""
    return [Time(slot, _title(slot, asked), *_mark(slots, at, asked)) for at, slot in enumerate(slots)]


def _title(slot: Slot, asked: Asked) -> str:
    since, until = slot.since.astimezone(asked.zone), slot.until.astimezone(asked.zone)
    day = f"{since:%a} {since.day} {since:%b}"
    return day if asked.slot >= timedelta(days=1) else f"{day}, {since:%H:%M} to {until:%H:%M}"


def _mark(slots: Sequence[Slot], at: int, asked: Asked) -> tuple[str, bool]:
    """What stands under the column, and whether it also does on a narrow page."""
    since = slots[at].since.astimezone(asked.zone)
    if asked.slot >= timedelta(days=1):
        every = math.ceil(len(slots) / MARKS_WIDE)
        seldom = every * math.ceil(len(slots) / MARKS_NARROW / every)
        back = len(slots) - 1 - at  # counted from today, so that today is always marked
        return (f"{since.day} {since:%b}" if back % every == 0 else ""), back % seldom == 0
    unit = round(asked.slot / timedelta(minutes=1))
    minute = since.hour * 60 + since.minute
    every = _step(len(slots) / MARKS_WIDE * unit, unit)
    seldom = _step(len(slots) / MARKS_NARROW * unit, every)
    if minute % every:
        return "", False
    return (f"{since:%H:%M}" if minute else f"{since.day} {since:%b}"), minute % seldom == 0


def _step(least: float, of: int) -> int:
    """The next handy number of minutes that is a multiple of another."""
    handy = (5, 10, 15, 30, 60, 120, 180, 360, 720, 1440)
    return next((one for one in handy if one >= least and one % of == 0), handy[-1])


def over_time(found: Sequence[Time], links: Links, *, description: str) -> SafeString:
    """The stacked columns: turns by outcome."""
    return charts.stacked(
        [_column(time, links) for time in found], key="over-time", title="Turns over time", description=description
    )


def _column(time: Time, links: Links) -> Column:
    within = _within(time)
    parts = [
        Part(name, number, f"{time.title}: {label_of(name)} {number:,}", links.turns(**within, outcome=name))
        for name in in_order(time.slot.outcomes, STACK)
        if (number := time.slot.outcomes.get(name, 0))
    ]
    return Column(parts, f"{time.title}: {time.total:,} turns", links.turns(**within), time.mark, time.major)


def _within(time: Time) -> dict[str, datetime]:
    return {"since": time.slot.since, "until": time.slot.until}


def table(found: Sequence[Time], shown: Sequence[str], links: Links) -> list[Row]:
    """The same as a table: a row a slot, the last first, a number for each outcome in `shown`."""
    return [
        {
            "title": time.title,
            "total": turns(time.total, links.turns(**_within(time))),
            "cells": [
                turns(time.slot.outcomes.get(name, 0), links.turns(**_within(time), outcome=name)) for name in shown
            ],
        }
        for time in reversed(found)
    ]


# --- where and why turns end ------------------------------------------------------------------------------


def funnel(found: Analysis, links: Links) -> Iterator[Row]:
    """From asked to completed: how many came so far, and how many ended there, by outcome and reason."""
    for stage in found.funnel:
        label, icon, colour = STAGE_WORDS[stage.key]
        lost = stage.lost
        shown = [_loss(loss, stage, links) for loss in lost]
        yield {
            "key": stage.key,
            "label": label,
            "icon": icon,
            "reached": turns(stage.reached, links.turns(reached=None if stage.key == "begun" else stage.key)),
            "share": rate(stage.reached, found.turns),
            "bar": charts.share(stage.reached, found.turns, colour=colour),
            "ended": turns(sum(loss.turns for loss in lost), links.turns(stage=stage.key), more="is-sum"),
            "lost": shown[:MOST_REASONS],
            "more": shown[MOST_REASONS:],
        }


def _loss(loss: Loss, stage: Stage, links: Links) -> Row:
    # "without a code" is no filter: such a number has a link only where the outcome alone says it
    href = links.turns(stage=stage.key, outcome=loss.outcome, error=loss.error)
    is_exact = loss.error or not any(other.error for other in stage.lost if other.outcome == loss.outcome)
    return {
        **outcome(loss.outcome),
        "why": words.reason(loss.error) if loss.error and loss.error != loss.outcome else "",
        "count": turns(loss.turns, href if is_exact else "", title=loss.error or ""),
    }


def problems(found: Analysis, links: Links) -> Iterator[Row]:
    """The codes that say why turns were refused or failed, the most frequent first."""
    most = max((problem.turns for problem in found.problems), default=0)
    for problem in sorted(found.problems, key=lambda one: (-one.turns, one.code)):
        said = words.reason(problem.code)
        mainly = max(problem.outcomes, key=lambda name: problem.outcomes[name], default="failed")
        yield {
            "name": named(said[:1].upper() + said[1:], links.turns(error=problem.code), title=problem.code),
            "count": turns(problem.turns, links.turns(error=problem.code)),
            "share": rate(problem.turns, found.turns),
            "bar": charts.share(problem.turns, most, colour=charts.colour(mainly)),
            "outcomes": [
                {**outcome(name), "count": turns(number, links.turns(error=problem.code, outcome=name))}
                for name, number in sorted(problem.outcomes.items(), key=lambda one: -one[1])
            ],
        }


# --- how long -----------------------------------------------------------------------------------------------


def durations(found: Analysis, links: Links) -> Row:
    """The turn, its first token and every measured step, on one scale."""
    known = [found.turn, found.first_token, *(step.time for step in found.steps)]
    scale = TimeScale.over(value for time in known for value in (time.p50, time.p95, time.p99) if value is not None)
    rows = [
        {
            "name": named("Whole turn", links.turns(sort="-duration")),
            "icon": "flag",
            **_spread(found.turn, scale, "ok", links),
        },
        {
            "name": named("First token", links.turns(sort="-first_token")),
            "icon": "bolt",
            **_spread(found.first_token, scale, "model"),
        },
        *(_step_row(step, scale, links) for step in found.steps),
    ]
    ticks = [
        {"at": charts.percent(scale.at(tick)), "label": f"{tick:g} ms" if tick < 1000 else f"{tick / 1000:g} s"}
        for tick in scale.ticks()
    ]
    return {"durations": rows, "ticks": ticks}


def _step_row(step: Step, scale: TimeScale, links: Links) -> Row:
    known = words.CHECKPOINTS.get(step.checkpoint, words.UNKNOWN)
    of = {"llm_complete": "model", "tool_result": "tool"}.get(step.checkpoint)
    whose = {of: step.name} if of else {}
    label = STEP_WORDS.get(step.checkpoint, step.checkpoint)
    href = links.turns(checkpoint=step.checkpoint, sort="-duration", **whose)
    status = "failed" if known["kind"] == "check" else "error"
    return {
        "label": label if step.name else "",
        "name": named(step.name or label, href),
        "icon": known["icon"],
        "failures": _failures(
            step.failures,
            links.turns(checkpoint=step.checkpoint, status=status, **whose),
            "is-warn" if status == "failed" else "is-bad",
        ),
        **_spread(step.time, scale, HUES.get(known["kind"], "idle")),
    }


def _spread(time: Percentiles, scale: TimeScale, hue: str, links: Links | None = None) -> Row:
    claimed = {part: claim(time, part) for part in FEW}
    cells = [_cell(claimed[part], part, time.count, links) for part in FEW]
    middle = claimed[50]
    bar = "" if middle is None else charts.spread(scale, p50=middle, p95=claimed[95], p99=claimed[99], colour=hue)
    return {"count": f"{time.count:,}", "cells": cells, "bar": bar, "hue": hue}


def claim(time: Percentiles, part: int) -> float | None:
    """The percentile in milliseconds, or None where there are too few values for one."""
    value: float | None = getattr(time, f"p{part}")
    return value if time.count >= FEW[part] else None


def _cell(value: float | None, part: int, count: int, links: Links | None) -> Row:
    if value is None:
        return {"text": "too few" if count else "", "few": f"p{part} needs {FEW[part]} values, there are {count}"}
    href = links.turns(slower_ms=value, sort="-duration") if links else ""
    return {"text": words.duration(value), "href": href}


# --- tools, models, people ------------------------------------------------------------------------------------


def tools(found: Analysis, links: Links) -> Iterator[Row]:
    """Each tool with its calls, the most used first."""
    most = max((tool.calls for tool in found.tools), default=0)
    for tool in sorted(found.tools, key=lambda one: (-one.calls, one.tool)):
        yield {
            "name": named(tool.tool or "no name", links.turns(tool=tool.tool)),
            "turns": turns(tool.turns, links.turns(tool=tool.tool)),
            "calls": f"{tool.calls:,}",
            "bar": charts.share(tool.calls, most, colour="tool"),
            "failures": _failures(tool.failures, links.turns(tool=tool.tool, checkpoint="tool_result", status="error")),
            "rate": rate(tool.failures, tool.calls),
            "p95": _cell(claim(tool.time, 95), 95, tool.time.count, None),
        }


def _failures(number: int, href: str, state: str = "is-bad") -> SafeString:
    """How many steps failed, as a link to turns that used such a step and in which one of its kind failed."""
    if not number or not href:
        return format_html('<span class="{}">{}</span>', "" if number else "soft", f"{number:,}")
    return format_html('<a href="{}" class="figure {}">{}</a>', href, state, f"{number:,}")


def spent(rows: Sequence[Spent], links: Links, by: str, called: Mapping[str, str], colour: str) -> Iterator[Row]:
    """Tokens and cost by model or by user, the most tokens first."""
    most = max((row.input_tokens + row.output_tokens for row in rows), default=0)
    for row in sorted(rows, key=lambda one: -(one.input_tokens + one.output_tokens)):
        tokens = row.input_tokens + row.output_tokens
        yield {
            "name": named(called.get(row.name) or row.name or "no name", links.turns(**{by: row.name}), title=row.name),
            "turns": turns(row.turns, links.turns(**{by: row.name})),
            "input": charts.short(row.input_tokens),
            "input_exact": row.input_tokens,
            "output": charts.short(row.output_tokens),
            "output_exact": row.output_tokens,
            "cost": words.money(row.cost_usd),
            "bar": charts.share(tokens, most, colour=colour),
        }


def sums(found: Analysis, links: Links) -> Iterator[Row]:
    """Times, tokens and money of all turns, in one line."""
    for label, time, sort in (("Turn", found.turn, "-duration"), ("First token", found.first_token, "-first_token")):
        said = [f"p{part} {words.duration(value)}" for part in (50, 95) if (value := claim(time, part)) is not None]
        text = " · ".join(said) or (f"{time.count:,} measured, too few" if time.count else "none measured")
        yield {"label": label, "text": text, "href": links.turns(sort=sort)}
    read, written = sum(row.input_tokens for row in found.models), sum(row.output_tokens for row in found.models)
    tokens = f"{charts.short(read)} in · {charts.short(written)} out"
    yield {
        "label": "Tokens",
        "text": tokens,
        "title": f"{read:,} in, {written:,} out",
        "href": links.turns(sort="-tokens"),
    }
    costs = [row.cost_usd for row in found.models if row.cost_usd is not None]
    yield {
        "label": "Cost",
        "text": words.money(sum(costs)) if costs else "no prices",
        "href": links.turns(sort="-cost"),
    }


def said_time(at: datetime, asked: Asked) -> str:
    """Sat 21 Nov 14:00, by the viewer's clock."""
    local = at.astimezone(asked.zone)
    return f"{local:%a} {local.day} {local:%b %H:%M}"
