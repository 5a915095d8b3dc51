"""Reads many sockets at once as cheaply as Python can: the receiving side of row 4 and 5, a process of its own.
Reads orders from standard input, a JSON line each, answers each with one.

A few sockets are read the moment something comes, frame by frame, and say how old each checkpoint is. The others
are emptied fifty times a second and looked at when all is over, so that reading takes little of the
machine from what is measured. Both must have received every checkpoint once and in order.
"""

import json
import re
import select
import socket
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

SWEEP_S = 0.02
SWEEPS_OF_SILENCE = 3
ACK_FRAMES = 100
"""The contract: at least every 100 frames or second."""
ACK_S = 0.9
CHUNK_BYTES = 1 << 20
RECEIVE_BUFFER_BYTES = 4 << 20

_NUMBER = re.compile(rb'"n":(\d+),"at_ns":(\d+)')


class Reader:
    """One receiving connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.rest = b""
        self.received: list[bytes] = []

    def read(self) -> bytes:
        """What is there now. Raises EOFError."""
        chunk = self.socket.recv(CHUNK_BYTES)
        if not chunk:
            raise EOFError("the server closed the connection")
        return chunk

    def heard(self, chunk: bytes, now_s: float) -> None:
        """Keep what has come for the end, and answer what must be answered."""
        self.received.append(chunk)

    def messages(self, chunk: bytes) -> Iterator[bytes]:
        """The messages that are whole with this."""
        raise NotImplementedError

    def numbers(self) -> list[int]:
        """Of all checkpoints that came, in the order in which they did."""
        return [int(number) for number, _ in _NUMBER.findall(b"".join(self.received))]


class Subscriber(Reader):
    """A raw subscriber of Redis."""

    def __init__(self, path: str, channel: str) -> None:
        connection = socket.socket(socket.AF_UNIX)
        connection.connect(path)
        connection.sendall(f"SUBSCRIBE {channel}\r\n".encode())
        super().__init__(connection)

    def until_ready(self) -> None:
        self.socket.recv(4096)
        self.socket.setblocking(False)

    def messages(self, chunk: bytes) -> Iterator[bytes]:
        """Whole messages: the fourth line of each says how long it is."""
        data = self.rest + chunk
        start = 0
        while (at := data.find(b"\r\nflow_events:", start)) >= 0:
            size_at = data.find(b"\r\n$", at + 2)
            size_end = data.find(b"\r\n", size_at + 3)
            if size_at < 0 or size_end < 0:
                break
            end = size_end + 2 + int(data[size_at + 3 : size_end])
            if len(data) < end + 2:
                break
            yield data[size_end + 2 : end]
            start = end
        self.rest = data[start:]


class WebSocket(Reader):
    """A client of a server's WebSocket; `acknowledges`: as a watcher of Omni2 must."""

    def __init__(self, port: int, path: str, token: str = "") -> None:
        connection = socket.socket()
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection.connect(("127.0.0.1", port))
        lines = [
            f"GET {path} HTTP/1.1", f"Host: 127.0.0.1:{port}", "Upgrade: websocket", "Connection: Upgrade",
            "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Sec-WebSocket-Version: 13",
            *([f"Authorization: Bearer {token}"] if token else []),
        ]  # fmt: skip
        connection.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        super().__init__(connection)
        self.acknowledges = bool(token)
        self.frames = 0
        self.acked_s = 0.0

    def until_ready(self) -> None:
        """Returns when the server has accepted, and a watcher of Omni2 has his snapshot."""
        self.socket.settimeout(60)
        data = b""
        while b"\r\n\r\n" not in data or (self.acknowledges and b'"type":"snapshot"' not in data):
            data += self.read()
            if not data.startswith(b"HTTP/1.1 101"):
                raise EOFError(data[:200].decode(errors="replace"))
        _, _, self.rest = data.partition(b"\r\n\r\n")
        for _ in self.messages(b""):
            pass
        self.socket.setblocking(False)

    def messages(self, chunk: bytes) -> Iterator[bytes]:
        """Whole messages; a server's frames have no mask."""
        data = self.rest + chunk
        start = 0
        while len(data) >= start + 4:
            size, head = data[start + 1], 2
            if size == 126:
                size, head = int.from_bytes(data[start + 2 : start + 4]), 4
            elif size == 127:
                if len(data) < start + 10:
                    break
                size, head = int.from_bytes(data[start + 2 : start + 10]), 10
            end = start + head + size
            if len(data) < end:
                break
            if data[start] == 0x89:
                self._pong(data[start + head : end])
            else:
                yield data[start + head : end]
            start = end
        self.rest = data[start:]

    def heard(self, chunk: bytes, now_s: float) -> None:
        super().heard(chunk, now_s)
        if chunk[0] == 0x89 and len(chunk) < 126:
            self._pong(chunk[2:])
        if not self.acknowledges:
            return
        self.frames += chunk.count(b'"type":"checkpoint"')
        if self.frames >= ACK_FRAMES or (self.frames and now_s - self.acked_s > ACK_S):
            at = chunk.rfind(b'"cursor":"')
            end = chunk.find(b'"', at + 10)
            if at >= 0 and end >= 0:
                self._say(0x81, b'{"type":"ack","cursor":"%b"}' % chunk[at + 10 : end])
                self.frames, self.acked_s = 0, now_s

    def _pong(self, payload: bytes) -> None:
        self._say(0x8A, payload)

    def _say(self, first: int, payload: bytes) -> None:
        # a client must mask; with a mask of nothing the payload stays as it is
        self.socket.send(struct.pack("!BB4x", first, 0x80 | len(payload)) + payload)


class _Poll:
    """Which of some readers have something to read."""

    def __init__(self, readers: Sequence[Reader]) -> None:
        self._by_number = {reader.socket.fileno(): reader for reader in readers}
        self._poll = select.epoll()
        for number in self._by_number:
            self._poll.register(number, select.EPOLLIN)

    def ready(self, timeout_s: float) -> list[Reader]:
        return [self._by_number[number] for number, _ in self._poll.poll(timeout_s, len(self._by_number) or 1)]


class Crowd:
    """All connections of one measurement."""

    def __init__(self) -> None:
        self.readers: list[Reader] = []

    def open(self, way: str, count: int, **where: Any) -> None:
        make = {"subscribe": Subscriber, "watch": WebSocket}[way]
        # so many handshakes at a time, as many as a page full of panels
        for start in range(0, count, 50):
            some = [make(**where) for _ in range(start, min(count, start + 50))]
            for reader in some:
                reader.until_ready()
            self.readers += some

    def close(self) -> None:
        for reader in self.readers:
            reader.socket.close()
        self.readers = []

    def read(self, *, expected: int, sampled: int, timeout_s: float, all_of_them: bool = True) -> dict[str, Any]:
        """Read until everybody has `expected` checkpoints, or the time is up; how old they were, and what
        was wrong."""
        for reader in self.readers:
            reader.received = []
        # spread over the crowd, since a server serves them one after the other
        step = max(1, len(self.readers) // sampled)
        prompt = self.readers[step // 2 :: step][:sampled]
        others = [each for each in self.readers if each not in prompt]
        ages = self._follow(prompt, others, expected, timeout_s)
        return {"ages_ns": ages, "problems": self._problems(expected)[:5] if all_of_them else []}

    def _follow(self, prompt: Sequence[Reader], others: Sequence[Reader], expected: int, timeout_s: float) -> list[int]:
        ages: list[int] = []
        at_once, sometimes = _Poll(prompt), _Poll(others)
        deadline = time.monotonic() + timeout_s
        sweep_at, quiet = time.monotonic(), 0
        while (now_s := time.monotonic()) < deadline and quiet < SWEEPS_OF_SILENCE:
            for reader in at_once.ready(max(0.0, sweep_at - now_s)):
                chunk = reader.read()
                now_ns = time.monotonic_ns()
                reader.heard(chunk, now_s)
                found = (_NUMBER.search(message) for message in reader.messages(chunk))
                ages += [now_ns - int(each[2]) for each in found if each]
            if now_s >= sweep_at:
                heard = sometimes.ready(0)
                for reader in heard:
                    reader.heard(reader.read(), now_s)
                # the prompt ones are through, and nobody else has had anything for a while
                quiet = 0 if heard or len(ages) < expected * len(prompt) else quiet + 1
                sweep_at = now_s + SWEEP_S
        return ages

    def _problems(self, expected: int) -> list[str]:
        right = list(range(expected))
        return [
            f"reader {place}: {len(numbers)} checkpoints of {expected}, or not in order"
            for place, reader in enumerate(self.readers)
            if (numbers := reader.numbers()) != right
        ]


def main() -> None:
    crowd = Crowd()
    while line := sys.stdin.readline():
        order = json.loads(line)
        answer = getattr(crowd, order.pop("do"))(**order)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
