"""What is loaded when a process starts lives as long as the process."""

import gc

WHILE_A_COMMAND_LOADS = 10_000
"""New objects until the collector looks for garbage; Python's own 700 make a command take a sixth longer."""


def loading_begins() -> None:
    """Nothing that is loaded is garbage: looking for it was a fifth of a web process's start. See `loading_ends`."""
    gc.disable()


def loading_ends() -> None:
    gc.enable()


def look_less_often() -> None:
    """For a command, which loads and runs in one go."""
    gc.set_threshold(WHILE_A_COMMAND_LOADS)


def keep_for_good() -> None:
    """Take all that is there now out of the garbage collector's sight, for good.

    A web process holds 340,000 objects of modules alone. Whenever the collector looks at all there is, it looks at
    each of them, and everybody's answer stands still meanwhile: with a thousand chats at once that was an eighth of
    all CPU. To be called once, when everything is loaded; takes about a tenth of a second."""
    gc.collect()
    gc.freeze()
