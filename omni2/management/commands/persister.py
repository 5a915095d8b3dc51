"""`manage.py persister`: moves checkpoints from the log to PostgreSQL until it is told to stop."""

import signal
from typing import Any

from django.core.management.base import BaseCommand

from omni2 import upkeep
from omni2.lasting import keep_for_good


class Command(BaseCommand):
    help = "Move checkpoints from Redis to PostgreSQL, and end the turns of dead web processes. Runs until SIGTERM."
    # they load every URL, with models, tools and the admin behind them: `manage.py check` and the tests run them
    requires_system_checks: list[str] = []

    def handle(self, *args: Any, **options: Any) -> None:
        worker = upkeep.persister()
        signal.signal(signal.SIGTERM, worker.stop)
        signal.signal(signal.SIGINT, worker.stop)
        keep_for_good()
        worker.run()
