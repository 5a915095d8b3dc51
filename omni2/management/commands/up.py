"""`manage.py up`: everything that Omni2 needs, in one command."""

import asyncio
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from omni2 import env
from omni2.embedded import EmbeddedProblem
from omni2.supervisor.folder import DataFolder, FolderProblem
from omni2.supervisor.parts import PartFailed
from omni2.supervisor.prepare import DatabaseAway
from omni2.supervisor.story import StartProblem, Supervisor


class Command(BaseCommand):
    help = "Start PostgreSQL, Valkey, the local model, the persister and the web server, until Ctrl-C."
    requires_system_checks: list[str] = []

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument(
            "--stop-with-parent", action="store_true", help="stop when the process that started this one has ended"
        )

    def handle(self, *args: Any, **options: Any) -> None:
        supervisor = Supervisor(
            DataFolder(env.data_dir()), env.host(), env.port(), stop_with_parent=options["stop_with_parent"]
        )
        try:
            asyncio.run(supervisor.run())
        except (EmbeddedProblem, FolderProblem, PartFailed, StartProblem, DatabaseAway) as problem:
            raise CommandError(str(problem)) from problem
