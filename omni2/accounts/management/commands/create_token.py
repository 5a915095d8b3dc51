"""manage.py create_token EMAIL: a token for a program, alone on the last line."""

import math
from argparse import ArgumentParser, ArgumentTypeError
from typing import Any

from django.core.management.base import BaseCommand, CommandError

from omni2.accounts.models import TOKEN_DAYS, TOKEN_DAYS_MAX, TOKEN_NAME_LENGTH_MAX, ApiToken, User


def days(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not 0 < number <= TOKEN_DAYS_MAX:
        raise ArgumentTypeError(f"must be a number of days above 0 and at most {TOKEN_DAYS_MAX}, not {text!r}")
    return number


class Command(BaseCommand):
    help = "Make a token and print it alone on the last line: TOKEN=$(manage.py create_token EMAIL | tail -1)"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email")
        parser.add_argument("--expires", type=days, default=TOKEN_DAYS, metavar="DAYS", help=f"default {TOKEN_DAYS}")
        parser.add_argument("--name", default="", help="what it is for")

    def handle(self, *_: Any, **options: Any) -> None:
        email = options["email"].strip().lower()
        user = User.objects.filter(email=email).first()
        if user is None:
            raise CommandError(f"There is no {email}. Make him first: manage.py create_user {email}")
        if not user.is_active:
            raise CommandError(f"{email} is not active.")
        name = options["name"].strip()
        if len(name) > TOKEN_NAME_LENGTH_MAX or "\0" in name:
            raise CommandError(f"The name is not usable: at most {TOKEN_NAME_LENGTH_MAX} characters.")
        token, text = ApiToken.objects.issue(user, name=name, days=options["expires"])
        self.stdout.write(f"For {user.user_id}, until {token.expires_at:%Y-%m-%d %H:%M} UTC. It is not shown again:")
        self.stdout.write(text)
