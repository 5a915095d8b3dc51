"""A web process or persister whose own clock steps: `python -m tests.faults.clocked FILE WORDS…` runs
`python WORDS…` with `time.time` and `time.time_ns` ahead by as many seconds as FILE says at the moment.

The machine's clock is never touched. This is what an NTP correction or a resumed virtual machine does
to one process: its wall clock jumps, its monotonic clock does not.
"""

import runpy
import sys
import time
from pathlib import Path

STEPS, WORDS = Path(sys.argv[1]), sys.argv[2:]


def offset_s() -> float:
    try:
        return float(STEPS.read_text() or 0)
    except (OSError, ValueError):
        return 0.0


_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + offset_s()
time.time_ns = lambda: _time_ns() + int(offset_s() * 1e9)

if __name__ == "__main__":
    if WORDS[0] == "-m":
        sys.argv = WORDS[1:]
        runpy.run_module(WORDS[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = WORDS
        sys.path.insert(0, str(Path.cwd()))
        runpy.run_path(WORDS[0], run_name="__main__")
