"""What the environment says, read once and checked: the only place that looks at os.environ.

Settings, the supervisor and the container files all take their names and defaults from here.
"""

import json
import os
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from urllib.parse import quote, urlsplit

BASE_DIR = Path(__file__).resolve().parent.parent

TRUE_WORDS = {"1", "true", "yes", "on"}
FALSE_WORDS = {"0", "false", "no", "off", ""}


class EnvironmentProblem(ValueError):
    """A variable holds something that cannot be used; the message names it."""


def text(name: str, default: str = "") -> str:
    """The variable, stripped; an empty one counts as unset."""
    return os.environ.get(name, "").strip() or default


def flag(name: str, *, default: bool) -> bool:
    """True or false, in the usual words; raises EnvironmentProblem for anything else."""
    value = os.environ.get(name)
    if value is None:
        return default
    word = value.strip().lower()
    if word in TRUE_WORDS:
        return True
    if word in FALSE_WORDS:
        return False
    raise EnvironmentProblem(f"{name} must be true or false, not {value!r}")


def integer(name: str, default: int, *, low: int, high: int) -> int:
    """A whole number between low and high; raises EnvironmentProblem for anything else."""
    value = text(name, str(default))
    try:
        number = int(value)
    except ValueError:
        raise EnvironmentProblem(f"{name} must be a whole number, not {value!r}") from None
    if not low <= number <= high:
        raise EnvironmentProblem(f"{name} must be between {low} and {high}, not {number}")
    return number


def choice(name: str, default: str, options: tuple[str, ...]) -> str:
    """One of the options; raises EnvironmentProblem for anything else."""
    value = text(name, default).lower()
    if value not in options:
        raise EnvironmentProblem(f"{name} must be one of {', '.join(options)}, not {value!r}")
    return value


def data_dir() -> Path:
    """The one folder that holds everything an embedded run writes (mode 0700)."""
    folder = Path(text("OMNI2_DATA_DIR", ".omni2")).expanduser()
    return folder if folder.is_absolute() else BASE_DIR / folder


def redis_enabled() -> bool:
    """False: no Redis at all; checkpoints go straight to PostgreSQL."""
    return flag("REDIS_ENABLED", default=True)


def given_redis_url() -> str:
    """The URL of Redis the environment names, or "" (the supervisor then starts its own)."""
    url = text("REDIS_URL")
    if url:
        return url
    host = text("REDIS_HOST")
    if not host:
        return ""
    login = f":{quote(redis_password(), safe='')}@" if redis_password() else ""
    port = integer("REDIS_PORT", 6379, low=1, high=65535)
    return f"redis://{login}{host}:{port}/{redis_database()}"


SENTINEL_PORT = 26379


def redis_sentinels() -> list[tuple[str, int]]:
    """The sentinels that know which Redis is the primary, as REDIS_SENTINELS names them (`host:port,host:port`);
    empty when there are none. Raises EnvironmentProblem when it cannot be read, or another variable names a Redis."""
    value = text("REDIS_SENTINELS")
    if not value:
        return []
    for name in ("REDIS_URL", "REDIS_HOST"):
        if text(name):
            raise EnvironmentProblem(f"REDIS_SENTINELS and {name} name two ways to Redis: unset one of them")
    return [_sentinel(each.strip()) for each in value.split(",") if each.strip()]


def _sentinel(address: str) -> tuple[str, int]:
    # urlsplit knows [::1]:26379 from a name with a port
    try:
        parts = urlsplit(f"//{address}")
        host, port = parts.hostname, parts.port or SENTINEL_PORT
    except ValueError:
        host, port = None, 0
    if not host or parts.username or parts.path:
        raise EnvironmentProblem(f"REDIS_SENTINELS must be host:port,host:port,..., and {address!r} is none")
    return host, port


def redis_sentinel_master() -> str:
    """The name under which the sentinels know our Redis."""
    return text("REDIS_SENTINEL_MASTER", "mymaster")


def redis_sentinel_password() -> str:
    """What the sentinels ask for; "" when nothing."""
    return text("REDIS_SENTINEL_PASSWORD")


def redis_password() -> str:
    """What a Redis that is named by its parts, or by sentinels, asks for."""
    return text("REDIS_PASSWORD")


def redis_database() -> int:
    """The number of the database in such a Redis."""
    return integer("REDIS_DB", 0, low=0, high=1_000_000)


def redis_is_given() -> bool:
    """Whether the environment names a Redis, so that none has to be started."""
    return bool(redis_sentinels() or given_redis_url())


def redis_url() -> str:
    """The URL of Redis: the environment's, else that of the running embedded server, else ""."""
    return given_redis_url() or running().get("REDIS_URL", "")


def database_url() -> str:
    """The URL of PostgreSQL: the environment's, else that of the running embedded server, else ""."""
    return text("DATABASE_URL") or running().get("DATABASE_URL", "")


def database_pool_size() -> int:
    """How many connections to PostgreSQL one process keeps at most."""
    return integer("DATABASE_POOL_SIZE", 10, low=2, high=500)


def secret_key() -> str:
    """SECRET_KEY, or the one that was made and kept for the embedded run; "" when there is neither."""
    if text("SECRET_KEY"):
        return text("SECRET_KEY")
    try:
        return (data_dir() / "secret-key").read_text().strip()
    except OSError:
        return ""


def running() -> dict[str, str]:
    """The addresses that a running `manage.py up` has noted, so that commands in another terminal find
    its servers; empty when none runs or the folder is another user's."""
    try:
        run = json.loads((data_dir() / "run.json").read_text())
        return {name: str(run.get(name, "")) for name in ("DATABASE_URL", "REDIS_URL")}
    except (OSError, ValueError, AttributeError):
        return {}


def host() -> str:
    """Where the web server listens."""
    return text("OMNI2_HOST", "127.0.0.1")


def port() -> int:
    """The web server's port."""
    return integer("OMNI2_PORT", 8090, low=1, high=65535)


def admin_email() -> str:
    """The account that `up` makes."""
    return text("OMNI2_ADMIN_EMAIL", "admin@example.com").lower()


def local_model_answers() -> bool:
    """Whether the local model is the configured one: LLM_MODEL is `local`, and no other server is named."""
    return text("LLM_MODEL", "local") == "local" and not text("LLM_BASE_URL")


def local_model_wanted() -> bool:
    """Whether the supervisor runs the local model: it is to answer, and nobody else runs it for us."""
    return local_model_answers() and not text("OMNI2_LOCAL_MODEL_URL")


def trusted_proxies() -> list[IPv4Network | IPv6Network]:
    """Whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses and networks, as OMNI2_TRUSTED_PROXIES
    names them (`127.0.0.1,10.0.0.0/24`). Raises EnvironmentProblem for anything else."""
    found = []
    for each in text("OMNI2_TRUSTED_PROXIES").split(","):
        if not each.strip():
            continue
        try:
            found.append(ip_network(each.strip()))
        except ValueError:
            raise EnvironmentProblem(
                f"OMNI2_TRUSTED_PROXIES must be addresses and networks (127.0.0.1,10.0.0.0/24), not {each.strip()!r}"
            ) from None
    return found


def web_processes() -> int:
    """How many web processes `up` starts, on one port."""
    return integer("OMNI2_WEB_PROCESSES", 1, low=1, high=64)


def persisters() -> int:
    """How many persisters `up` starts; they share the log."""
    return integer("OMNI2_PERSISTERS", 1, low=1, high=8)
