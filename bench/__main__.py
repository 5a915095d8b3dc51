"""`python -m bench`: what Omni2 costs, beside what else one could use. About five minutes.

    python -m bench                    every section, the table, results/latest.json and docs/performance.md
    python -m bench tracking storing   these sections; the other rows stay as they were
    python -m bench --full             10 million checkpoints, 5,000 watchers (hours); goes on where it stopped

Each section is a process of its own, so that none measures what another left behind.
"""

import argparse
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from bench import section, table
from bench.section import Plan
from bench.sides import Row

SECTIONS = {
    "tracking": "rows 1 and 2: what recording a turn costs",
    "endpoint": "rows 3 and 8: what the whole endpoint costs, and how many chats it holds",
    "watching": "rows 4 and 5: how soon a watcher sees it, and what watchers cost",
    "storing": "rows 6 and 7: how fast the persister is, and how soon all is stored",
    "reading": "row 9: history, sessions and analytics over a million checkpoints",
    "starting": "row 10: how soon `make run` is ready, and what it holds",
}
FOLDER = Path(os.environ.get("OMNI2_BENCH_DIR") or Path(__file__).parent.parent / ".omni2" / "bench")
FULL_NEEDS_GB = 30
FULL_NEEDS_FILES = 16_384


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=", ".join(SECTIONS))
    parser.add_argument("--full", action="store_true", help="the long run: see above")
    parser.add_argument("--again", action="store_true", help="with --full: measure again what is there already")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if unknown := [name for name in options.sections if name not in SECTIONS]:
        parser.error(f"no such section: {', '.join(unknown)}; there are {', '.join(SECTIONS)}")
    plan = Plan(full=options.full, folder=FOLDER)
    if options.into:
        return run_one(options.sections[0], plan, options.into)
    if options.full and (short := too_small()):
        parser.error(short)
    return run_all(options.sections or list(SECTIONS), plan, again=options.again)


def run_one(name: str, plan: Plan, path: Path) -> int:
    """In the section's own process: its rows into this file."""
    module = __import__(f"bench.{name}", fromlist=["run"])
    section.write(module.run(plan), path)
    return 0


def run_all(names: list[str], plan: Plan, *, again: bool) -> int:
    began = time.monotonic()
    kind = "full" if plan.full else "short"
    done = FOLDER / kind
    done.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[Row]] = {}
    failed = []
    for name in names:
        path = done / f"{name}-{table.commit()}.json"
        if plan.full and path.exists() and not again:
            print(f"bench: {name}: measured before at this commit", flush=True)
            rows[name] = section.read(path)
            continue
        print(f"bench: {name}: {SECTIONS[name]}", flush=True)
        words = [sys.executable, "-m", "bench", name, "--into", str(path), *(["--full"] if plan.full else [])]
        if subprocess.run(words, check=False).returncode:
            failed.append(name)
            continue
        rows[name] = section.read(path)
    found = [row for name in SECTIONS for row in rows.get(name, [])]
    print(table.as_text(found))
    table.keep(found, kind=kind)
    print(f"bench: {time.monotonic() - began:.0f} s; kept in {table.results(kind)} and docs/performance.md")
    for name in failed:
        print(f"bench: {name} failed: its rows are those of an earlier run", file=sys.stderr)
    return 1 if failed or not all(row.met for row in found) else 0


def too_small() -> str:
    """What this machine lacks for a full run; empty when nothing."""
    import resource

    FOLDER.mkdir(parents=True, exist_ok=True)
    free_gb = shutil.disk_usage(FOLDER).free / 1e9
    if free_gb < FULL_NEEDS_GB:
        return f"a full run needs {FULL_NEEDS_GB} GB in {FOLDER} (OMNI2_BENCH_DIR); there are {free_gb:.0f}"
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < FULL_NEEDS_FILES:
        return f"a full run needs {FULL_NEEDS_FILES} open files; the limit is {hard} (ulimit -n)"
    if soft != resource.RLIM_INFINITY and soft < FULL_NEEDS_FILES:
        resource.setrlimit(resource.RLIMIT_NOFILE, (FULL_NEEDS_FILES, hard))
    return ""


if __name__ == "__main__":
    sys.exit(main())
