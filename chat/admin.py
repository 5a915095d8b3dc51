"""Blocks, limits, usage and conversations in the Django admin.

Blocks and limits are for whoever was given the right to change them; usage is only read.
Conversations are open to superusers alone, and each look at one is in the access log.
"""

from collections.abc import Iterable
from typing import Any, cast

from django import forms
from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.paginator import InfinitePaginator

from chat import admin_models, admin_tools  # noqa: F401 - they register their pages
from chat.allowances import allowances_of
from chat.limits import LIMITS
from chat.models import Conversation, DailyUsage, GroupLimits, Limits, Message, TurnUsage, UserBlock, UserLimits
from monitoring.config import RULES, usage_limits
from omni2.accounts.access import record_access
from omni2.accounts.models import User

MESSAGES_SHOWN = 500


@admin.register(UserBlock)
class UserBlockAdmin(ModelAdmin):  # type: ignore[misc]
    """Who may not chat. Ending a block is deleting it; Django's own log keeps both."""

    class Media:
        js = ("js/admin_names.js",)

    list_display = ("user", "message", "reason", "blocked_by", "blocked_at")
    list_select_related = ("user", "blocked_by")
    list_per_page = 50
    search_fields = ("user__email", "user__name", "reason")
    autocomplete_fields = ("user",)
    fields = ("user", "message", "reason", "blocked_by", "blocked_at")
    readonly_fields = ("blocked_by", "blocked_at")

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        # a block is not passed on to somebody else
        return (*self.readonly_fields, "user") if obj else self.readonly_fields

    def save_model(self, request: HttpRequest, obj: UserBlock, form: "forms.ModelForm[Any]", change: bool) -> None:
        if not change:
            obj.blocked_by = cast(User, request.user)
        super().save_model(request, obj, form, change)


class LimitsAdmin(ModelAdmin):  # type: ignore[misc]
    """Numbers by the time they are about, and beside them what is in force. A change counts at once."""

    whose = "user"
    list_per_page = 50
    fieldsets: Any = (
        ("A minute", {"fields": (("requests_per_minute", "tokens_per_minute"),)}),
        ("A day", {"fields": (("requests_per_day", "tokens_per_day", "cost_usd_per_day"),)}),
        ("A month", {"fields": (("requests_per_month", "tokens_per_month", "cost_usd_per_month"),)}),
        ("At once", {"fields": ("turns_at_once",)}),
        (
            "Unlimited",
            {
                "fields": (("requests_unlimited", "tokens_unlimited", "cost_unlimited", "turns_unlimited"),),
                "description": "Lifts what would count where a number above is empty; a number still counts.",
            },
        ),
    )

    def get_fieldsets(self, request: HttpRequest, obj: Model | None = None) -> Any:
        whose = (None, {"fields": (self.whose,)})
        return (whose, *self.fieldsets, ("In force", {"fields": ("in_force",)}))

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return (self.whose, "in_force") if obj else ("in_force",)

    def formfield_for_dbfield(self, db_field: Any, request: HttpRequest, **kwargs: Any) -> Any:
        if db_field.name in LABELS:
            kwargs["label"] = LABELS[db_field.name]
        return super().formfield_for_dbfield(db_field, request, **kwargs)

    @admin.display(description="requests")
    def requests(self, row: Limits) -> str:
        return _numbers(row, "requests_unlimited")

    @admin.display(description="tokens")
    def tokens(self, row: Limits) -> str:
        return _numbers(row, "tokens_unlimited")

    @admin.display(description="US dollars")
    def cost(self, row: Limits) -> str:
        return _numbers(row, "cost_unlimited")

    @admin.display(description="turns at once")
    def turns(self, row: Limits) -> str:
        return _numbers(row, "turns_unlimited")


def _numbers(row: Limits, unlimited: str) -> str:
    """What a row says of one kind of limit, and otherwise the default: `5 a minute, 500 a day (default)`."""
    said = []
    for name in row.KINDS[unlimited]:
        own, default = getattr(row, name), getattr(usage_limits(), name)
        when = "" if name == "turns_at_once" else f" a {name.rpartition('_')[2]}"
        if own is not None:
            said.append(f"{own:,.10g}{when}")
        elif not getattr(row, unlimited) and default is not None:
            said.append(f"{default:,.10g}{when} (default)")
    if getattr(row, unlimited):
        said.append("otherwise unlimited" if said else "unlimited")
    return ", ".join(said) or "unlimited (default)"


@admin.register(UserLimits)
class UserLimitsAdmin(LimitsAdmin):
    """Limits of a user's own, beside what is in force for him."""

    class Media:
        js = ("js/admin_names.js",)

    list_display = ("user", "requests", "tokens", "cost", "turns")
    list_display_links = ("user",)
    list_select_related = ("user",)
    search_fields = ("user__email", "user__name")
    autocomplete_fields = ("user",)

    @admin.display(description="what counts for this user")
    def in_force(self, row: UserLimits) -> str:
        if row.pk is None:
            return "Shown when these limits are saved."
        return _list_of(
            (LABELS[each.name], _amount(each.limit.limit), each.source, f"{each.limit.used:,.10g} used")
            for each in allowances_of(row.user)
        )


@admin.register(GroupLimits)
class GroupLimitsAdmin(LimitsAdmin):
    """Limits of a group's users. Of several groups the most generous number counts."""

    class Media:
        js = ("js/admin_names.js",)

    whose = "group"
    list_display = ("group", "requests", "tokens", "cost", "turns")
    list_display_links = ("group",)
    list_select_related = ("group",)
    search_fields = ("group__name",)

    @admin.display(description="what counts for a user of this group alone")
    def in_force(self, row: GroupLimits) -> str:
        if row.pk is None:
            return "Shown when these limits are saved."
        return _list_of(
            (LABELS[name], _amount(default if number is None and not lifted else number), source, "")
            for name, kind in LIMITS.items()
            for number, lifted, default in [(getattr(row, name), getattr(row, kind.unlimited), _default(name))]
            for source in ["group" if number is not None or lifted else "default"]
        )


LABELS = {rule.name: rule.label for rule in RULES["usage_limits"]}


def _default(name: str) -> Any:
    return getattr(usage_limits(), name)


def _amount(limit: float | None) -> str:
    return "no limit" if limit is None else f"{limit:,.10g}"


def _list_of(lines: Iterable[tuple[str, str, str, str]]) -> SafeString:
    line = '<li><strong>{}:</strong> {} <span class="text-subtle">({}{})</span></li>'
    shown = ((name, number, source, f"; {more}" if more else "") for name, number, source, more in lines)
    return format_html("<ul>{}</ul>", format_html_join("", line, shown))


class OnlyRead(ModelAdmin):  # type: ignore[misc]
    """Rows that Omni2 itself writes: to look at, never to change."""

    # made for millions of rows: no counting
    paginator = InfinitePaginator
    show_full_result_count = False
    list_per_page = 50
    actions = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(DailyUsage)
class DailyUsageAdmin(OnlyRead):
    list_display = ("day", "user", "requests", "input_tokens", "output_tokens", "cost_usd")
    list_select_related = ("user",)
    search_fields = ("user__email__exact",)
    search_help_text = "A user_id, whole"
    ordering = ("-day", "-id")


@admin.register(TurnUsage)
class TurnUsageAdmin(OnlyRead):
    list_display = ("started_at", "user", "running", "input_tokens", "output_tokens", "cost_usd", "turn_id")
    list_select_related = ("user",)
    list_filter = (("ended_at", admin.EmptyFieldListFilter),)
    search_fields = ("user__email__exact", "turn_id__exact")
    search_help_text = "A user_id or a turn_id, whole"
    # ids carry their time: the newest first by the key
    ordering = ("-turn_id",)

    @admin.display(boolean=True)
    def running(self, row: TurnUsage) -> bool:
        return row.ended_at is None


@admin.register(Conversation)
class ConversationAdmin(OnlyRead):
    """What people wrote. For superusers alone; the list shows beginnings, so a look at it is noted too."""

    list_display = ("updated_at", "user", "title")
    list_select_related = ("user",)
    search_fields = ("user__email__exact", "session_id__exact")
    search_help_text = "A user_id or a session_id, whole"
    ordering = ("-updated_at", "-session_id")
    fields = ("user", "session_id", "created_at", "updated_at", "said")
    readonly_fields = fields

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return bool(getattr(request.user, "is_superuser", False) and request.user.is_active)

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if self.has_view_permission(request):
            _note(request, None, {name: request.GET[name] for name in request.GET})
        response: HttpResponse = super().changelist_view(request, extra_context)
        return response

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Conversation | None:
        found: Conversation | None = super().get_object(request, object_id, from_field)
        if found is not None and self.has_view_permission(request):
            _note(request, found.user.user_id, {"session_id": str(found.session_id)})
        return found

    def get_queryset(self, request: HttpRequest) -> QuerySet[Conversation]:
        conversations: QuerySet[Conversation] = super().get_queryset(request).select_related("user")
        return conversations

    @admin.display(description="what was said")
    def said(self, conversation: Conversation) -> SafeString:
        newest = Message.objects.filter(conversation=conversation).order_by("-id")[:MESSAGES_SHOWN]
        lines = ((each.role, each.created_at.strftime("%Y-%m-%d %H:%M:%S"), each.content) for each in reversed(newest))
        line = (
            '<div class="mb-4"><strong>{}</strong> <small>{} UTC</small><div class="whitespace-pre-wrap">{}</div></div>'
        )
        return format_html("<div>{}</div>", format_html_join("", line, lines))


def _note(request: HttpRequest, subject: str | None, asked: dict[str, Any]) -> None:
    record_access(
        actor=cast(User, request.user),
        action="history_opened",
        subject_user_id=subject,
        detail={"opened": "admin conversation", **asked},
    )
