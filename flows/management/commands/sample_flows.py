"""manage.py sample_flows: many made-up turns, to see how the pages and queries do with a month of traffic.

They go through flows.store like any others, in batches. All of it belongs to made-up people under
sample.example.com, and `--remove` takes it away again.
"""

import sys
import time
from argparse import ArgumentParser, ArgumentTypeError
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import connection, transaction
from django.db.models import QuerySet, Sum

from flows.models import InteractionFlow, Turn
from flows.pruning import last_border
from flows.sample_turns import DOMAIN, SampleTurns, numbered, people
from flows.store import store
from omni2.accounts.models import User

BATCH_CHECKPOINTS = 2_000
REMOVED_AT_ONCE = 1_000
SAID_EVERY_S = 2.0


def between(low: int, high: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not (text.isdecimal() and low <= int(text) <= high):
            raise ArgumentTypeError(f"must be a whole number from {low} to {high}, not {text!r}")
        return int(text)

    return number


def samples() -> QuerySet[Turn]:
    return Turn.objects.filter(user_id__endswith=f"@{DOMAIN}")


class Command(BaseCommand):
    help = f"Store made-up turns of made-up people (…@{DOMAIN}), or take them away again"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--checkpoints", type=between(1, 100_000_000), default=1_000_000, help="about so many")
        parser.add_argument("--days", type=between(1, 366), default=30, help="spread over the last so many days")
        parser.add_argument("--users", type=between(1, 100_000), default=200)
        parser.add_argument("--seed", type=int, default=1, help="the same seed makes the same turns")
        parser.add_argument("--yes", action="store_true", help="also into a database that holds turns of real people")
        parser.add_argument("--remove", action="store_true", help="take all of it away again")

    def handle(self, *_: Any, **options: Any) -> None:
        if options["remove"]:
            return self._remove()
        if not options["yes"] and Turn.objects.exclude(user_id__endswith=f"@{DOMAIN}").exists():
            raise CommandError(
                "This database holds turns of other people. The made-up ones would stand among them, in every list and "
                "every figure, until `sample_flows --remove`. If that is what you want, say --yes."
            )
        self._make(**{name: options[name] for name in ("checkpoints", "days", "users", "seed")})
        return None

    def _make(self, *, checkpoints: int, days: int, users: int, seed: int) -> None:
        since = datetime.now(UTC).replace(minute=0, second=0, microsecond=0) - timedelta(days=days)
        turns = SampleTurns(seed=seed, since=since, days=days, users=users, checkpoints=checkpoints)
        if began := Turn.objects.filter(turn_id=turns.turn_id(0)).values_list("started_at", flat=True).first():
            # an earlier run of this seed: goes on with the days of that one
            turns = SampleTurns(seed=seed, since=began, days=days, users=users, checkpoints=checkpoints)
        if (border := last_border()) is not None and border > turns.since:
            raise CommandError(f"--days: turns from before {border:%Y-%m-%d %H:%M} UTC are no longer kept here")
        self._make_people(users)
        first = self._first_missing(turns, checkpoints)
        stored = samples().aggregate(stored=Sum("checkpoints"))["stored"] or 0
        progress = Progress("checkpoints", checkpoints, stored)
        batch: list[bytes] = []
        for _, documents in numbered(turns, first):
            batch += documents
            if len(batch) >= BATCH_CHECKPOINTS or progress.done + len(batch) >= checkpoints:
                progress.add(store(batch))
                batch = []
            if progress.done >= checkpoints:
                break
        self._finish(f"{progress.done} checkpoints of {samples().count()} made-up turns are stored")

    @staticmethod
    def _make_people(users: int) -> None:
        made = [User(email=each.user_id, name=each.name, is_active=False, password="!") for each in people(users)]  # noqa: S106
        User.objects.bulk_create(made, ignore_conflicts=True, batch_size=1_000)

    @staticmethod
    def _first_missing(turns: SampleTurns, checkpoints: int) -> int:
        """The number of the first turn that is not stored: they were stored in order. Some twenty queries."""
        low, high = 0, checkpoints + 1
        while low < high:
            middle = (low + high) // 2
            if Turn.objects.filter(turn_id=turns.turn_id(middle)).exists():
                low = middle + 1
            else:
                high = middle
        # the last one may have come in part
        return max(0, low - 1)

    def _remove(self) -> None:
        progress = Progress("turns", samples().count(), 0)
        while True:
            ids = list(samples().order_by().values_list("turn_id", flat=True)[:REMOVED_AT_ONCE])
            if not ids:
                break
            with transaction.atomic():
                # a turn's rows in one statement: they point at one another
                InteractionFlow.objects.filter(turn_id__in=ids)._raw_delete(using="default")
                progress.add(samples().filter(turn_id__in=ids).delete()[0])
        accounts = User.objects.filter(email__endswith=f"@{DOMAIN}", is_active=False, last_login=None).delete()[0]
        self._finish(f"{progress.done} made-up turns and {accounts} made-up accounts are gone")

    def _finish(self, said: str) -> None:
        with connection.cursor() as cursor:
            for table in ("interaction_flows", "turns"):
                cursor.execute(f"ANALYZE {table}")
        self.stdout.write(self.style.SUCCESS(said))


class Progress:
    """How far it is, on standard error, every two seconds."""

    def __init__(self, what: str, of: int, done: int) -> None:
        self.what, self.of, self.done = what, of, done
        self.began, self.said = time.monotonic(), 0.0
        self.before = done

    def add(self, count: int) -> None:
        self.done += count
        now = time.monotonic()
        if now - self.said >= SAID_EVERY_S:
            self.said = now
            rate = (self.done - self.before) / max(now - self.began, 0.001)
            sys.stderr.write(f"{self.done:,} of {self.of:,} {self.what}, {rate:,.0f}/s\n")
            sys.stderr.flush()
