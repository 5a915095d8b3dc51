"""`manage.py reconcile`: is everything stored that was started? Exits 0 when it adds up, 1 when not, 2 when it
cannot say.
"""

import json
import re
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from flows import ledger_words as words
from flows.heartbeat import ENTRIES_KEPT
from flows.judging import Account, Sums, judge
from flows.ledger import read

LOOK_EVERY_S = 0.5
LONGEST_WAIT_S = 3600
_AGO = re.compile(r"([0-9]{1,4})([mhd])", re.ASCII)
_UNITS = {"m": timedelta(minutes=1), "h": timedelta(hours=1), "d": timedelta(days=1)}
_COLUMNS = (
    ("started", "started"),
    ("stored", "stored"),
    ("running", "running"),
    ("turns_given_up", "given up"),
    ("turns_missing", "missing"),
    ("made", "made"),
    ("rows", "stored"),
    ("on_the_way", "on way"),
    ("set_aside", "aside"),
    ("given_up", "given up"),
    ("missing", "missing"),
)


def moment(name: str, text: str, now: datetime) -> datetime:
    """`24h`, `90m`, `7d` before now, or a time in ISO 8601 (without a zone: UTC)."""
    if ago := _AGO.fullmatch(text):
        return now - int(ago[1]) * _UNITS[ago[2]]
    try:
        at = datetime.fromisoformat(text)
        return at.replace(tzinfo=UTC) if at.tzinfo is None else at.astimezone(UTC)
    except (ValueError, OverflowError):
        raise CommandError(
            f"{name}: {text!r} is no time; give 24h, 90m, 7d or one such as 2026-11-22T06:00", returncode=2
        ) from None


class Command(BaseCommand):
    help = "Compare what the web processes say they started with what is stored; exits 1 when it does not add up"

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--since", default="24h", help="24h (default), 90m, 7d, or a time in ISO 8601")
        parser.add_argument("--until", default="0m", help="the same; without it: now")
        parser.add_argument("--wait", default="30", help="seconds what is on its way may take to arrive (default 30)")
        parser.add_argument("--json", action="store_true", help="print all of it as JSON")

    def handle(self, *_: Any, **options: Any) -> None:
        now = datetime.now(UTC)
        since, until = moment("--since", options["since"], now), moment("--until", options["until"], now)
        if since >= until:
            raise CommandError("--since: the time must begin before it ends", returncode=2)
        if now - since > ENTRIES_KEPT:
            raise CommandError(f"--since: at most {ENTRIES_KEPT.days} days ago, so long it is kept", returncode=2)
        if not re.fullmatch(r"[0-9]{1,4}", options["wait"], re.ASCII) or int(options["wait"]) > LONGEST_WAIT_S:
            raise CommandError(f"--wait: a whole number of seconds from 0 to {LONGEST_WAIT_S}", returncode=2)
        account = self._settled(since, until, now, wait_s=int(options["wait"]))
        if options["json"]:
            self.stdout.write(json.dumps(words.as_json(account), indent=2))
        else:
            for line in report(account):
                self.stdout.write(line)
        if account.problems:
            sys.exit(1)

    def _settled(self, since: datetime, until: datetime, now: datetime, *, wait_s: int) -> Account:
        """The account, once nothing is on its way and every living process has spoken since the command began; or
        what there is when the time is up."""
        deadline = time.monotonic() + wait_s
        while True:
            try:
                account = judge(read(since, until))
            except Error as problem:
                raise CommandError(f"PostgreSQL does not answer: {type(problem).__name__}", returncode=2) from None
            if time.monotonic() >= deadline or _is_quiet(account, now):
                break
            time.sleep(min(LOOK_EVERY_S, max(0.0, deadline - time.monotonic())))
        if not account.road.answers:
            raise CommandError("Redis does not answer: what waits in it is not known", returncode=2)
        return account


def _is_quiet(account: Account, now: datetime) -> bool:
    unheard = any(each.is_alive and each.as_of is not None and each.as_of < now for each in account.processes)
    return not (unheard or account.road.waiting or account.total.on_the_way) and account.road.answers


def report(account: Account) -> Iterator[str]:
    """The account as lines for a terminal."""
    width = max(8, *(len(f"{getattr(account.total, name):,}") + 2 for name, _ in _COLUMNS))
    yield f"Hours (UTC) from {account.since:%Y-%m-%d %H:%M} to {account.until:%Y-%m-%d %H:%M}"
    if account.hours:
        turns, checkpoints = 5 * (width + 2), 6 * (width + 2)
        yield ""
        yield f"{'':16}{'turns':>{turns}} |{'checkpoints':>{checkpoints}}"
        yield f"{'':16}" + _row([label for _, label in _COLUMNS], width)
        for hour in account.hours:
            yield f"{hour.start:%Y-%m-%d %H:%M}" + _row(_numbers(hour.sums), width)
        yield f"{'all':16}" + _row(_numbers(account.total), width)
    yield ""
    for one in account.problems:
        named = f" Turns: {', '.join(one.turn_ids)}" if one.turn_ids else ""
        more = f" and {one.count - len(one.turn_ids):,} more" if one.turn_ids and one.count > len(one.turn_ids) else ""
        yield f"{one.hour:%Y-%m-%d %H:%M} {words.whose(one)}: {words.problem(one)}{named}{more}"
    for reason, count in account.reasons.items():
        yield f"{words.counted(count, 'checkpoint', 'checkpoints')} given up: {reason}."
    yield from words.cautions(account)
    yield f"{words.verdict(account)}: {words.sums(account.total, 'in this time')}."
    yield f"{words.checkpoints(account.total)}."


def _numbers(of: Sums) -> list[str]:
    return [f"{getattr(of, name):,}" for name, _ in _COLUMNS]


def _row(cells: list[str], width: int) -> str:
    aligned = [f"  {cell:>{width}}" for cell in cells]
    return "".join(aligned[:5]) + " |" + "".join(aligned[5:])
