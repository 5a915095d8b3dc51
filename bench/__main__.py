"""`python -m bench`: starts servers of its own, runs every comparison, prints both sides."""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from omni2 import embedded


def main() -> int:
    folder = Path(tempfile.mkdtemp(prefix="o2b-"))
    folder.chmod(0o755)
    servers = [
        embedded.start_postgres(folder / "pg", folder / "s"),
        embedded.start_valkey(folder / "vk", folder / "s" / "v.sock"),
    ]
    url = f"postgresql://omni2@/omni2?host={folder / 's'}"
    os.environ.update(
        DATABASE_URL=url,
        REDIS_URL=f"unix://{folder / 's' / 'v.sock'}",
        SECRET_KEY="only-for-this-benchmark",
        DJANGO_SETTINGS_MODULE="omni2.settings",
        OMNI2_DATA_DIR=str(folder / "data"),
    )
    try:
        return run(url)
    finally:
        # a pool of this process still holds connections: PostgreSQL's fast way ends them
        embedded.stop(servers[0], number=signal.SIGINT)
        embedded.stop(servers[1])
        shutil.rmtree(folder, ignore_errors=True)


def run(url: str) -> int:
    import asyncio

    import django
    from django.conf import settings
    from django.core.management import call_command

    django.setup()
    settings.BENCH_DATABASE_URL = url
    call_command("migrate", verbosity=0)
    from bench import sides, tracking

    rows = asyncio.run(tracking.run())
    sides.show(rows)
    return 0 if all(row.met for row in rows) else 1


if __name__ == "__main__":
    sys.exit(main())
