"""Tool servers in the Django admin: where they are, who may use which of their tools, and whether they answer.

Headers and environment are secrets: entered, kept encrypted, and shown by their names alone. A program runs as the
server's own user, so only superusers may add or change one. Each save asks the server for its tools; one that does
not answer is saved all the same, with what is wrong.
"""

import asyncio
from typing import Any, ClassVar
from urllib.parse import urlsplit

from django import forms
from django.conf import settings
from django.contrib import admin, messages
from django.db import transaction
from django.db.models import Model, QuerySet
from django.db.models.functions import Now
from django.http import HttpRequest
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.widgets import UnfoldAdminTextareaWidget, UnfoldAdminTextInputWidget

from chat.models import ToolServer, Transport
from chat.tool_rows import open_pairs, seal_pairs, server_rows
from chat.tool_servers import Checked, check
from monitoring import control
from omni2.sealing import CannotOpen

ONLY_SUPERUSERS = "Only superusers may add or change a tool server that is a program."
SWITCHED_OFF = "Tool servers that are programs are switched off here (OMNI2_STDIO_TOOLS)."


class _Pairs(forms.CharField):
    """Lines of a name and a secret value: `Name: value` or `NAME=value`. No value takes the name away."""

    def __init__(self, sign: str, example: str) -> None:
        self.sign = sign
        widget = UnfoldAdminTextareaWidget(attrs={"rows": 3, "autocomplete": "off", "spellcheck": "false"})
        super().__init__(required=False, widget=widget)
        self.example = example

    def clean(self, value: Any) -> dict[str, str]:
        pairs = {}
        for line in super().clean(value).splitlines():
            name, sign, secret = line.strip().partition(self.sign)
            if not line.strip():
                continue
            # the line itself may hold a secret: it is not repeated
            if not sign or not name.strip() or any(letter.isspace() for letter in name.strip()):
                raise forms.ValidationError(f"Each line must read {self.example}.")
            if not (name + secret).isprintable() or not (name + secret).isascii():
                raise forms.ValidationError("Names and values must be plain ASCII text.")
            pairs[name.strip()] = secret.strip()
        return pairs


class _Lines(forms.CharField):
    """A list of texts, one a line."""

    def __init__(self, **options: Any) -> None:
        widget = UnfoldAdminTextareaWidget(attrs={"rows": 4, "spellcheck": "false"})
        super().__init__(required=False, widget=widget, strip=False, **options)

    def prepare_value(self, value: Any) -> Any:
        return "\n".join(map(str, value)) if isinstance(value, list) else value

    def clean(self, value: Any) -> list[str]:
        return [line.strip() for line in super().clean(value).splitlines() if line.strip()]


class ToolServerForm(forms.ModelForm):  # type: ignore[type-arg]
    """A row, with its secrets to be entered and its tools to be chosen."""

    arguments = _Lines(help_text="of the command, one a line")
    headers = _Pairs(":", "Name: value")
    environment = _Pairs("=", "NAME=value")
    allowed_tools = forms.MultipleChoiceField(
        required=False, widget=forms.CheckboxSelectMultiple, help_text="none chosen: all of them"
    )
    approved_tools = forms.MultipleChoiceField(
        required=False, widget=forms.CheckboxSelectMultiple, help_text="each call waits for the user's yes"
    )

    class Meta:
        model = ToolServer
        fields = (
            "name",
            "transport",
            "url",
            "headers",
            "command",
            "arguments",
            "environment",
            "timeout_s",
            "enabled",
            "groups",
            "users",
            "allowed_tools",
            "approved_tools",
        )
        widgets: ClassVar[dict[str, Any]] = {"url": UnfoldAdminTextInputWidget, "command": UnfoldAdminTextInputWidget}

    may_run_programs = False
    """put by the admin: whether whoever fills this in is a superuser"""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        row = self.instance
        fields: dict[str, Any] = self.fields  # whoever may only look is given none of them
        for field, sealed in (("headers", row.sealed_headers), ("environment", row.sealed_environment)):
            if field in fields:
                fields[field].help_text = _help(fields[field].example, sealed)
        for field in ("allowed_tools", "approved_tools"):
            if field in fields:
                fields[field].choices = _choices(row, getattr(row, field))

    def clean_name(self) -> str:
        name = str(self.cleaned_data["name"])
        if "__" in name or name.endswith("_"):
            raise forms.ValidationError("Two underscores separate the server from its tool: use none of them here.")
        return name

    def clean_timeout_s(self) -> int:
        seconds = int(self.cleaned_data["timeout_s"])
        if not 1 <= seconds <= 300:
            raise forms.ValidationError("From 1 to 300 seconds.")
        return seconds

    def clean(self) -> dict[str, Any]:
        values: dict[str, Any] = super().clean() or self.cleaned_data
        if values.get("transport") == Transport.STDIO:
            self._clean_program(values)
        elif values.get("transport") == Transport.HTTP:
            problem = _url_problem(values.get("url", ""))
            if problem:
                self.add_error("url", problem)
            if values.get("command") or values.get("arguments") or values.get("environment"):
                self.add_error("command", "A server over HTTP has no command: choose the program, or empty this.")
        return values

    def _clean_program(self, values: dict[str, Any]) -> None:
        if not self.may_run_programs:
            self.add_error("transport", ONLY_SUPERUSERS)
        if not settings.STDIO_TOOLS:
            self.add_error("transport", SWITCHED_OFF)
        if not values.get("command"):
            self.add_error("command", "A program needs its command.")
        if values.get("url") or values.get("headers"):
            self.add_error("url", "A program has no URL and no headers: empty them, or choose HTTP.")

    def save(self, commit: bool = True) -> Any:
        row = self.instance
        if row.transport == Transport.HTTP:
            kept = {} if self._moved() else _opened(row.sealed_headers)
            row.sealed_headers = seal_pairs(_merged(kept, self.cleaned_data.get("headers") or {}))
            row.command, row.arguments, row.sealed_environment = "", [], ""
        else:
            # whoever changes the command says anew what it is to be given
            kept = {} if "command" in self.changed_data else _opened(row.sealed_environment)
            row.sealed_environment = seal_pairs(_merged(kept, self.cleaned_data.get("environment") or {}))
            row.url, row.sealed_headers = "", ""
        return super().save(commit=commit)

    def _moved(self) -> bool:
        """Whether it is another server's address now: what was a secret between us and the old one stays one."""
        return _origin(str(self.initial.get("url", ""))) != _origin(self.cleaned_data.get("url", ""))


def _help(example: str, sealed: str) -> str:
    try:
        names = ", ".join(sorted(open_pairs(sealed)))
    except CannotOpen:
        names = "some that cannot be opened any more (another SECRET_KEY): enter them again"
    known = f" Kept now: {names}." if names else ""
    return (
        f"Secret; one a line, {example}. What is kept is never shown again; a name without a value is removed.{known}"
    )


def _choices(row: ToolServer, chosen: Any) -> list[tuple[str, str]]:
    listed = {str(each.get("name")): str(each.get("description", "")) for each in row.tools if isinstance(each, dict)}
    for name in chosen if isinstance(chosen, list) else ():
        listed.setdefault(str(name), "not listed by the server at its last check")
    return [(name, f"{name}: {' '.join(said.split())[:120]}" if said else name) for name, said in listed.items()]


def _opened(sealed: str) -> dict[str, str]:
    try:
        return open_pairs(sealed)
    except CannotOpen:
        return {}


def _merged(kept: dict[str, str], entered: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in (kept | entered).items() if value}


def _origin(url: str) -> tuple[str, str]:
    try:
        parts = urlsplit(url)
    except ValueError:
        return ("", url)
    return (parts.scheme.lower(), parts.netloc.lower())


def _url_problem(url: str) -> str:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018 - raises for a port that is none
    except ValueError:
        return "This is no URL."
    if parts.scheme not in ("http", "https") or not parts.hostname:
        return "A server over HTTP needs a URL such as https://tools.example.com/mcp."
    if "@" in parts.netloc:
        return "No name and password in the URL, where they could be read: use a header."
    return ""


@admin.register(ToolServer)
class ToolServerAdmin(ModelAdmin):  # type: ignore[misc]
    """MCP servers whose tools models may use. See docs/tools.md."""

    class Media:
        js = ("js/admin_names.js",)

    form = ToolServerForm
    list_display = ("name", "transport", "where", "enabled", "tool_count", "state", "checked_at")
    list_filter = ("transport", "enabled")
    search_fields = ("name", "url", "command")
    filter_horizontal = ("groups",)
    autocomplete_fields = ("users",)
    readonly_fields = ("checked_at", "state", "listed")
    actions = ("check_now",)
    fieldsets = (
        (None, {"fields": ("name", "enabled", "transport")}),
        ("Over HTTP", {"fields": ("url", "headers")}),
        ("A program of this machine", {"fields": ("command", "arguments", "environment")}),
        ("Who may use it", {"fields": ("groups", "users"), "description": "Neither: everybody."}),
        ("Its tools", {"fields": ("allowed_tools", "approved_tools", "timeout_s")}),
        ("The last check", {"fields": ("checked_at", "state", "listed")}),
    )

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        if isinstance(obj, ToolServer) and obj.transport == Transport.STDIO and not _is_superuser(request):
            return False
        return bool(super().has_change_permission(request, obj))

    def get_form(self, request: HttpRequest, obj: Model | None = None, change: bool = False, **options: Any) -> Any:
        made = super().get_form(request, obj, change=change, **options)
        return type(made.__name__, (made,), {"may_run_programs": _is_superuser(request)})

    def save_model(self, request: HttpRequest, obj: ToolServer, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        transaction.on_commit(lambda: self._check(request, [obj.pk]))

    @admin.action(description="Check now: ask for the list of tools")
    def check_now(self, request: HttpRequest, queryset: QuerySet[ToolServer]) -> None:
        self._check(request, list(queryset.values_list("pk", flat=True)))

    def _check(self, request: HttpRequest, pks: list[int]) -> None:
        """Ask these servers, all at once, and say what they answered. A quarter of a minute at most; no transaction
        is open meanwhile when it is asked for after a save."""
        rows = [row for pk, row in server_rows.read().items() if pk in pks]
        for row, checked in zip(rows, asyncio.run(_checked(rows)), strict=True):
            note_check(row.pk, checked)
            if checked.problem:
                self.message_user(request, f"{row.name} does not answer: {checked.problem}", messages.WARNING)
            else:
                self.message_user(request, f"{row.name} answers and has {len(checked.tools)} tools.", messages.SUCCESS)
        control.announce("tool servers")

    @admin.display(description="where")
    def where(self, row: ToolServer) -> str:
        return row.url or row.command

    @admin.display(description="tools")
    def tool_count(self, row: ToolServer) -> int:
        return len(row.tools)

    @admin.display(description="state")
    def state(self, row: ToolServer) -> str:
        if row.checked_at is None:
            return "not checked yet"
        return row.problem or "answers"

    @admin.display(description="what it listed")
    def listed(self, row: ToolServer) -> SafeString:
        lines = ((str(each.get("name")), str(each.get("description", ""))) for each in row.tools)
        line = '<div class="mb-2"><strong>{}</strong><div class="whitespace-pre-wrap">{}</div></div>'
        return format_html("<div>{}</div>", format_html_join("", line, lines))


def _is_superuser(request: HttpRequest) -> bool:
    return bool(request.user.is_active and getattr(request.user, "is_superuser", False))


async def _checked(rows: list[Any]) -> list[Checked]:
    return list(await asyncio.gather(*map(check, rows)))


def note_check(pk: int, checked: Checked) -> None:
    """Keep what a check found. What a server listed before stays known while it does not answer. One statement."""
    found: dict[str, Any] = {"problem": checked.problem, "checked_at": Now()}
    if not checked.problem:
        found["tools"] = [tool.as_json() for tool in checked.tools]
    ToolServer.objects.filter(pk=pk).update(**found)
