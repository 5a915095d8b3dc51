"""`manage.py prune_flows`: deletes turns that are older than they are to be kept. Exits 0 when all of it is done, 1
when it was stopped before, 2 when it cannot begin or go on.
"""

import re
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from types import FrameType
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error

from flows import ledger_words as words
from flows.pruning import BATCH_CHECKPOINTS, LEAST_AGE, Batch, Old, Pruner, border_before, border_of_days, count_old
from omni2 import upkeep

BUSY_PAUSE_S = 0.2
SAID_EVERY_S = 5.0
DRAWN_EVERY_S = 0.2
MOST_BATCH = 50_000
_AGE = re.compile(r"([0-9]{1,5})([hdw])", re.ASCII)
_UNITS = {"h": timedelta(hours=1), "d": timedelta(days=1), "w": timedelta(weeks=1)}


def age(text: str) -> timedelta:
    """`90d`, `12h`, `4w`."""
    found = _AGE.fullmatch(text)
    if found is None:
        raise CommandError(
            f"--older-than: {text!r} is no age; give hours, days or weeks as in 12h, 90d, 4w", returncode=2
        )
    given = int(found[1]) * _UNITS[found[2]]
    if given < LEAST_AGE:
        raise CommandError(f"--older-than: {text!r} is too young; at least 1h", returncode=2)
    if given > timedelta(days=36_500):
        raise CommandError(f"--older-than: {text!r} is too old; at most 36500d", returncode=2)
    return given


def batch_size(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,6}", text, re.ASCII) or not 1 <= int(text) <= MOST_BATCH:
        raise CommandError(f"--batch: a whole number from 1 to {MOST_BATCH}, not {text!r}", returncode=2)
    return int(text)


class Command(BaseCommand):
    help = (
        "Delete whole turns that ended longer ago than they are to be kept, in small batches that keep nobody waiting. "
        "What the persister does once a day by itself."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--older-than", help="an age as 90d, 12h or 4w; without it the setting `retention`")
        parser.add_argument("--dry-run", action="store_true", help="only count")
        parser.add_argument(
            "--batch", default=str(BATCH_CHECKPOINTS), help=f"checkpoints at once (default {BATCH_CHECKPOINTS})"
        )

    def handle(self, *_: Any, **options: Any) -> None:
        batch = batch_size(options["batch"])
        given = None if options["older_than"] is None else age(options["older_than"])
        try:
            border = border_before(given) if given else self._border_of_the_setting()
            old = count_old(border)
            self.stdout.write(f"Before {border:%Y-%m-%d %H:%M:%S} UTC ended {_counted(old.turns, old.checkpoints)}.")
            if not options["dry_run"]:
                self._prune(upkeep.pruner(border, batch=batch), old)
        except Error as problem:
            raise CommandError(f"PostgreSQL does not answer: {type(problem).__name__}", returncode=2) from None

    @staticmethod
    def _border_of_the_setting() -> datetime:
        days = upkeep.days_kept()
        if not days:
            raise CommandError(
                "The setting `retention` keeps turns for ever; name an age with --older-than, as in 90d", returncode=2
            )
        return border_of_days(days)

    def _prune(self, pruner: Pruner, old: Old) -> None:
        began, stop, progress = time.monotonic(), Stop(), Progress(old)
        with stop:
            for done in pruner.batches():
                progress.add(done)
                if stop.asked:
                    break
                if done.busy:
                    time.sleep(BUSY_PAUSE_S)
        progress.end()
        total = pruner.total
        said = f"Deleted {_counted(total.turns, total.checkpoints)} in {time.monotonic() - began:.1f} s."
        if total.more:
            said += f" With them went {total.more:,} records that were kept beside them."
        if total.in_use:
            said += f" {total.in_use:,} were in use and are left for another time."
        self.stdout.write(said)
        if stop.asked:
            self.stdout.write("Stopped before the end: what is left is whole, and the next run goes on with it.")
            sys.exit(1)


def _counted(turns: int, checkpoints: int) -> str:
    return f"{words.counted(turns, 'turn', 'turns')} with {words.counted(checkpoints, 'checkpoint', 'checkpoints')}"


class Stop:
    """SIGINT and SIGTERM end the run after the batch in hand; a second one ends it at once, and that batch with it."""

    def __init__(self) -> None:
        self.asked = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "Stop":
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True


class Progress:
    """How far it is, on standard error: one line that is drawn over on a terminal, else a line every few seconds."""

    def __init__(self, old: Old) -> None:
        self.old = old
        self.done = Batch()
        self.began = self.said = time.monotonic()
        self.drawn = False

    def add(self, batch: Batch) -> None:
        self.done.turns += batch.turns
        self.done.checkpoints += batch.checkpoints
        now = time.monotonic()
        if now - self.said < (DRAWN_EVERY_S if sys.stderr.isatty() else SAID_EVERY_S):
            return
        self.said = now
        rate = self.done.checkpoints / max(now - self.began, 0.001)
        line = (
            f"{datetime.now(UTC):%H:%M:%S} {self.done.turns:,} of {self.old.turns:,} turns, "
            f"{self.done.checkpoints:,} of {self.old.checkpoints:,} checkpoints, {rate:,.0f}/s"
        )
        self.drawn = sys.stderr.isatty()
        sys.stderr.write(f"\r{line}\033[K" if self.drawn else f"{line}\n")
        sys.stderr.flush()

    def end(self) -> None:
        if self.drawn:
            sys.stderr.write("\n")
