"""PostgreSQL and Valkey for one section, with the settings `make run` starts them with."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from omni2 import embedded


@contextmanager
def own_servers(*, valkey: bool = True, postgres: bool = True) -> Iterator[Path]:
    """Both started, Django set up and migrated on them; the folder they are in. Gone with the `with`."""
    folder = Path(tempfile.mkdtemp(prefix="o2b-"))
    folder.chmod(0o755)
    os.environ.update(
        SECRET_KEY="only-for-this-benchmark",
        DJANGO_SETTINGS_MODULE="omni2.settings",
        OMNI2_DATA_DIR=str(folder / "data"),
    )
    started = []
    try:
        if postgres:
            started.append((embedded.start_postgres(folder / "pg", folder / "s"), signal.SIGINT))
            os.environ["DATABASE_URL"] = embedded.postgres_url(folder / "s")
        if valkey:
            started.append((embedded.start_valkey(folder / "vk", folder / "s" / "v.sock"), signal.SIGTERM))
            os.environ["REDIS_URL"] = embedded.valkey_url(folder / "s" / "v.sock")
        _set_up(migrate=postgres)
        yield folder
    finally:
        # a pool of this process still holds connections: PostgreSQL's fast way (SIGINT) ends them
        for server, number in started:
            embedded.stop(server, number=number)
        shutil.rmtree(folder, ignore_errors=True)


def _set_up(*, migrate: bool) -> None:
    import django
    from django.core.management import call_command

    django.setup()
    if migrate:
        call_command("migrate", verbosity=0)


def conninfo() -> str:
    """The database of this section, for a pool of its own."""
    url = os.environ["DATABASE_URL"]
    return f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Domni2"
