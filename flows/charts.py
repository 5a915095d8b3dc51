"""Charts as SVG text: drawn by the server, read without a script, coloured by classes of the palette.

Widths are shares of the place a chart stands in and heights are pixels, so a chart becomes narrower
without bending, and its letters keep their size. Everything that comes from data is escaped here.
The link layer lies over the picture as a second drawing: what is a picture to a screen reader
(role="img") may hold no links, and its reader has the table beside it.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString, mark_safe

PLOT_PX = 210
TOP_PX, AXIS_PX = 8, 22
LEAST_PX = 1.5  # a count that is not zero is never invisible
GRID_LINES = 4
BAR_SHARE = 0.78  # of a column's width
# How each outcome is filled: its colour's class, and the texture over it. Only what went well is plain.
TEXTURES: dict[str, tuple[str, str]] = {
    "failed": ("bad", "M0 0L6 6M6 0L0 6"),
    "refused": ("warn", "M-1 7L7 -1M-1 1L1 -1M5 7L7 5"),
    "stopped": ("warn", "M3 0V6"),
    "disconnected": ("idle", "M0 3H6"),
    "abandoned": ("idle", "M0 3H6M3 0V6"),
    "running": ("check", "M-1 -1L7 7M-1 5L1 7M5 -1L7 1"),
    "completed": ("ok", ""),
}


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of a column: how many of one outcome, in words, and the address of what is behind it."""

    outcome: str
    value: int
    title: str
    href: str


@dataclass(frozen=True, slots=True)
class Column:
    """One slot of time. `mark` stands below it; on a narrow page only if it is `major`."""

    parts: Sequence[Part]
    title: str
    href: str
    mark: str = ""
    major: bool = False

    @property
    def total(self) -> int:
        return sum(part.value for part in self.parts)


def textures() -> SafeString:
    """The fills of the outcomes, once a page, before the first chart."""
    return format_html(
        '<svg class="chart-textures" width="0" height="0" aria-hidden="true" focusable="false"><defs>{}</defs></svg>',
        format_html_join(
            "",
            '<pattern id="fill-{}" width="6" height="6" patternUnits="userSpaceOnUse">'
            '<rect width="6" height="6" class="fill-{}"/>{}</pattern>',
            ((outcome, colour, _lines(path)) for outcome, (colour, path) in TEXTURES.items()),
        ),
    )


def _lines(path: str) -> SafeString:
    return format_html('<path d="{}" class="texture"/>', path) if path else mark_safe("")


def swatch(outcome: str) -> SafeString:
    """A small square in an outcome's fill, for legends and table heads."""
    return format_html(
        '<svg class="swatch" width="11" height="11" aria-hidden="true" focusable="false">'
        '<rect width="11" height="11" rx="2" fill="{}"/></svg>',
        _fill(outcome),
    )


def colour(outcome: str) -> str:
    """The class of an outcome's hue, without its texture."""
    return TEXTURES.get(outcome, TEXTURES["abandoned"])[0]


def _fill(outcome: str) -> str:
    return f"url(#fill-{outcome if outcome in TEXTURES else 'abandoned'})"


# --- stacked columns over time ----------------------------------------------------------------------


def stacked(columns: Sequence[Column], *, key: str, title: str, description: str) -> SafeString:
    """Columns over a zero line, the first part of each at the bottom; each part links to what is behind it.

    `key` makes the ids of title and description unique in the page.
    """
    top = grid_top(max((column.total for column in columns), default=0))
    height = TOP_PX + PLOT_PX + AXIS_PX
    return format_html(
        '<div class="time-chart">'
        '<svg width="100%" height="{h}" role="img" aria-labelledby="{k}-title {k}-desc" focusable="false">'
        '<title id="{k}-title">{title}</title><desc id="{k}-desc">{desc}</desc>{grid}{bars}{marks}</svg>'
        '<svg class="time-chart-links" width="100%" height="{h}" aria-hidden="true" focusable="false">{links}</svg>'
        "</div>",
        h=height,
        k=key,
        title=title,
        desc=description,
        grid=_grid(top),
        bars=format_html_join("", "{}", ((_bar(columns, at, top),) for at in range(len(columns)))),
        marks=_marks(columns),
        links=format_html_join("", "{}", ((_links(columns, at, top),) for at in range(len(columns)))),
    )


def grid_top(highest: int) -> int:
    """The number at the upper line: the next of 1, 2, 4, 6, 8, 10, 20, 40 … whose half is whole."""
    power = 1
    while True:
        for step in (1, 2, 4, 6, 8):
            if highest <= step * power:
                return step * power
        power *= 10


def _y(value: float, top: int) -> float:
    return round(TOP_PX + PLOT_PX * (1 - value / top), 1)


def _grid(top: int) -> SafeString:
    values = [top * step // GRID_LINES for step in range(GRID_LINES + 1) if top * step % GRID_LINES == 0]
    return format_html_join(
        "",
        '<line x1="0" x2="100%" y1="{0}" y2="{0}" class="{1}"/><text x="-7" y="{2}" class="axis-number">{3}</text>',
        ((_y(value, top), "zero" if value == 0 else "grid", _y(value, top) + 4, short(value)) for value in values),
    )


def _boxes(column: Column, top: int) -> list[tuple[Part, float, float]]:
    """Each part that is not empty with its y and height in pixels, from the zero line upwards."""
    found, base = [], float(TOP_PX + PLOT_PX)
    for part in column.parts:
        if part.value:
            height = max(LEAST_PX, round(PLOT_PX * part.value / top, 1))
            base = round(base - height, 1)
            found.append((part, base, height))
    return found


def _place(columns: Sequence[Column], at: int) -> tuple[str, str]:
    """x and width of a bar, as shares."""
    each = 100 / len(columns)
    return percent(each * (at + (1 - BAR_SHARE) / 2)), percent(each * BAR_SHARE)


def _bar(columns: Sequence[Column], at: int, top: int) -> SafeString:
    x, width = _place(columns, at)
    return format_html_join(
        "",
        '<rect x="{}" y="{}" width="{}" height="{}" fill="{}"/>',
        ((x, y, width, height, _fill(part.outcome)) for part, y, height in _boxes(columns[at], top)),
    )


def _links(columns: Sequence[Column], at: int, top: int) -> SafeString:
    """The whole column leads to all its turns, and each part in it to its own."""
    column, each = columns[at], 100 / len(columns)
    if not column.total:
        return mark_safe("")
    boxes = [(column.href, column.total, column.title, float(TOP_PX), float(PLOT_PX))]
    boxes += [(part.href, part.value, part.title, y, height) for part, y, height in _boxes(column, top)]
    return format_html_join(
        "",
        '<a href="{}" tabindex="-1" data-turns="{}">'
        '<rect x="{}" y="{}" width="{}" height="{}"><title>{}</title></rect></a>',
        ((href, n, percent(each * at), y, percent(each), height, title) for href, n, title, y, height in boxes if href),
    )


def _marks(columns: Sequence[Column]) -> SafeString:
    each = 100 / max(len(columns), 1)
    return format_html_join(
        "",
        '<text x="{}" y="{}" class="axis-mark{}">{}</text>',
        (
            (percent(each * (at + 0.5)), TOP_PX + PLOT_PX + 16, "" if column.major else " is-minor", column.mark)
            for at, column in enumerate(columns)
            if column.mark
        ),
    )


# --- bars in the rows of a table --------------------------------------------------------------------


def share(value: float, of: float, *, colour: str) -> SafeString:
    """A bar as long as the share; it stands beside its number, so it is not read out."""
    width = 0 if of <= 0 else min(100.0, 100 * value / of)
    return format_html(
        '<svg class="row-chart" width="100%" height="10" aria-hidden="true" focusable="false">'
        '<rect width="100%" height="8" y="1" rx="4" class="fill-track"/>'
        '<rect width="{}" height="8" y="1" rx="{}" class="fill-{}"/></svg>',
        percent(width),
        4 if width > 1 else 0,
        colour,
    )


@dataclass(frozen=True, slots=True)
class TimeScale:
    """Durations on a scale on which each step to the right is ten times as long; milliseconds."""

    low: float
    high: float

    @classmethod
    def over(cls, values: Iterable[float]) -> "TimeScale":
        """Whole powers of ten around the values; at least two of them, none below a tenth of a millisecond."""
        known = [max(value, 0.1) for value in values]
        low = math.floor(math.log10(min(known, default=1)) + 1e-9)
        high = math.ceil(math.log10(max(known, default=10)) - 1e-9)
        return cls(10.0**low, 10.0 ** max(high, low + 1))

    def at(self, value: float) -> float:
        """Where the value stands, 0 to 100."""
        share = math.log10(max(value, self.low) / self.low) / math.log10(self.high / self.low)
        return max(0.0, min(100.0, 100 * share))

    def ticks(self) -> list[float]:
        """The powers of ten from end to end."""
        first, last = round(math.log10(self.low)), round(math.log10(self.high))
        return [10.0**power for power in range(first, last + 1)]


def spread(scale: TimeScale, *, p50: float, p95: float | None, p99: float | None, colour: str) -> SafeString:
    """From p50 to p95 (a thick bar) to p99 (a thin one), on a scale shared by all rows; what is unknown is left out.

    It stands beside its numbers, so it is not read out.
    """
    middle, most = (None if value is None else scale.at(value) for value in (p95, p99))
    start = scale.at(p50)
    bars = [] if most is None or middle is None else [(middle, max(most - middle, 0.5), 7, 2, "")]
    bars += [] if middle is None else [(start, max(middle - start, 0.5), 4, 8, " is-soft")]
    return format_html(
        '<svg class="row-chart" width="100%" height="16" aria-hidden="true" focusable="false">{}{}'
        '<rect x="{}" width="3" y="2" height="12" class="fill-{}"/></svg>',
        _tick_lines(scale),
        format_html_join(
            "",
            '<rect x="{}" width="{}" y="{}" height="{}" class="fill-{}{}"/>',
            ((percent(x), percent(width), y, height, colour, soft) for x, width, y, height, soft in bars),
        ),
        percent(min(start, 99)),
        colour,
    )


def _tick_lines(scale: TimeScale) -> SafeString:
    places = [percent(scale.at(tick)) for tick in scale.ticks()]
    return format_html_join("", '<line x1="{0}" x2="{0}" y1="0" y2="16" class="grid"/>', ((place,) for place in places))


# --- numbers ----------------------------------------------------------------------------------------


def percent(value: float) -> str:
    return f"{value:.3f}".rstrip("0").rstrip(".") + "%"


def short(value: float) -> str:
    """950, 1.2 k, 31 k, 4.5 M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size * 0.9995:
            shown = value / size
            text = f"{shown:.1f}" if shown < 9.95 else f"{shown:.0f}"
            return f"{text.removesuffix('.0')}\u00a0{letter}"
    return f"{value:.0f}"
