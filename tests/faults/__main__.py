"""`python -m tests.faults [scenario ...]`: the long, random run. Prints a line a scenario, keeps going after a failure,
writes bench/results/faults.json, and says with its exit code whether all was as promised."""

import argparse
import asyncio
import json
import logging
import os
import platform
import random
import sys
import time
import traceback
from typing import Any

from tests import servers
from tests.faults import report
from tests.faults.report import RESULTS

SHOWN_PROBLEMS = 12
SHOWN_MOMENTS = 20


def main() -> int:
    options = _options()
    servers.prepare()
    # ours is no product: this process only needs Django's models, in the database of the product it starts
    os.environ.update(
        DJANGO_SETTINGS_MODULE="omni2.settings",
        DATABASE_URL="postgresql://nobody@/nothing?host=/nowhere",
        REDIS_URL="unix:///nowhere",
    )
    import django

    django.setup()
    # whoever is monitored is told to the product by way of its database; there is no Redis here to announce it on
    logging.getLogger("monitoring.control").setLevel(logging.ERROR)
    from tests.faults import (
        scenarios_clock,  # noqa: F401
        scenarios_failover,  # noqa: F401
        scenarios_leaving,  # noqa: F401
        scenarios_persister,  # noqa: F401
        scenarios_poison,  # noqa: F401
        scenarios_postgres,  # noqa: F401
        scenarios_power,  # noqa: F401
        scenarios_redis,  # noqa: F401
        scenarios_still,  # noqa: F401
        scenarios_watchers,  # noqa: F401
        scenarios_web,  # noqa: F401
        soak,  # noqa: F401
    )
    from tests.faults.scenario import SCENARIOS

    if options.list:
        for each in SCENARIOS.values():
            print(f"{each.name:24} {each.promise}")
        return 0
    unknown = [name for name in options.scenarios if name not in SCENARIOS]
    if unknown:
        print(f"no such scenario: {', '.join(unknown)}; --list names them", file=sys.stderr)
        return 2
    named = [each.name for each in SCENARIOS.values() if not each.on_demand]
    passed = True
    for name in options.scenarios or named:
        row = _play(SCENARIOS[name], options)
        # each as it comes: an hour's figures are not lost to whatever ends the run
        _keep(row, options.seed)
        passed = passed and row["passed"]
    return 0 if passed else 1


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("scenarios", nargs="*", metavar="scenario")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6))
    parser.add_argument("--times", type=int, help="how often the fault is injected; else as each scenario says")
    parser.add_argument("--chats", type=int, default=200, help="in flight at once")
    parser.add_argument("--watchers", type=int, default=20)
    parser.add_argument("--rate", type=float, default=25, help="turns a second to aim at")
    parser.add_argument("--minutes", type=float, default=30, help="how long `soak` takes; it runs only when named")
    parser.add_argument("--list", action="store_true", help="name the scenarios and end")
    return parser.parse_args()


def _play(scenario: Any, options: argparse.Namespace) -> dict[str, Any]:
    from tests.faults.rig import Plan, started

    plan = Plan(
        chats=options.chats,
        watchers=options.watchers,
        times=options.times or scenario.times,
        rate=options.rate,
        words=20,
        seed=options.seed,
        long=True,
        minutes=options.minutes,
    )
    row: dict[str, Any] = {"name": scenario.name, "promise": scenario.promise, "seed": options.seed}
    began, rig = time.monotonic(), None
    try:
        with started(plan, **scenario.options) as rig:
            outcome = asyncio.run(asyncio.wait_for(scenario.play(rig), scenario.limit_s))
    except Exception as problem:  # one that breaks down must not take the others with it
        traceback.print_exc()
        row |= {"figures": {}, "problems": [f"{type(problem).__name__}: {problem}"]}
    else:
        found = outcome.sum
        counts = {name: getattr(found, name) for name in ("turns", "durable", "persisted", "lost", "doubled")}
        row |= {"injections": outcome.injections, **counts, "figures": outcome.figures, "problems": found.problems}
    row["passed"] = not row["problems"]
    row["took_s"], row["on"] = round(time.monotonic() - began), time.strftime("%Y-%m-%d")
    if not row["passed"] and rig is not None and rig.latest is not None:
        row["figures"]["moments"] = rig.latest.moments[-SHOWN_MOMENTS:]
    _show(row)
    return row


def _show(row: dict[str, Any]) -> None:
    counts = ", ".join(f"{name} {row[name]}" for name in ("injections", "turns", "durable", "persisted") if name in row)
    worst = ", ".join(f"{name} {row[name]}" for name in ("lost", "doubled") if name in row)
    figures = {name: value for name, value in row["figures"].items() if name != "moments"}
    print(f"{'ok  ' if row['passed'] else 'FAIL'} {row['name']:22} {row['took_s']:>4} s  {counts}, {worst}  {figures}")
    if row["passed"]:
        return
    print(
        f"     {len(row['problems'])} problems; again with: python -m tests.faults {row['name']} --seed {row['seed']}"
    )
    for problem in row["problems"][:SHOWN_PROBLEMS]:
        print(f"     - {problem}")
    print(f"     what was done, in seconds since the load began: {'; '.join(row['figures'].get('moments', []))}")


def _keep(row: dict[str, Any], seed: int) -> None:
    """Into the file of results, in place of an earlier one of the same scenario."""
    kept = {each["name"]: each for each in _earlier()}
    figures = {name: value for name, value in row["figures"].items() if name != "moments"}
    kept[row["name"]] = {**row, "figures": figures, "problems": row["problems"][:SHOWN_PROBLEMS]}
    machine = f"{platform.machine()} {platform.system()} Python {sys.version.split()[0]}, {os.cpu_count()} cores"
    RESULTS.write_text(json.dumps({"machine": machine, "seed": seed, "rows": list(kept.values())}, indent=1) + "\n")
    report.write()


def _earlier() -> list[dict[str, Any]]:
    try:
        return list(json.loads(RESULTS.read_text())["rows"])
    except (OSError, ValueError, KeyError):
        return []


if __name__ == "__main__":
    # line by line, also into a file
    sys.stdout.reconfigure(line_buffering=True)
    sys.exit(main())
