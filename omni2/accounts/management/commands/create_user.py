"""manage.py create_user EMAIL: a person who can chat, and more with --group."""

import sys
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import Group
from django.contrib.auth.password_validation import validate_password
from django.core.exceptions import ValidationError
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction

from omni2.accounts.models import User


class Command(BaseCommand):
    help = "Make a person. Without a password he can only use tokens (manage.py create_token)."

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("email")
        parser.add_argument("--name", default="", help="what pages call him")
        parser.add_argument(
            "--group", action="append", default=[], help="operators or auditors; may be given more than once"
        )
        parser.add_argument(
            "--password-stdin", action="store_true", help="read the password from the first line of standard input"
        )

    def handle(self, *_: Any, **options: Any) -> None:
        user = User(email=options["email"].strip().lower(), name=options["name"].strip())
        groups = [_group(name) for name in options["group"]]
        _check(user)
        user.set_password(_read_password(user) if options["password_stdin"] else None)
        with transaction.atomic():
            user.save(force_insert=True)
            user.groups.set(groups)
        self.stdout.write(self.style.SUCCESS(f"Made {user.user_id}."))
        if not user.has_usable_password():
            self.stdout.write(
                f"He has no password yet. To sign in to pages: manage.py changepassword {user.user_id}\n"
                f"A token for programs: manage.py create_token {user.user_id}"
            )


def _group(name: str) -> Group:
    group = Group.objects.filter(name=name).first()
    if group is None:
        known = ", ".join(Group.objects.order_by("name").values_list("name", flat=True))
        raise CommandError(f"There is no group {name!r}. There are: {known or 'none'}.")
    return group


def _check(user: User) -> None:
    try:
        user.clean_fields(exclude=["password"])
    except ValidationError as problem:
        raise CommandError(_as_text(problem)) from None
    if User.objects.filter(email=user.email).exists():
        raise CommandError(f"{user.email} exists already.")


def _read_password(user: User) -> str:
    password = sys.stdin.readline().rstrip("\r\n")
    try:
        validate_password(password, user)
    except ValidationError as problem:
        raise CommandError(f"password: {' '.join(problem.messages)}") from None
    return password


def _as_text(problem: ValidationError) -> str:
    return " ".join(f"{field}: {' '.join(messages)}" for field, messages in problem.message_dict.items())
