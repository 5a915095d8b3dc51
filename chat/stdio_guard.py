"""Stands between Omni2 and a tool server that is a program: `python -I -S stdio_guard.py COMMAND [ARGUMENT]...`

Lines go to the program's standard input as they come, and what it says comes back line by line, but

* no line is longer than LINE_BYTES: a program that floods is ended instead of filling Omni2's memory;
* what is no JSON object (a banner, a debug print) is left out;
* when Omni2 closes the pipe, also by `kill -9`, the program and all it started are ended: nothing is left behind;
* what the program wrote to standard error last is repeated when it ends, so that an admin can be told why.

Standard library only, and nothing of Omni2: it has to start quickly and to outlive it.
"""

import os
import selectors
import signal
import subprocess
import sys
import time

LINE_BYTES = 1024 * 1024
ERROR_BYTES = 2000
ENDS_BY_ITSELF_S = 1.5
"""how long a program has after its input was closed; the MCP client gives this guard two seconds"""
ENDS_AFTER_SIGTERM_S = 1.0


def main(command: "list[str]") -> int:
    """Run the program until it ends, floods, or nobody is there any more. Returns its exit code."""
    # a program of the same process group is ended with it, by whomever
    signal.signal(signal.SIGTERM, _end_by_signal)
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    try:
        program = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=0
        )
    except (OSError, ValueError) as problem:
        reason = problem.strerror if isinstance(problem, OSError) and problem.strerror else str(problem)
        sys.stderr.write(f"The program cannot be started: {reason}.\n")
        return 127
    said = _Relay(program).run()
    code = _end(program)
    if said:
        sys.stderr.write(said + "\n")
    return code


def _end_by_signal(number: int, _: object) -> None:
    raise SystemExit(128 + number)


class _Relay:
    """Carries lines both ways until one side ends."""

    def __init__(self, program: "subprocess.Popen[bytes]") -> None:
        assert program.stdin is not None
        assert program.stdout is not None
        assert program.stderr is not None
        self.input, self.output, self.error = (
            program.stdin.fileno(),
            program.stdout.fileno(),
            program.stderr.fileno(),
        )
        self.line = bytearray()
        self.last_words = b""
        self.problem = ""

    def run(self) -> str:
        """Returns why the program is to be ended or ended: its last words, or what it did wrong."""
        with selectors.DefaultSelector() as ready:
            for source in (0, self.output, self.error):
                ready.register(source, selectors.EVENT_READ)
            going = True
            while going:
                for key, _ in ready.select():
                    data = os.read(key.fd, 65536)
                    if key.fd == self.error:
                        self.last_words = (self.last_words + data)[-ERROR_BYTES:]
                        if not data:
                            ready.unregister(self.error)
                    elif not (self._ask(data) if key.fd == 0 else self._answer(data)):
                        going = False
            if not self.problem:
                self._hear_the_rest(ready)
        return self.problem or self.last_words.decode(errors="replace").strip()

    def _hear_the_rest(self, ready: selectors.BaseSelector) -> None:
        """A program that crashed says why just before it is gone."""
        if self.error in ready.get_map():
            os.set_blocking(self.error, False)
            deadline = time.monotonic() + 0.2
            while time.monotonic() < deadline:
                try:
                    data = os.read(self.error, 65536)
                except BlockingIOError:
                    time.sleep(0.01)
                    continue
                if not data:
                    return
                self.last_words = (self.last_words + data)[-ERROR_BYTES:]

    def _ask(self, data: bytes) -> bool:
        if not data:
            return False
        return _write(self.input, data)

    def _answer(self, data: bytes) -> bool:
        if not data:
            return False
        self.line += data
        if len(self.line) > LINE_BYTES and b"\n" not in self.line[: LINE_BYTES + 1]:
            self.problem = f"The program said more than {LINE_BYTES // 1024} KiB at once and was ended."
            return False
        *lines, rest = self.line.split(b"\n")
        self.line = bytearray(rest)
        said = b"".join(bytes(line) + b"\n" for line in lines if line.lstrip().startswith((b"{", b"[")))
        return _write(1, said)


def _write(target: int, data: bytes) -> bool:
    """False when nobody reads it any more."""
    try:
        while data:
            data = data[os.write(target, data) :]
    except OSError:
        return False
    return True


def _end(program: "subprocess.Popen[bytes]") -> int:
    """Close the program's input, wait, then end it and whatever it started."""
    assert program.stdin is not None
    program.stdin.close()
    try:
        code = program.wait(ENDS_BY_ITSELF_S)
    except subprocess.TimeoutExpired:
        code = -signal.SIGTERM
    # its process group is this one's, unless somebody started this guard by hand
    if os.getpgrp() == os.getpid():
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.killpg(0, signal.SIGTERM)
        try:
            program.wait(ENDS_AFTER_SIGTERM_S)
        except subprocess.TimeoutExpired:
            program.kill()
    else:
        program.kill()
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
