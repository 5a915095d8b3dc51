"""manage.py tool_server NAME (--url URL | --program COMMAND [ARGUMENT]...): add a tool server, or change it.

What the admin pages do, for scripts: the row is kept, then the server is asked for its tools, which are printed. Ends
with 1 when it does not answer; the row is kept all the same. Headers and environment are secrets and have no place on
a command line: they are entered in the admin.
"""

import argparse
import asyncio
import sys
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError, CommandParser

from chat.admin_tools import ToolServerForm, note_check
from chat.models import ToolServer, Transport
from chat.tool_rows import server_rows
from chat.tool_servers import check
from monitoring import control


class Command(BaseCommand):
    """Add or change a tool server, and list its tools."""

    help = "Add a tool server whose tools models may use, or change it, and list its tools."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("name", help="stands before the names of its tools")
        parser.add_argument("--url", default="", help="of a server over streamable HTTP")
        parser.add_argument("--approve", action="append", default=[], metavar="TOOL", help="waits for the user's yes")
        parser.add_argument(
            "--program", nargs=argparse.REMAINDER, default=[], help="the command and its arguments; last"
        )

    def handle(self, *_: Any, name: str, url: str, approve: list[str], program: list[str], **__: Any) -> None:
        if bool(url) == bool(program):
            raise CommandError("Say either --url or --program.")
        row = ToolServer.objects.filter(name=name).first() or ToolServer(name=name)
        form = ToolServerForm(
            {
                "name": name,
                "transport": Transport.HTTP if url else Transport.STDIO,
                "url": url,
                "command": program[0] if program else "",
                "arguments": "\n".join(program[1:]),
                "timeout_s": row.timeout_s,
                "enabled": True,
                "groups": list(row.groups.all()) if row.pk else [],
                "users": list(row.users.all()) if row.pk else [],
                "allowed_tools": row.allowed_tools,
            },
            instance=row,
        )
        # whoever can run this can run any program
        form.may_run_programs = True
        if not form.is_valid():
            raise CommandError("; ".join(f"{field}: {' '.join(map(str, said))}" for field, said in form.errors.items()))
        row = form.save(commit=False)
        row.approved_tools = approve
        try:
            row.full_clean()
        except ValidationError as problem:
            raise CommandError("; ".join(problem.messages)) from None
        row.save()
        form.save_m2m()
        checked = asyncio.run(check(server_rows.read()[row.pk]))
        note_check(row.pk, checked)
        control.announce("tool servers")
        if checked.problem:
            self.stderr.write(f"{name} does not answer: {checked.problem}")
            sys.exit(1)
        for tool in checked.tools:
            self.stdout.write(f"{name}/{tool.name}: {' '.join(tool.description.split())}")
