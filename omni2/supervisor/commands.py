"""The command line of each part. `make run` and the containers take them from here, and so do the tests."""

import os
import sys
from collections.abc import Mapping

from omni2.env import BASE_DIR

# more than Twisted's 50: 400 clients that connect at once would else wait seconds
BACKLOG = 4096

PERSISTER = ("manage.py", "persister")
PERSISTER_ALIVE = ("-m", "omni2.supervisor.alive")
MIGRATE = ("manage.py", "migrate", "--noinput")
PREPARE = ("manage.py", "prepare")
LOCAL_MODEL = ("-m", "omni2.localmodel")


def web(host: str, port: int) -> tuple[str, ...]:
    """Daphne; behind it no reloader, no access log (Omni2's own log lines say what matters)."""
    # a colon separates the fields of a Twisted endpoint, so those of an IPv6 address are escaped
    return _daphne(f"tcp:port={port}:interface={host.replace(':', chr(92) + ':')}:backlog={BACKLOG}")


def web_on_shared(listener: int) -> tuple[str, ...]:
    """The same on a socket that several processes listen on: it is inherited under this number."""
    return _daphne(f"fd:fileno={listener}")


def _daphne(endpoint: str) -> tuple[str, ...]:
    return ("-m", "daphne", "-v", "0", "-e", endpoint, "omni2.asgi:application")


def web_on_uvicorn(host: str, port: int) -> tuple[str, ...]:
    """The same application on uvicorn, which the end-to-end tests also run on."""
    return (
        *("-m", "uvicorn", "--host", host, "--port", str(port), "--backlog", str(BACKLOG)),
        *("--log-level", "warning", "--timeout-graceful-shutdown", "2", "omni2.asgi:application"),
    )


def with_python(words: tuple[str, ...]) -> list[str]:
    """As a command of this very Python."""
    return [sys.executable, *words]


def part_environment(values: Mapping[str, str]) -> dict[str, str]:
    """Our own environment (without the admin's password) and these values, for a part run in BASE_DIR."""
    ours = {name: value for name, value in os.environ.items() if name != "OMNI2_ADMIN_PASSWORD"}
    return {**ours, "PYTHONUNBUFFERED": "1", "PYTHONPATH": str(BASE_DIR), **values}
