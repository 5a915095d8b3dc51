"""Conversations of clients that keep them themselves, known again by what was said.

Such a client sends the whole dialogue each time and no session. If it goes on from an answer that this process gave
to the same credential, word by word, it is the same conversation. Only digests are kept, of the latest dialogues.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Iterable
from typing import NamedTuple

REMEMBERED = 20_000


class Thread:
    """The words of a dialogue so far, and of whom. They lead to the same key whichever process reads them."""

    def __init__(self, credential: bytes) -> None:
        self._digest = hashlib.sha256(credential)

    def hear(self, words: Iterable[str]) -> None:
        """What was said next."""
        for word in words:
            said = word.strip().encode("utf-8", "surrogatepass")
            # the length keeps two words from being read as one
            self._digest.update(b"%d:" % len(said) + said)

    @property
    def key(self) -> bytes:
        """Under which the dialogue up to here is known."""
        return self._digest.digest()


def spoken(text: str, call_ids: Iterable[str]) -> str:
    """The model's word as a client repeats it: its text, and which tools it asked for."""
    return " ".join([text.strip(), *call_ids])


class Threads(NamedTuple):
    """The sessions of the dialogues this process answered lately. Used by one event loop."""

    known: OrderedDict[bytes, str]

    def find(self, thread: Thread) -> str | None:
        """The session of the dialogue up to the model's last word; None: unknown, so a new one."""
        return self.known.get(thread.key)

    def remember(self, key: bytes, session_id: str) -> None:
        self.known[key] = session_id
        self.known.move_to_end(key)
        if len(self.known) > REMEMBERED:
            self.known.popitem(last=False)


threads = Threads(OrderedDict())
