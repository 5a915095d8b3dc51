"""manage.py demo: traffic of six demonstration users through the real endpoint of a running Omni2.

It needs a running server on the same data folder (`make run`) and nothing else from it: the
scripted model runs in this process, and the server finds it through chat.demonstration.
"""

import asyncio
import math
import os
import secrets
from argparse import ArgumentParser, ArgumentTypeError
from collections import Counter
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx2
from django.core.management.base import BaseCommand, CommandError

from chat import demonstration
from chat.scripted_model import ScriptedModel
from chat.traffic import Say, Traffic, end_cast, make_cast
from omni2 import env

MINUTES_MAX = 24 * 60.0
RATE_MAX = 50.0


def between(low: float, high: float) -> Callable[[str], float]:
    """A number above `low` and at most `high`."""

    def number(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not low < value <= high:
            raise ArgumentTypeError(f"must be a number above {low:g} and at most {high:g}, not {text!r}")
        return value

    return number


async def run_demo(
    base_url: str, tokens: dict[str, str], *, minutes: float, rate: float, say: Say = print
) -> Counter[str]:
    """Start the scripted model, send the traffic, and put everything away; how the turns ended."""
    model = ScriptedModel(key=secrets.token_urlsafe(24), keep_requests=False)
    server = demonstration.ModelServer(await model.start(), model.key, os.getpid())
    demonstration.announce(server)
    try:
        return await Traffic(base_url, tokens, timedelta(minutes=minutes), rate, say).send()
    finally:
        demonstration.withdraw(server)
        await model.stop()


class Command(BaseCommand):
    help = "Send demonstration traffic through a running Omni2 (scripted model, labelled as such)"

    def add_arguments(self, parser: ArgumentParser) -> None:
        host = "127.0.0.1" if env.host() in ("0.0.0.0", "::", "") else env.host()  # noqa: S104 (compared, not bound)
        here = f"http://{f'[{host}]' if ':' in host else host}:{env.port()}"
        parser.add_argument("--minutes", type=between(0, MINUTES_MAX), default=5.0, help="how long, default 5")
        parser.add_argument("--rate", type=between(0, RATE_MAX), default=1.0, help="requests a second, default 1")
        parser.add_argument("--url", default=here, help=f"the running Omni2, default {here}")

    def handle(self, *_: Any, **options: Any) -> None:
        base_url = options["url"].rstrip("/")
        self._make_sure_it_runs(base_url)
        minutes, rate = options["minutes"], options["rate"]
        tokens = make_cast()
        self.stdout.write(
            f"Six demonstration users ask {base_url}, about {rate:g} times a second for {minutes:g} minutes; "
            "a scripted model answers. Ctrl-C ends it."
        )
        try:
            outcomes = asyncio.run(run_demo(base_url, tokens, minutes=minutes, rate=rate, say=self.stdout.write))
        except KeyboardInterrupt:
            self.stdout.write("Ended before its time.")
        else:
            for outcome, count in outcomes.most_common():
                self.stdout.write(f"{count:>6}  {outcome}")
        finally:
            end_cast()

    @staticmethod
    def _make_sure_it_runs(base_url: str) -> None:
        try:
            answer = httpx2.get(f"{base_url}/healthz", timeout=5)
        except (httpx2.HTTPError, httpx2.InvalidURL) as problem:
            raise CommandError(f"No Omni2 answers on {base_url}: start it with `make run` first.") from problem
        if answer.status_code != httpx2.codes.OK:
            raise CommandError(f"{base_url}/healthz answers {answer.status_code}: this is no healthy Omni2.")
