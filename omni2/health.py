"""`/healthz`: this process is alive. `/readyz`: it can do its work, and if not, what is missing.

For probes and load balancers: no sign-in, no user data, one round trip to each server.
"""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from django.conf import settings
from django.db import DatabaseError, connection
from django.http import HttpRequest, JsonResponse
from django.urls import path
from django.views.decorators.cache import never_cache
from redis import RedisError

from flows import retention as kept
from flows.redis import get_redis
from flows.status import LAG_LIMIT_S, PERSISTER_SILENT_S, persister_status, tracking_status
from monitoring.relay import status as relay_status
from omni2.database import in_database

# a probe is answered long before its usual limit of some seconds, however long a server hangs
CHECK_LIMIT_S = 2.0


def healthz(request: HttpRequest) -> JsonResponse:
    """Always 200 while the process answers; asks nobody."""
    return JsonResponse({"status": "ok"})


@never_cache
async def readyz(request: HttpRequest) -> JsonResponse:
    """200 when all is ready (or degraded, which says how), else 503; `checks` names each part."""
    names = list(CHECKS)
    answers = await asyncio.gather(*(_limited(CHECKS[name]) for name in names))
    checks = dict(zip(names, answers, strict=True))
    failed = [name for name, check in checks.items() if check["status"] == "failed"]
    degraded = [name for name, check in checks.items() if check["status"] == "degraded"]
    status = "not ready" if failed else "degraded" if degraded else "ready"
    body = {"status": status, "not_ready": failed, "degraded": degraded, "checks": checks}
    return JsonResponse(body, status=503 if failed else 200)


async def _limited(check: Callable[[], Awaitable[dict[str, Any]]]) -> dict[str, Any]:
    try:
        async with asyncio.timeout(CHECK_LIMIT_S):
            return await check()
    except TimeoutError:
        return _failed(f"no answer within {CHECK_LIMIT_S:g} s")


_OFF = {"status": "off", "reason": "REDIS_ENABLED is false: checkpoints go straight to PostgreSQL, live is off"}


def _ok(**more: Any) -> dict[str, Any]:
    return {"status": "ok", **more}


def _degraded(reason: str, **more: Any) -> dict[str, Any]:
    return {"status": "degraded", "reason": reason, **more}


def _failed(reason: str, **more: Any) -> dict[str, Any]:
    # the reason names no host, user or file: anybody may read it
    return {"status": "failed", "reason": reason, **more}


def _select_one() -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT 1")


async def postgresql() -> dict[str, Any]:
    try:
        await in_database(_select_one)
    except DatabaseError:
        return _failed("does not answer")
    return _ok()


async def redis() -> dict[str, Any]:
    if not settings.REDIS_ENABLED:
        return _OFF
    try:
        await get_redis().ping()
    except (RedisError, OSError):
        return _failed("does not answer: chats go on, checkpoints go straight to PostgreSQL")
    return _ok()


async def persister() -> dict[str, Any]:
    """Silent, far behind, or stopped by a flood of what cannot be stored: not ready. Dead letters:
    degraded, since somebody has to look at them."""
    if not settings.REDIS_ENABLED:
        return _OFF
    try:
        known = await asyncio.to_thread(persister_status)
    except (RedisError, OSError):
        return {"status": "unknown", "reason": "Redis does not answer"}
    failure = _why_not_stored(known)
    if failure:
        return _failed(failure, **known)
    if known["dead_letters"]:
        return _degraded("some checkpoints could not be stored and are set aside", **known)
    return _ok(**known)


def _why_not_stored(known: dict[str, Any]) -> str:
    """Why checkpoints do not get into history, "" when they do."""
    if known["silent_s"] is None or known["silent_s"] > PERSISTER_SILENT_S:
        return "no persister runs: checkpoints wait in Redis"
    if known["held_back"]:
        return "many checkpoints are refused: they stay in the log until the cause is mended"
    return f"history is more than {LAG_LIMIT_S:g} s behind" if known["lag_s"] > LAG_LIMIT_S else ""


async def relay() -> dict[str, Any]:
    """Live delivery in this process. Without watchers it has nothing to be connected for."""
    if not settings.REDIS_ENABLED:
        return _OFF
    known = relay_status()
    facts = {name: known[name] for name in ("watchers", "feeds", "reconnects")}
    if known["live"] == "degraded":
        return _failed("watchers are connected, but Redis is away", **facts)
    return _ok(**facts)


async def tracking() -> dict[str, Any]:
    """This process's way to the log: what goes around Redis, and what had to be given up; and how many tasks
    its event loop has, which is what a leak would show in first."""
    known = {**tracking_status(), "tasks": len(asyncio.all_tasks())}
    if known["postgres_away"]:
        return _failed("neither Redis nor PostgreSQL takes checkpoints; they wait in memory", **known)
    if known["given_up"]:
        return _degraded("checkpoints had to be given up since this process started", **known)
    if known["redis_away"] and settings.REDIS_ENABLED:
        return _degraded("checkpoints go straight to PostgreSQL until Redis is back", **known)
    return _ok(**known)


async def retention() -> dict[str, Any]:
    """How long turns are kept, and whether those that are older really go."""
    try:
        known = await in_database(kept.status)
    except DatabaseError:
        return {"status": "unknown", "reason": "PostgreSQL does not answer"}
    if known.pop("late"):
        return _degraded("turns that are older than they are kept have not been deleted for days", **known)
    return _ok(**known)


CHECKS: dict[str, Callable[[], Awaitable[dict[str, Any]]]] = {
    "postgresql": postgresql,
    "redis": redis,
    "persister": persister,
    "relay": relay,
    "tracking": tracking,
    "retention": retention,
}

urlpatterns = [path("healthz", healthz, name="healthz"), path("readyz", readyz, name="readyz")]
