"""Everything through a real PgBouncer in transaction mode, on fewer connections than there are clients."""

import asyncio
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from omni2 import embedded
from omni2.env import BASE_DIR
from tests.faults.rig import Plan, Rig, model_process
from tests.faults.scenario import strange
from tests.running import Process, Running, eventually, free_port, running

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not shutil.which("pgbouncer"), reason="PgBouncer is not installed (Debian: apt install pgbouncer)"
    ),
]

EXAMPLE = BASE_DIR / "deploy" / "pgbouncer.ini"
CONNECTIONS = 4


class PgBouncer:
    """In front of the database of a started product."""

    def __init__(self, omni2: Running) -> None:
        self.port = free_port()
        self.folder = omni2.folder / "pgbouncer"
        self.folder.mkdir()
        server = conninfo_to_dict(omni2.database_url)
        self.user = str(server["user"])
        (self.folder / "users").write_text(f'"{self.user}" ""\n')
        file = self.folder / "pgbouncer.ini"
        file.write_text(self._configuration(str(server["dbname"]), unquote(str(server["host"])), str(server["port"])))
        # it refuses to run as root
        words = [*embedded.as_unprivileged(), "pgbouncer", str(file)]
        self.process = Process("pgbouncer", words, os.environ, self.folder / "log")
        eventually(self._answers, "PgBouncer answers")

    def url(self, name: str) -> str:
        return f"postgresql://{self.user}@127.0.0.1:{self.port}/{name}"

    def _answers(self) -> bool:
        assert self.process.alive, self.process.output
        try:
            psycopg.connect(self.url("omni2"), connect_timeout=2).close()
        except psycopg.OperationalError:
            return False
        return True

    def _configuration(self, name: str, host: str, port: str) -> str:
        """The example, with our server, port, users and number of connections."""
        text = EXAMPLE.read_text()
        for old, new in (
            ("host=127.0.0.1 port=5432 dbname=omni2 ", f"host={host} port={port} dbname={name} "),
            ("listen_port = 6432", f"listen_port = {self.port}\nunix_socket_dir ="),
            ("auth_type = scram-sha-256", "auth_type = trust"),
            ("/etc/pgbouncer/userlist.txt", str(self.folder / "users")),
            ("default_pool_size = 12", f"default_pool_size = {CONNECTIONS}"),
        ):
            assert old in text, f"the example has {old}"
            text = text.replace(old, new)
        return text


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    plan = Plan(chats=20, watchers=3)
    model = model_process(Path(os.environ["OMNI2_TEST_FOLDER"]))
    with model as (url, notes), running(llm_base_url=url, web=0, persisters=0) as omni2:
        pooler = PgBouncer(omni2)
        for _ in range(2):
            omni2.start_web(DATABASE_URL=pooler.url("omni2"))
        omni2.start_persister(DATABASE_URL=pooler.url("omni2_unhurried"))
        omni2.wait_until_ready()
        yield Rig(omni2, plan, notes)
        for process in [*omni2.web, *omni2.persisters]:
            process.end()
        pooler.process.end()


async def test_a_load_adds_up_on_fewer_connections_than_clients(rig: Rig) -> None:
    """Chats, charges, watchers, the persister and the ledger, each of them from connection to connection."""
    async with rig.round() as round_:
        await round_.pause(4)
        used = await asyncio.to_thread(
            rig.omni2.sql, "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        )
    outcome = await round_.reckon()
    assert outcome.problems + strange(round_.told) == []
    assert used[0][0] <= CONNECTIONS * 2 + 1, "ours is among them"


async def test_what_is_said_at_the_connection_holds_behind_it(rig: Rig) -> None:
    web, persister = rig.omni2.web[0].environment["DATABASE_URL"], rig.omni2.persisters[0].environment["DATABASE_URL"]
    for url, limit in ((web, "1min"), (persister, "0")):
        with psycopg.connect(url, autocommit=True) as connection:
            shown = [
                connection.execute(f"SHOW {each}").fetchone()[0] for each in ("search_path", "jit", "statement_timeout")
            ]
        assert shown == ["omni2", "off", limit]
    assert rig.omni2.sql("SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == [(0,)]
