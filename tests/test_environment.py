"""The variables of the environment: their names and defaults, and what is said when one cannot be used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from omni2 import env

DEFAULTS = """
import django; django.setup()
from django.conf import settings
from omni2 import env
print(env.host(), env.port(), env.data_dir().relative_to(env.BASE_DIR), env.admin_email(), env.redis_enabled())
print(settings.LLM_MODEL, repr(settings.LLM_BASE_URL + settings.LLM_API_KEY), settings.CAPTURE, settings.USAGE_TZ)
print(settings.NOTICE, settings.DEBUG, settings.LOG_FORMAT, settings.ALLOWED_HOSTS[:2])
"""


def python(code: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A fresh Python that knows these variables and no other of ours."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**kept, "DJANGO_SETTINGS_MODULE": "omni2.settings", **variables},
        cwd=env.BASE_DIR,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def test_its_defaults_are_those_of_the_contract() -> None:
    done = python(DEFAULTS)
    assert done.stdout.splitlines() == [
        "127.0.0.1 8090 .omni2 admin@example.com True",
        "local '' preview UTC",
        "False False text ['localhost', '127.0.0.1']",
    ], done.stderr


@pytest.mark.parametrize(
    ("given", "url"),
    [
        ({}, ""),
        ({"REDIS_HOST": "cache"}, "redis://cache:6379/0"),
        (
            {"REDIS_HOST": "cache", "REDIS_PORT": "6380", "REDIS_DB": "3", "REDIS_PASSWORD": "p@ss:/word"},
            "redis://:p%40ss%3A%2Fword@cache:6380/3",
        ),
        ({"REDIS_HOST": "cache", "REDIS_URL": "rediss://elsewhere:1/2"}, "rediss://elsewhere:1/2"),
    ],
)
def test_redis_is_named_by_its_url_or_by_its_parts(
    given: dict[str, str], url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REDIS_URL", "REDIS_HOST", "REDIS_PORT", "REDIS_DB", "REDIS_PASSWORD"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    assert env.given_redis_url() == url


@pytest.mark.parametrize(
    ("value", "sentinels"),
    [
        ("", []),
        ("one", [("one", 26379)]),
        ("one:1, two:2,three", [("one", 1), ("two", 2), ("three", 26379)]),
        ("[::1]:5,10.0.0.7", [("::1", 5), ("10.0.0.7", 26379)]),
    ],
)
def test_sentinels_are_named_one_after_the_other(
    value: str, sentinels: list[tuple[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("REDIS_URL", "REDIS_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("REDIS_SENTINELS", value)
    assert env.redis_sentinels() == sentinels
    assert env.redis_is_given() == bool(sentinels)


@pytest.mark.parametrize("name", ["REDIS_URL", "REDIS_HOST"])
def test_two_ways_to_redis_are_refused(name: str) -> None:
    done = python("import django; django.setup()", REDIS_SENTINELS="one", **{name: "redis://two"})
    assert done.stderr.splitlines()[-1].endswith(
        f"REDIS_SENTINELS and {name} name two ways to Redis: unset one of them"
    )


def test_an_admin_is_named_in_any_case(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMNI2_ADMIN_EMAIL", "Ada@Example.COM")
    assert env.admin_email() == "ada@example.com"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("OMNI2_CAPTURE", "some"),
        ("OMNI2_USAGE_TZ", "Mars/Olympus"),
        ("OMNI2_NOTICE", "perhaps"),
        ("DEBUG", "2"),
        ("REDIS_ENABLED", "perhaps"),
        ("LOG_FORMAT", "xml"),
        ("DATABASE_POOL_SIZE", "1"),
        ("OMNI2_TRUSTED_PROXIES", "nginx"),
        ("OMNI2_TRUSTED_PROXIES", "10.0.0.1/8"),
        ("REDIS_SENTINELS", "one:two"),
        ("REDIS_SENTINELS", "redis://one:26379"),
    ],
)
def test_what_cannot_be_used_is_named_at_the_start(name: str, value: str) -> None:
    done = python("import django; django.setup()", **{name: value})
    assert done.returncode != 0
    assert name in done.stderr.splitlines()[-1]


def test_a_server_needs_a_key_of_its_own(tmp_path: Path) -> None:
    """Made and kept for the embedded run; elsewhere it must be set."""
    serve = "import omni2.asgi; print('serves')"
    without = python(serve, OMNI2_DATA_DIR=str(tmp_path))
    assert without.returncode != 0
    assert "SECRET_KEY is not set" in without.stderr
    assert "serves" in python(serve, OMNI2_DATA_DIR=str(tmp_path), SECRET_KEY="x" * 50).stdout
    (tmp_path / "secret-key").write_text("kept" * 20)
    assert "serves" in python(serve, OMNI2_DATA_DIR=str(tmp_path)).stdout
