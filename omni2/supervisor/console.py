"""What the supervisor tells the person at the terminal: one plain line a fact."""

import contextlib
import sys


def say(text: str) -> None:
    """Print a line at once. A closed terminal or pipe is no reason to stop."""
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.write(f"omni2: {text}\n")
        sys.stdout.flush()


def on_terminal() -> bool:
    """Whether a person reads along: only then a password may be shown."""
    try:
        return sys.stdout.isatty()
    except ValueError:
        return False
