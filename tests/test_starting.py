"""A web process starts its background work with its first request, whatever becomes of that."""

import os
import subprocess
import sys

import pytest

from omni2.env import BASE_DIR
from omni2.shell import ADMIN_PLACES
from tests.running import running

pytestmark = pytest.mark.slow

# The first two requests of a process come at once, and the first one's client leaves.
PROGRAM = """
import asyncio
import django
django.setup()
from django.db import connection
from flows import checkpoints
from monitoring.watchlist import watchlist
from omni2 import wiring
from omni2.database import in_database

begun = []

async def beside():
    begun.append(1)

def beats():
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM serving_processes WHERE process_id = %s", [wiring.tracker.process_id])
        return cursor.fetchone()[0]

async def main():
    first = asyncio.create_task(wiring.start(beside))
    second = asyncio.create_task(wiring.start(beside))
    await asyncio.sleep(0)
    first.cancel()
    await second
    assert await in_database(beats) == 1, "no heartbeat before the first turn"
    assert checkpoints._clock == watchlist.clock_ns, "no clock before the first turn"
    await asyncio.sleep(0)
    names = {task.get_name() for task in asyncio.all_tasks()}
    assert "heartbeat" in names, names
    await wiring.start(beside)
    assert begun == [1]
    print("started once")

asyncio.run(main())
"""


def said_by(program: str, **environment: str) -> str:
    """What these lines of Python print, in a process of their own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=BASE_DIR,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_starts_once_and_before_any_turn_even_if_the_first_client_leaves() -> None:
    with running(web=0, persisters=0) as omni2:
        environment = {**omni2.environment, "DJANGO_SETTINGS_MODULE": "omni2.settings"}
        assert said_by(PROGRAM, **environment).strip() == "started once"


@pytest.mark.parametrize("command", ["up", "persister"])
def test_who_needs_no_model_loads_none(command: str) -> None:
    """Models, tools and the admin are more memory than all the rest of a persister, and seconds of the start."""
    program = (
        "import sys, django; django.setup()\n"
        "from django.core.management import load_command_class\n"
        f"assert load_command_class('omni2', {command!r}).requires_system_checks == [], 'they load every URL'\n"
        "print(*sys.modules)"
    )
    loaded = set(said_by(program).split())
    assert f"omni2.management.commands.{command}" in loaded
    assert not loaded & {"pydantic_ai", "openai", "mcp", "fastmcp", "genai_prices", "chat.admin", "omni2.urls"}


def test_all_of_the_admin_is_checked_whatever_is_loaded_before() -> None:
    """Django runs its checks in no certain order: here the admin's come first, after one page alone is registered."""
    program = (
        "import django; django.setup()\n"
        "from chat import admin_tools\n"
        "from django.contrib import admin\n"
        "from django.core.checks import run_checks\n"
        "print(run_checks(tags=['admin']), len(admin.site._registry))"
    )
    errors, _, registered = said_by(program).strip().rpartition(" ")
    assert errors == "[]"
    assert int(registered) >= len(ADMIN_PLACES)


def test_what_a_web_process_has_loaded_is_out_of_the_collectors_sight() -> None:
    program = "import asyncio, gc; from omni2 import asgi; asyncio.run(asgi.prepare()); print(gc.get_freeze_count())"
    assert int(said_by(program, LLM_MODEL="scripted")) > 100_000
