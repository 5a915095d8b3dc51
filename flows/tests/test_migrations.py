"""The migrations, on a database that does not allow everything."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator

import psycopg
import pytest

from omni2.env import BASE_DIR

pytestmark = pytest.mark.slow

# as where only some extensions may be installed, and this one is not among them
NO_EXTENSIONS = """
CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS
    $$ BEGIN RAISE insufficient_privilege USING MESSAGE = 'extension "pg_trgm" is not allow-listed'; END $$;
CREATE EVENT TRIGGER no_extensions ON ddl_command_start WHEN TAG IN ('CREATE EXTENSION') EXECUTE FUNCTION refuse();
"""


@pytest.fixture
def strict_database() -> Iterator[str]:
    """The address of an empty database in which no extension can be made."""
    url, name = os.environ["DATABASE_URL"], f"strict_{uuid.uuid4().hex[:8]}"
    parts = psycopg.conninfo.conninfo_to_dict(url)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")
        with psycopg.connect(**{**parts, "dbname": name}, autocommit=True) as inside:
            inside.execute("CREATE SCHEMA rules")
            inside.execute("SET search_path = rules")
            for statement in NO_EXTENSIONS.split(";\nCREATE EVENT"):
                inside.execute(statement if statement.lstrip().startswith("CREATE F") else "CREATE EVENT" + statement)
        yield url.replace("/omni2?", f"/{name}?")
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def manage(url: str, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "DATABASE_URL": url}
    command = [sys.executable, "manage.py", *words]
    return subprocess.run(command, cwd=BASE_DIR, env=environment, capture_output=True, text=True, check=False)


def test_it_migrates_without_the_right_to_install_extensions_and_says_so(strict_database: str) -> None:
    done = manage(strict_database, "migrate", "--verbosity=0")
    assert done.returncode == 0, done.stderr
    assert "pg_trgm cannot be installed" in done.stderr
    assert "not allow-listed" in done.stderr
    with psycopg.connect(strict_database, options="-c search_path=omni2") as connection:
        indexes = {name for (name,) in connection.execute("SELECT indexname FROM pg_indexes WHERE tablename = 'turns'")}
    assert "idx_turns_tags" in indexes
    assert "idx_turns_question" not in indexes
    assert manage(strict_database, "sample_flows", "--checkpoints=50", "--users=3").returncode == 0
    code = "from flows.history import *; print(len(turns(TurnFilters(q='e')).rows) > 0)"
    assert manage(strict_database, "shell", "-c", code).stdout.strip().endswith("True")
