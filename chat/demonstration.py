"""Where the scripted model is that answers demonstration users, and nobody else.

`manage.py demo` starts it and leaves a small file in the data folder; while that file is there, the
running server sends the turns of demonstration users to it. They never reach another model: without
a demonstration that runs, there is none for them.
"""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from django.conf import settings

MODEL = "scripted-demo"
DOMAIN = "demonstration.example"
"""Every demonstration user's address ends so; the top-level domain .example belongs to nobody (RFC 2606)."""


@dataclass(frozen=True, slots=True)
class ModelServer:
    """Where the scripted model of a running demonstration is."""

    url: str
    key: str
    pid: int


def is_demonstration(user_id: str) -> bool:
    """Is this a demonstration user?"""
    return user_id.endswith("@" + DOMAIN)


def server_file() -> Path:
    return Path(settings.DATA_DIR) / "demo.json"


def announce(server: ModelServer) -> None:
    """Tell the running web processes where the scripted model is. Mode 0600: it holds its key."""
    file = server_file()
    file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    fresh = file.with_suffix(f".{os.getpid()}")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
        json.dump(asdict(server), out)
    fresh.replace(file)


def withdraw(server: ModelServer) -> None:
    """The demonstration is over; another one that was started since keeps its file."""
    if running_server() == server:
        server_file().unlink(missing_ok=True)


def running_server() -> ModelServer | None:
    """The scripted model of the demonstration that runs, if one does. Reads one small file."""
    try:
        server = ModelServer(**json.loads(server_file().read_text()))
    except (OSError, ValueError, TypeError):
        return None
    return server if _lives(server.pid) else None


def _lives(pid: int) -> bool:
    """A demonstration that was killed leaves its file: then its process is gone."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
