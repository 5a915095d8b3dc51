"""Row 10: how soon `make run` is ready, and what all of its processes hold when nothing happens.

`make run` is really started, in a data folder of its own: once to fill it, then again and again. Ready is when the
web server answers. Then some questions are asked, since the first one loads what a process needs for answering, and
after a while of rest the memory is added up. It is the proportional set size: a page that several processes share is
counted once in all.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from bench.section import Plan, WrongResult
from bench.sides import AT_MOST, Row
from omni2 import localmodel

HERE = Path(__file__).parent.parent
ROUNDS = 3
GOAL_S = 5.0
MEMORY_GOALS_MB = {"with the local model": 1000.0, "without the local model": 500.0}
LIMIT_S = 180.0
QUESTIONS = 5
REST_S = 8.0


def run(plan: Plan) -> list[Row]:
    """Row 10. Without the local model on this machine its line is left out."""
    kinds: dict[str, dict[str, str]] = {"without the local model": {"LLM_MODEL": "scripted"}}
    if not localmodel.missing():
        kinds = {"with the local model": {}, **kinds}
    found = []
    for kind, environment in kinds.items():
        folder = Path(tempfile.mkdtemp(prefix="o2b-"))
        try:
            found += _measured(kind, folder, environment)
        finally:
            shutil.rmtree(folder, ignore_errors=True)
    return found


def _measured(kind: str, folder: Path, environment: Mapping[str, str]) -> list[Row]:
    with _made(folder, environment):
        pass
    took: list[float] = []
    held: dict[str, float] = {}
    while len(took) < ROUNDS:
        with _made(folder, environment) as run_:
            took.append(run_.ready_s)
            if len(took) == ROUNDS:
                _ask(run_, answered="without" not in kind)
                time.sleep(REST_S)
                held = run_.memory_mb()
    parts = ", ".join(f"{name} {size:.0f}" for name, size in sorted(held.items(), key=lambda pair: -pair[1]))
    middle = sorted(took)[len(took) // 2]
    started = Row(
        10, f"`make run`, not for the first time, {kind}: ready after", middle, "s", GOAL_S, AT_MOST,
        spread=f"{min(took):.3g}…{max(took):.3g} s",
    )  # fmt: skip
    goal = MEMORY_GOALS_MB[kind]
    return [
        started,
        Row(10, f"memory at rest of all processes, {kind}", sum(held.values()), "MB", goal, AT_MOST, note=parts),
    ]


class _Run:
    """One `make run` that is ready."""

    def __init__(self, process: subprocess.Popen[bytes], port: int, data: Path, ready_s: float) -> None:
        self.process, self.port, self.data, self.ready_s = process, port, data, ready_s

    def memory_mb(self) -> dict[str, float]:
        """What each part and its children hold."""
        found: dict[str, float] = {}
        for pid in _below(self.process.pid):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            pages = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            size = next(int(line.split()[1]) for line in pages if line.startswith("Pss:")) / 1024
            name = _part(words)
            found[name] = found.get(name, 0.0) + size
        return found


def _part(words: str) -> str:
    for mark, name in (
        ("daphne", "web"), ("manage.py persister", "persister"), ("localmodel", "local model"), ("valkey", "Valkey"),
        ("postgres", "PostgreSQL"), ("manage.py up", "supervisor"), ("keeper", "keeper"),
    ):  # fmt: skip
        if mark in words:
            return name
    return "others"


def _below(pid: int) -> list[int]:
    """A process and all that come from it, also those in sessions of their own."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found, waiting = [], [pid]
    while waiting:
        found.append(waiting.pop())
        waiting += children.get(found[-1], [])
    return found


@contextmanager
def _made(folder: Path, environment: Mapping[str, str]) -> Iterator[_Run]:
    """`make run`, ready; stopped afterwards as by Ctrl-C."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    values = {name: os.environ[name] for name in ("PATH", "LANG", "HOME") if name in os.environ}
    values |= {"OMNI2_DATA_DIR": str(folder / "data"), "OMNI2_PORT": str(port), **environment}
    began = time.monotonic()
    with (folder / "output").open("wb") as output:
        process = subprocess.Popen(
            ["make", "run"], cwd=HERE, env=values, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            start_new_session=True,
        )  # fmt: skip
    try:
        while not _answers(port):
            if process.poll() is not None or time.monotonic() - began > LIMIT_S:
                raise WrongResult(f"`make run` did not become ready:\n{(folder / 'output').read_text()}")
            time.sleep(0.02)
        yield _Run(process, port, folder / "data", time.monotonic() - began)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.wait(60)


def _answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=2) as answer:
            return answer.status == 200
    except OSError:
        return False


def _ask(run_: _Run, *, answered: bool) -> None:
    """Some questions, as the README's curl calls ask them. Without a model they are answered that there is none."""
    environment = {**os.environ, "OMNI2_DATA_DIR": str(run_.data)}
    for name in ("DATABASE_URL", "REDIS_URL", "DJANGO_SETTINGS_MODULE"):
        environment.pop(name, None)
    words = [sys.executable, "manage.py", "create_token", "admin@example.com"]
    made = subprocess.run(words, cwd=HERE, env=environment, capture_output=True, text=True, check=True).stdout
    token = next(word for word in made.split() if word.startswith("omni2_"))
    for number in range(QUESTIONS):
        request = urllib.request.Request(
            f"http://127.0.0.1:{run_.port}/api/v1/ask",
            data=json.dumps({"message": f"What is {number} plus one?"}).encode(),
            headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
        )
        deadline = time.monotonic() + 60
        while (status := _status(request)) != (200 if answered else 503):
            if time.monotonic() > deadline:
                raise WrongResult(f"a question was answered with {status}")
            time.sleep(0.5)


def _status(request: urllib.request.Request) -> int:
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            answer.read()
            return answer.status
    except urllib.error.HTTPError as refused:
        return refused.code
