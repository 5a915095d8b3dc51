"""manage.py add_model: a model for the catalogue, by the same rules as in the admin."""

import getpass
import json
import sys
from argparse import ArgumentParser
from typing import Any

from django.contrib.auth.models import Group
from django.core.management.base import BaseCommand, CommandError
from django.db import transaction
from django.forms.models import model_to_dict

from chat.model_check import check
from chat.model_form import LanguageModelForm
from chat.models import LanguageModel
from monitoring.control import announce


class Command(BaseCommand):
    help = "Add a model to the catalogue, or change the one of that name"

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("name", help="what users and clients call it")
        parser.add_argument("model", help="such as openai:gpt-5.2; with --base-url: its name there")
        parser.add_argument("--base-url", help="of an OpenAI-compatible server")
        parser.add_argument("--key-variable", help="the environment variable of the server that holds its API key")
        parser.add_argument("--key-stdin", action="store_true", help="read its API key, to be stored encrypted")
        parser.add_argument("--description")
        parser.add_argument("--system-prompt")
        parser.add_argument("--model-settings", metavar="JSON", help='such as {"temperature": 0.2}')
        parser.add_argument("--price", nargs=2, metavar=("INPUT", "OUTPUT"), help="US dollars for a million tokens")
        parser.add_argument("--attempts", type=int, help="requests at most, until a first token comes")
        parser.add_argument("--fallback", metavar="NAME", help="the model that answers while this one is down")
        parser.add_argument("--group", action="append", metavar="NAME", help="offer it to this group only (repeatable)")
        parser.add_argument("--default", action="store_true", help="it answers who names no model")
        parser.add_argument("--check", action="store_true", help="ask it for one word")

    def handle(self, *args: Any, **options: Any) -> None:
        there = LanguageModel.objects.filter(name=options["name"]).first()
        form = LanguageModelForm(self._data(there, options), instance=there)
        if not form.is_valid():
            said = (f"{field}: {problem}" for field, problems in form.errors.items() for problem in problems)
            raise CommandError("\n".join(said))
        with transaction.atomic():
            model = form.save()
        announce("models")
        self.stdout.write(f"{model.name} is {'changed' if there else 'added'}.")
        if options["check"]:
            (checked,) = check([model])
            if not checked.worked:
                raise CommandError(checked.said)
            self.stdout.write(checked.said)

    def _data(self, there: LanguageModel | None, options: dict[str, Any]) -> dict[str, Any]:
        """The form as a browser would send it: what is there, or the defaults, with what was said in its place."""
        data = model_to_dict(there or LanguageModel(), fields=LanguageModelForm.Meta.fields) if there else _defaults()
        data = {name: value for name, value in data.items() if value is not None}
        data["settings"] = json.dumps(data.get("settings", {}))
        said = ("model", "base_url", "key_variable", "description", "system_prompt", "attempts")
        data |= {"name": options["name"], **{name: options[name] for name in said if options[name] is not None}}
        if options["model_settings"]:
            data["settings"] = options["model_settings"]
        if options["price"]:
            data["input_usd_per_million"], data["output_usd_per_million"] = options["price"]
        if options["fallback"]:
            data["fallback"] = _pk(LanguageModel.objects.filter(name=options["fallback"]), options["fallback"])
        if options["group"]:
            data["groups"] = [_pk(Group.objects.filter(name=name), name) for name in options["group"]]
        if options["default"]:
            data["is_default"] = True
        if options["key_stdin"]:
            data["api_key"] = getpass.getpass("API key: ") if sys.stdin.isatty() else sys.stdin.readline().strip()
        return data


def _defaults() -> dict[str, Any]:
    return model_to_dict(
        LanguageModel(), fields=[n for n in LanguageModelForm.Meta.fields if n not in ("groups", "users")]
    )


def _pk(found: Any, name: str) -> int:
    row = found.first()
    if row is None:
        raise CommandError(f"There is no {found.model._meta.verbose_name} named {name}.")
    return int(row.pk)
