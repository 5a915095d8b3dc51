"""Blocks, limits, usage and conversations in the Django admin.

Blocks and limits are for whoever was given the right to change them; usage is only read.
Conversations are open to superusers alone, and each look at one is in the access log.
"""

from typing import Any, cast

from django import forms
from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.paginator import InfinitePaginator

from chat import admin_models  # noqa: F401 - registers its pages
from chat.models import Conversation, DailyUsage, Message, TurnUsage, UserBlock, UserLimits
from monitoring.config import usage_limits
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


@admin.register(UserLimits)
class UserLimitsAdmin(ModelAdmin):  # type: ignore[misc]
    """Limits of a user's own, beside what is in force for everybody else."""

    class Media:
        js = ("js/admin_names.js",)

    list_display = ("user", "requests", "tokens", "cost", "turns")
    list_select_related = ("user",)
    list_per_page = 50
    search_fields = ("user__email", "user__name")
    autocomplete_fields = ("user",)
    fieldsets = (
        (None, {"fields": ("user",)}),
        ("A day", {"fields": UserLimits.PAIRS[:3], "description": "An empty number is the default of everybody."}),
        ("At once", {"fields": UserLimits.PAIRS[3:]}),
    )

    def get_readonly_fields(self, request: HttpRequest, obj: Model | None = None) -> tuple[str, ...]:
        return ("user",) if obj else ()

    @admin.display(description="requests a day")
    def requests(self, row: UserLimits) -> str:
        return _limit(row, "requests_per_day", "requests_unlimited")

    @admin.display(description="tokens a day")
    def tokens(self, row: UserLimits) -> str:
        return _limit(row, "tokens_per_day", "tokens_unlimited")

    @admin.display(description="US dollars a day")
    def cost(self, row: UserLimits) -> str:
        return _limit(row, "cost_usd_per_day", "cost_unlimited")

    @admin.display(description="turns at once")
    def turns(self, row: UserLimits) -> str:
        return _limit(row, "turns_at_once", "turns_unlimited")


def _limit(row: UserLimits, number: str, unlimited: str) -> str:
    if getattr(row, unlimited):
        return "unlimited"
    own = getattr(row, number)
    if own is not None:
        return f"{own:,.10g}"
    default = getattr(usage_limits(), number)
    return "unlimited (default)" if default is None else f"{default:,.10g} (default)"


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
