"""The containers run what `make run` runs: the same commands, ports, options and variables.

They cannot be started where these tests run, so the words are held against each other.
"""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from omni2 import embedded, env, localmodel
from omni2.env import BASE_DIR
from omni2.supervisor import commands

COMPOSE = yaml.safe_load((BASE_DIR / "docker-compose.yml").read_text())
DOCKERFILE = (BASE_DIR / "Dockerfile").read_text()
SERVICES = COMPOSE["services"]
ENVIRONMENT = COMPOSE["x-omni2"]["environment"]
PORT = 8090

# what only the embedded run on one's own machine needs
NOT_IN_CONTAINERS = {
    *("OMNI2_DATA_DIR", "OMNI2_HOST", "OMNI2_PORT", "REDIS_URL", "STATIC_ROOT"),
    # there each is a container
    *("OMNI2_WEB_PROCESSES", "OMNI2_PERSISTERS"),
}


def read_by_omni2() -> set[str]:
    """Every variable that a module of the product reads through omni2.env."""
    pattern = re.compile(r'\b(?:env\.)?(?:text|flag|integer|choice)\(\s*"([A-Z][A-Z0-9_]+)"')
    folders = [BASE_DIR / name for name in ("omni2", "chat", "flows", "monitoring")]
    files = [file for folder in folders for file in folder.rglob("*.py") if "tests" not in file.parts]
    found = {name for file in files for name in pattern.findall(file.read_text())}
    return found | {localmodel.HOST_VARIABLE, localmodel.PORT_VARIABLE, localmodel.KEY_VARIABLE}


def documented() -> dict[str, str]:
    """The settings table of docs/operations.md: variable → default."""
    text = (BASE_DIR / "docs" / "operations.md").read_text()
    table = text.partition("## Settings")[2].partition("\n## ")[0]
    rows = [line.split("|")[1:3] for line in table.splitlines() if line.startswith("| `")]
    return {name: default.strip() for names, default in rows for name in re.findall(r"`([A-Z][A-Z0-9_]+)`", names)}


def used_in(value: str) -> set[str]:
    return set(re.findall(r"\$\{([A-Z0-9_]+)", value))


def python_words(service: str) -> tuple[str, ...]:
    first, *words = SERVICES[service]["command"]
    assert first == "python"
    return tuple(words)


def test_it_has_the_services_of_the_original_and_what_they_need() -> None:
    assert {"postgres", "redis", "omni2", "persister"} <= SERVICES.keys()
    needed = SERVICES["omni2"]["depends_on"]
    assert {"redis", "persister", "prepare"} <= needed.keys()
    assert SERVICES["prepare"]["depends_on"] == {"postgres": {"condition": "service_healthy"}}
    assert all(service["networks"] == ["redis-net"] for service in SERVICES.values())
    assert COMPOSE["networks"]["redis-net"]["name"] == "redis-net"


def test_its_commands_are_those_of_make_run() -> None:
    assert python_words("omni2") == commands.web("0.0.0.0", PORT)
    assert python_words("persister") == commands.PERSISTER
    assert python_words("model") == commands.LOCAL_MODEL
    assert python_words("prepare") == commands.PREPARE
    command = next(line for line in DOCKERFILE.splitlines() if line.startswith("CMD "))
    assert tuple(json.loads(command[4:])) == ("python", *commands.web("0.0.0.0", PORT))


def test_its_ports_are_those_of_make_run_and_open_to_this_machine_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMNI2_PORT", raising=False)
    assert env.port() == PORT
    assert SERVICES["omni2"]["ports"] == [f"127.0.0.1:${{OMNI2_PORT:-{PORT}}}:{PORT}"]
    assert f"EXPOSE {PORT}" in DOCKERFILE
    assert [name for name, service in SERVICES.items() if "ports" in service] == ["omni2"]


def test_its_redis_keeps_what_the_embedded_one_keeps() -> None:
    program, *words = SERVICES["redis"]["command"]
    assert program == "valkey-server"
    options = dict(zip((word.removeprefix("--") for word in words[::2]), words[1::2], strict=True))
    assert options.pop("requirepass") == "${REDIS_PASSWORD:?}"
    assert options == embedded.VALKEY_KEEPS
    assert options["appendonly"] == "yes"


def test_its_postgresql_is_of_the_version_and_locale_of_the_embedded_one() -> None:
    assert SERVICES["postgres"]["image"] == f"postgres:{embedded.postgres_major()}"
    assert SERVICES["postgres"]["environment"]["POSTGRES_INITDB_ARGS"] == " ".join(embedded.LOCALE_WORDS)


def test_it_has_health_checks_that_ask() -> None:
    for name in ("postgres", "redis", "omni2", "persister"):
        assert SERVICES[name]["healthcheck"]["test"][0] == "CMD", name
    assert tuple(SERVICES["persister"]["healthcheck"]["test"][2:]) == commands.PERSISTER_ALIVE
    assert f":{PORT}/healthz" in SERVICES["omni2"]["healthcheck"]["test"][-1]


def test_its_secrets_come_from_the_environment_and_must_be_set() -> None:
    assert ENVIRONMENT["SECRET_KEY"] == "${SECRET_KEY:?}"
    assert ENVIRONMENT["REDIS_PASSWORD"] == "${REDIS_PASSWORD:?}"
    assert "${POSTGRES_PASSWORD:?}" in ENVIRONMENT["DATABASE_URL"]
    assert SERVICES["postgres"]["environment"]["POSTGRES_PASSWORD"] == "${POSTGRES_PASSWORD:?}"


def test_every_variable_of_omni2_reaches_its_containers() -> None:
    given = ENVIRONMENT.keys() | SERVICES["prepare"]["environment"].keys() | SERVICES["model"]["environment"].keys()
    assert read_by_omni2() - NOT_IN_CONTAINERS - given == set()
    assert given - read_by_omni2() == set(), "a container is told what nobody reads"


def test_each_optional_variable_has_the_default_of_make_run() -> None:
    defaults = documented()
    for name, value in ENVIRONMENT.items():
        match = re.fullmatch(r"\$\{" + name + r":-(.*)\}", value)
        if match and name not in {"LOG_FORMAT", "OMNI2_LOCAL_MODEL_KEY"}:  # machines read the containers' lines
            default = match.group(1)
            words = defaults[name].strip("`").lower()
            assert words == default.lower() or (default in {"", "false"} and words in {"none", "off", "false"}), name


def test_the_settings_table_names_every_variable() -> None:
    internal = {localmodel.HOST_VARIABLE, localmodel.PORT_VARIABLE}
    assert read_by_omni2() - internal - documented().keys() == set()
    others = {"POSTGRES_PASSWORD"}
    assert documented().keys() - read_by_omni2() - others == set()


def test_the_image_holds_the_local_model_and_no_secrets() -> None:
    assert "requirements-model.txt" in DOCKERFILE
    assert "USER omni2" in DOCKERFILE
    ignored = (BASE_DIR / ".dockerignore").read_text().split()
    assert {".git", ".env", ".omni2", ".venv"} <= set(ignored)


def test_no_line_of_the_containers_names_a_file_that_is_not_there() -> None:
    for line in DOCKERFILE.splitlines():
        if line.startswith("COPY ") and not line.startswith("COPY ."):
            for name in shlex.split(line)[1:-1]:
                assert (BASE_DIR / name).exists(), name
    assert Path(BASE_DIR / "manage.py").exists()
