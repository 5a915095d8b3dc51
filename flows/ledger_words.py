"""The ledger in sentences: for the page, for `manage.py reconcile` and for whoever reads its JSON."""

from collections.abc import Iterator
from typing import Any

from flows.history import wire_time
from flows.judging import Account, Problem, Sums

# {n} and the verb by the number; {rows}, {summary} and {said} only where one single turn is meant
_PROBLEMS: dict[str, tuple[str, str]] = {
    "turns_missing": ("1 turn is missing", "{n} turns are missing"),
    "checkpoints_missing": ("1 checkpoint is missing", "{n} checkpoints are missing"),
    "turns_too_many": (
        "1 turn is stored that its process did not begin",
        "{n} turns are stored that their process did not begin",
    ),
    "checkpoints_too_many": (
        "1 checkpoint is stored that its process did not make",
        "{n} checkpoints are stored that their process did not make",
    ),
    "uncounted": (
        "1 turn was answered and charged, but its process did not count it and nothing of it is stored",
        "{n} turns were answered and charged, but their process did not count them and nothing of them is stored",
    ),
    "no_summary": ("1 turn has checkpoints but no summary", "{n} turns have checkpoints but no summary"),
    "two_ends": ("1 turn has more than one end", "{n} turns have more than one end"),
    "summary_differs": (
        "The summary of 1 turn counts other checkpoints than it has",
        "The summaries of {n} turns count other checkpoints than they have",
    ),
    "no_end": ("1 turn has ended, but its flow_end is not stored", "{n} turns have ended, but no flow_end is stored"),
    "end_differs": (
        "1 turn has other checkpoints than its end says",
        "{n} turns have other checkpoints than their ends say",
    ),
    "left_open": (
        "1 turn is still open, though its process has ended",
        "{n} turns are still open, though their process has ended",
    ),
    "slot_open": (
        "1 slot of the usage is still taken, though its turn or its process has ended",
        "{n} slots of the usage are still taken, though their turns or their process have ended",
    ),
}
_NUMBERS = {
    "started": "started",
    "stored": "stored",
    "running": "running",
    "made": "made",
    "rows": "stored",
    "given_up": "given up",
    "summary": "in the summary",
    "said": "said by the end",
}
KINDS = tuple(_PROBLEMS)


def counted(number: int, one: str, many: str) -> str:
    """`1 turn`, `1,204 turns`."""
    return f"{number:,} {one if number == 1 else many}"


def problem(found: Problem) -> str:
    """What is wrong, in one sentence; where and which turns stands beside it."""
    one, many = _PROBLEMS[found.kind]
    said = one if found.count == 1 else many.format(n=f"{found.count:,}")
    numbers = ", ".join(f"{number:,} {_NUMBERS[name]}" for name, number in found.numbers.items())
    return f"{said} ({numbers})." if numbers else f"{said}."


def whose(found: Problem) -> str:
    return found.process.name if found.process else "no known process"


def sums(of: Sums, when: str) -> str:
    """`1,204 turns started in the last 24 hours: 1,201 stored, 2 running, 1 given up`."""
    parts = [f"{of.stored:,} stored", f"{of.running:,} running", f"{of.turns_given_up:,} given up"]
    if of.turns_missing:
        parts.append(f"{of.turns_missing:,} missing")
    return f"{counted(of.started, 'turn', 'turns')} started {when}: {', '.join(parts)}"


def checkpoints(of: Sums) -> str:
    """`10,311 checkpoints made: 10,309 stored, 2 on the way, 0 given up`."""
    parts = [f"{of.rows:,} stored", f"{of.on_the_way:,} on the way", f"{of.given_up:,} given up"]
    if of.set_aside:
        parts.append(f"{of.set_aside:,} set aside")
    if of.missing:
        parts.append(f"{of.missing:,} missing")
    return f"{counted(of.made, 'checkpoint', 'checkpoints')} made: {', '.join(parts)}"


def verdict(account: Account) -> str:
    """Whether it adds up, in a word or two."""
    if account.problems:
        return "It does not add up"
    return "All adds up" if account.is_certain else "Nothing is known to be missing"


def cautions(account: Account) -> Iterator[str]:
    """What the account cannot say, or what somebody should look at although it adds up."""
    road, total = account.road, account.total
    if account.kept_from is not None:
        since = f"{account.kept_from:%Y-%m-%d %H:%M} UTC"
        yield f"Turns from before {since} are no longer kept: they are not in this account."
    if not road.answers:
        yield "Redis does not answer: what waits in it is not known, so nothing is called missing."
    elif not road.complete:
        yield (
            f"{road.waiting:,} checkpoints wait in Redis and {road.dead_letters:,} are set aside: too many to look "
            "through, so nothing is called missing until they are fewer."
        )
    if total.set_aside:
        yield (
            f"{counted(total.set_aside, 'checkpoint is', 'checkpoints are')} set aside and not stored: "
            "manage.py replay_dead_letters tries them again."
        )
    if total.late:
        came = counted(total.late, "checkpoint", "checkpoints")
        yield f"{came} came after the end of their turn and count as never made."
    without = sum(part.sums.turns_unsaid for hour in account.hours for part in hour.parts if not part.has_spoken)
    if without:
        yield (
            f"{counted(without, 'turn was', 'turns were')} counted by no process (made before the ledger was kept, or "
            "stored by another program): only what is stored of them is compared."
        )


def as_json(account: Account) -> dict[str, Any]:
    """What `GET /api/v1/ledger` and `reconcile --json` answer."""
    return {
        "since": wire_time(account.since),
        "until": wire_time(account.until),
        "adds_up": account.adds_up,
        "certain": account.is_certain,
        "problems": [
            {
                "kind": one.kind,
                "hour": wire_time(one.hour),
                "process": one.process.name if one.process else None,
                "process_id": str(one.process.process_id) if one.process else None,
                "count": one.count,
                "turn_ids": one.turn_ids,
                "detail": problem(one),
            }
            for one in account.problems
        ],
        "notes": list(cautions(account)),
        "total": _sums(account.total, account.reasons),
        "hours": [
            {
                "hour": wire_time(hour.start),
                **_sums(hour.sums, hour.reasons),
                "processes": [
                    {
                        "process_id": str(part.process_id) if part.process_id else None,
                        "process": part.process.name if part.process else None,
                        **_sums(part.sums, part.reasons),
                    }
                    for part in hour.parts
                ],
            }
            for hour in account.hours
        ],
        "road": {
            "redis": "off" if not account.road.enabled else "answers" if account.road.answers else "away",
            "waiting": account.road.waiting,
            "lag_s": account.road.lag_s,
            "persister_silent_s": account.road.silent_s,
            "dead_letters": account.road.dead_letters,
        },
    }


def _sums(of: Sums, reasons: dict[str, int]) -> dict[str, Any]:
    return {
        "turns": {
            "started": of.started,
            "stored": of.stored,
            "running": of.running,
            "given_up": of.turns_given_up,
            "missing": of.turns_missing - of.turns_too_many,
            "admitted": of.admitted,
            "abandoned": of.abandoned,
            "not_reported_yet": of.turns_unsaid,
        },
        "checkpoints": {
            "made": of.made,
            "stored": of.rows,
            "on_the_way": of.on_the_way,
            "set_aside": of.set_aside,
            "given_up": of.given_up,
            "given_up_because": reasons,
            "missing": of.missing - of.too_many,
            "late": of.late,
            "not_reported_yet": of.unsaid,
        },
    }
