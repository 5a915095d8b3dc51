"""Which Chromium the browser tests drive: an installed one, else Playwright's own.

`python -m tests.chromium` says in one line that there is none; with REQUIRE_BROWSER=1 it fails then.
"""

import os
import shutil
import sys
from pathlib import Path

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


def chromium() -> str | None:
    """The path of a Chromium that can be started; None when there is none."""
    for name in NAMES:
        found = shutil.which(name)
        if found:
            return found
    return _playwrights_own()


def _playwrights_own() -> str | None:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        path = playwright.chromium.executable_path
    return path if Path(path).exists() else None


def required() -> bool:
    """Whether the absence of a browser is a failure."""
    return os.environ.get("REQUIRE_BROWSER", "") == "1"


if __name__ == "__main__" and chromium() is None:
    print("No Chromium is installed (Debian: apt install chromium): the browser tests are left out.", flush=True)
    if required():
        sys.exit("REQUIRE_BROWSER=1, so this is a failure.")
