"""`manage.py replay_dead_letters`: try again to store what the persister had to set aside."""

from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from redis.exceptions import RedisError

from flows.persister import replay_dead_letters
from flows.redis import sync_client


class Command(BaseCommand):
    help = "Try again to store log entries that were set aside; what is stored leaves the dead-letter stream."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--limit", type=int, default=1000, help="how many at most (default 1000)")

    def handle(self, *args: Any, **options: Any) -> None:
        if options["limit"] < 1:
            raise CommandError("--limit must be at least 1")
        try:
            client = sync_client()
            stored, refused = replay_dead_letters(client, limit=options["limit"])
            client.close()
        except (RedisError, OSError) as problem:
            raise CommandError(f"Redis does not answer: {type(problem).__name__}") from None
        self.stdout.write(f"{stored} stored or known already, {refused} still refused")
