"""`manage.py replay_dead_letters`: try again to store what the persister had to set aside."""

import json
import os
from pathlib import Path
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import Error
from redis.exceptions import RedisError

from flows import keys
from flows.persister import Replayed, replay_dead_letters
from flows.redis import sync_client


class Command(BaseCommand):
    help = (
        "Try again to store log entries that were set aside, the oldest first; what is stored leaves the dead-letter"
        " stream. With --move-to what is still refused leaves it too, into a file."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--limit", type=int, help="how many at most (default: all)")
        parser.add_argument(
            "--move-to", metavar="FILE", help="write what is still refused to this new file, as lines of JSON"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        limit, move_to = options["limit"], options["move_to"]
        if limit is not None and limit < 1:
            raise CommandError("--limit must be at least 1")
        if move_to and Path(move_to).exists():
            raise CommandError(f"--move-to: {move_to} is there already")
        try:
            with sync_client() as client:
                replayed = replay_dead_letters(client, limit=limit)
                if move_to and replayed.refused:
                    _write(Path(move_to), replayed)
                    client.xdel(keys.DEAD_LETTERS, *(each["letter"] for each in replayed.refused))
        except (RedisError, OSError) as problem:
            raise CommandError(f"Redis does not answer, or the file cannot be written: {problem}") from None
        except Error as problem:
            raise CommandError(f"PostgreSQL does not answer: {type(problem).__name__}") from None
        moved = f", and moved to {move_to}" if move_to and replayed.refused else ""
        gone = f"{replayed.gone} of turns that are no longer kept, " if replayed.gone else ""
        self.stdout.write(
            f"{replayed.stored} stored or known already, {gone}{len(replayed.refused)} still refused{moved}"
        )


def _write(path: Path, replayed: Replayed) -> None:
    """On disk before anything is taken out of the stream. For its owner alone: it holds what users wrote."""
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        file.writelines(json.dumps(each, ensure_ascii=False) + "\n" for each in replayed.refused)
        file.flush()
        os.fsync(file.fileno())
