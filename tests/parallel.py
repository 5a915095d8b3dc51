"""The whole suite runs in several processes at once, as a pytest plugin (`-p tests.parallel`).

Each worker of pytest-xdist has servers of its own (tests/servers.py) and takes whole files, so what
a file or tests/browser shares is started once in each worker. A chosen part (a path, -k, -m) runs in
one process: starting more would take longer than they save. `-n 0` and `-n 4` decide otherwise.
"""

import argparse
import gc
import os

import pytest
from hypothesis import HealthCheck, settings

# no test asserts a time, so neither does Hypothesis: its 200 ms for an example are little on a busy machine
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

# a third of their time the tests wait for servers, so there are more workers than cores
MORE_THAN_CORES = 2
MOST_WORKERS = 6


def is_worker() -> bool:
    return "PYTEST_XDIST_WORKER" in os.environ


def workers(options: argparse.Namespace) -> int:
    """How many workers these words of the command line mean; 0: this process runs the tests."""
    if options.collectonly or options.usepdb:
        return 0
    if options.numprocesses != "auto":
        return int(options.numprocesses or 0)
    chosen = options.file_or_dir or options.keyword or options.markexpr
    # many tests empty Redis, so a given one cannot be shared
    if chosen or os.environ.get("REDIS_URL"):
        return 0
    return min(len(os.sched_getaffinity(0)) + MORE_THAN_CORES, MOST_WORKERS)


@pytest.hookimpl(tryfirst=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return workers(config.option)


def pytest_configure() -> None:
    """Nothing that is loaded is garbage."""
    gc.disable()


def pytest_collection_finish() -> None:
    """What is loaded by now stays: the collector need not look at it in every test."""
    gc.enable()
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Workers take files in this order: a browser is started once in each, and no long file comes last."""
    if is_worker():
        items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    if item.get_closest_marker("browser"):
        return 0
    return 1 if item.get_closest_marker("slow") else 2
