"""Turns and checkpoints in the admin: to look things up, never to change them.

For whoever has the right flows.view. Lists are made for millions of rows: no counting, no
DISTINCT, only filters an index can follow. The history pages show the same as trees.
"""

import json
from typing import Any

from django.contrib import admin
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import reverse
from django.utils.html import format_html
from unfold.admin import ModelAdmin
from unfold.contrib.filters.admin import RangeDateTimeFilter
from unfold.paginator import InfinitePaginator

from flows.history import as_wire
from flows.models import InteractionFlow, Turn
from flows.reader import VIEW
from flows.tree import ENDED_BY
from omni2.accounts.access import record_access

CHECKPOINTS = ["auth_check", "block_check", "usage_check", *sum(ENDED_BY.items(), ()), "error", "flow_end"]


class CheckpointFilter(admin.SimpleListFilter):
    """The names Omni2 itself writes; others are found by their user or session."""

    title = "checkpoint"
    parameter_name = "checkpoint"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(name, name) for name in CHECKPOINTS]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(checkpoint=self.value()) if self.value() else queryset


class LookedUp(ModelAdmin):  # type: ignore[misc]
    """Reading only, and every look is in the access log."""

    paginator = InfinitePaginator
    show_full_result_count = False
    list_per_page = 50
    list_filter_submit = True
    actions = None

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return request.user.has_perm(VIEW)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def changelist_view(self, request: HttpRequest, extra_context: dict[str, Any] | None = None) -> HttpResponse:
        if self.has_view_permission(request):
            self._note(request, None, {name: request.GET[name] for name in request.GET})
        response: HttpResponse = super().changelist_view(request, extra_context)
        return response

    def get_object(self, request: HttpRequest, object_id: str, from_field: str | None = None) -> Any:
        found = super().get_object(request, object_id, from_field)
        if found is not None and self.has_view_permission(request):
            self._note(request, found.user_id, {"id": object_id})
        return found

    def _note(self, request: HttpRequest, subject: str | None, asked: dict[str, Any]) -> None:
        actor = request.user.get_username()
        if subject != actor:
            opened = {"opened": f"admin {self.opts.model_name}", **asked}
            record_access(actor=actor, action="history_opened", subject_user_id=subject, detail=opened)

    @admin.display(description="session")
    def session(self, row: Turn | InteractionFlow) -> str:
        return format_html('<a href="/flows/{0}/">{0}</a>', row.session_id)


@admin.register(Turn)
class TurnAdmin(LookedUp):
    list_display = (
        "started_at",
        "user_id",
        "outcome",
        "model",
        "checkpoints",
        "tool_calls",
        "duration_ms",
        "error",
        "session",
    )
    list_filter = (("outcome", admin.ChoicesFieldListFilter), ("started_at", RangeDateTimeFilter))
    search_fields = ("user_id__exact", "session_id__exact")
    search_help_text = "A user_id or a session_id, whole"
    ordering = ("-started_at", "-turn_id")


@admin.register(InteractionFlow)
class InteractionFlowAdmin(LookedUp):
    list_display = ("created_at", "user_id", "checkpoint", "session", "shown_metadata")
    list_filter = (CheckpointFilter, ("created_at", RangeDateTimeFilter))
    search_fields = ("user_id__exact", "session_id__exact")
    search_help_text = "A user_id or a session_id, whole"
    # The key's order: Omni2's ids carry their time, so this is newest first and one index walk.
    # Rows from outside have random ids and stand anywhere.
    ordering = ("-flow_id",)
    fields = (
        "flow_id",
        "user_id",
        "session",
        "turn_id",
        "checkpoint",
        "parent_id",
        "whole_metadata",
        "created_at",
    )
    readonly_fields = fields

    @admin.display(description="metadata")
    def shown_metadata(self, row: InteractionFlow) -> str:
        text = json.dumps(as_wire(row)["metadata"], ensure_ascii=False)
        return text if len(text) <= 120 else text[:119] + "…"

    @admin.display(description="metadata")
    def whole_metadata(self, row: InteractionFlow) -> str:
        text = json.dumps(as_wire(row)["metadata"], ensure_ascii=False, indent=2)
        return format_html('<pre class="whitespace-pre-wrap">{}</pre>', text)

    @admin.display(description="parent")
    def parent_id(self, row: InteractionFlow) -> str:
        if row.parent_id is None:
            return "-"
        address = reverse("admin:flows_interactionflow_change", args=[row.parent_id])
        return format_html('<a href="{}">{}</a>', address, row.parent_id)
