"""Monitored users and settings in the Django admin.

A period is begun, put off and ended here by the same three verbs as in the API, so every change is
in the access log; nothing is edited freely and nothing deleted.
"""

from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

from django import forms
from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import Model, OuterRef, Q, QuerySet, Subquery
from django.http import HttpRequest, JsonResponse
from unfold.admin import ModelAdmin
from unfold.decorators import display as unfold_display
from unfold.fields import UnfoldAdminAutocompleteModelChoiceField
from unfold.widgets import (
    UnfoldAdminDecimalFieldWidget,
    UnfoldAdminIntegerFieldWidget,
    UnfoldAdminTextareaWidget,
)

from monitoring import config
from monitoring.models import ACTIVE, ENDED, EXPIRED, MANAGE, MonitoredUser, Omni2Config
from omni2.accounts.models import User

F = TypeVar("F", bound=Callable[..., Any])
PEOPLE_A_PAGE = 20
DAY_HOURS = 24


def display(**options: Any) -> Callable[[F], F]:
    """unfold's own, with its type."""
    decorator: Callable[[F], F] = unfold_display(**options)
    return decorator


class StateFilter(admin.SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [(ACTIVE, "active"), (EXPIRED, "expired"), (ENDED, "ended by somebody")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        return queryset.filter(state=self.value()) if self.value() else queryset


class EnableForm(forms.ModelForm):  # type: ignore[type-arg]
    """Whom, how long, why. The same bounds as in the API."""

    person = UnfoldAdminAutocompleteModelChoiceField(
        "admin:monitoring_monitoreduser_people",
        queryset=User.objects.none(),
        to_field_name="email",
        label="User",
        help_text="Type a part of the name or the e-mail address.",
    )
    hours = forms.FloatField(label="For how many hours", widget=UnfoldAdminDecimalFieldWidget())

    class Meta:
        model = MonitoredUser
        fields = ("reason",)
        widgets = {"reason": UnfoldAdminTextareaWidget(attrs={"rows": 3})}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.longest = Omni2Config.flow_monitoring_now().max_ttl_hours
        self.fields["hours"].help_text = f"Fractions are allowed, {self.longest:.10g} at most."
        # only the chosen one: a list of everybody would be written into the page
        chosen = self.data.get("person", "") if self.is_bound else self.initial.get("person", "")
        person = cast(Any, self.fields["person"])
        person.label_from_instance = _label
        person.queryset = (
            User.objects.filter(email=chosen.strip().lower()) if _storable(chosen) else User.objects.none()
        )

    def clean_hours(self) -> float:
        hours = float(self.cleaned_data["hours"])
        if not config.ONE_SECOND_HOURS <= hours <= self.longest:
            raise forms.ValidationError(f"Between one second and {self.longest:.10g} hours.")
        return hours


def _storable(text: str) -> bool:
    return "\0" not in text


@admin.register(MonitoredUser)
class MonitoredUserAdmin(ModelAdmin):  # type: ignore[misc]
    """All periods, the running ones with what remains; for whoever has monitoring.manage."""

    form = EnableForm
    list_display = ("who", "state", "remaining", "enabled_by", "since", "until", "ended", "reason")
    list_filter = (StateFilter,)
    search_fields = ("user_id", "enabled_by", "reason")
    search_help_text = "E-mail of the user or of who enabled it, or the reason"
    ordering = ("-enabled_at", "-id")
    list_per_page = 50
    actions = ("enable_again", "extend_1_hour", "extend_8_hours", "stop")
    add_fieldsets = ((None, {"fields": ("person", "hours", "reason")}),)
    fieldsets = ((None, {"fields": ("who", "state", "remaining", "enabled_by", "since", "until", "ended", "reason")}),)
    readonly_fields = ("who", "state", "remaining", "since", "until", "ended")

    # --- who may what -------------------------------------------------------------------------

    def has_manage_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm(MANAGE)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_manage_permission(request)

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self.has_manage_permission(request)

    def has_add_permission(self, request: HttpRequest) -> bool:
        return self.has_manage_permission(request)

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    # --- the list -----------------------------------------------------------------------------

    def get_queryset(self, request: HttpRequest) -> QuerySet[MonitoredUser]:
        name = User.objects.filter(email=OuterRef("user_id")).values("name")
        periods: QuerySet[MonitoredUser] = MonitoredUser.objects.with_state().annotate(name=Subquery(name))
        return periods

    @display(description="user", header=True, ordering="user_id")
    def who(self, period: Any) -> list[str]:
        return [period.name, period.user_id] if period.name else [period.user_id]

    @display(description="state", label={ACTIVE: "success", EXPIRED: "warning", ENDED: "info"})
    def state(self, period: Any) -> str:
        return str(period.state)

    @display(description="remaining", ordering="expires_at")
    def remaining(self, period: Any) -> str:
        return in_words(period.remaining) if period.state == ACTIVE else "—"

    @display(description="since (UTC)", ordering="enabled_at")
    def since(self, period: MonitoredUser) -> str:
        return f"{period.enabled_at:%Y-%m-%d %H:%M}"

    @display(description="until (UTC)", ordering="expires_at")
    def until(self, period: MonitoredUser) -> str:
        return f"{period.expires_at:%Y-%m-%d %H:%M}"

    @display(description="ended (UTC)", ordering="ended_at")
    def ended(self, period: MonitoredUser) -> str:
        if period.ended_at is None or period.ended_by is None:
            return "—"
        return f"{period.ended_at:%Y-%m-%d %H:%M} by {period.ended_by}"

    # --- begin --------------------------------------------------------------------------------

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        given = super().get_changeform_initial_data(request)
        return {"hours": f"{Omni2Config.flow_monitoring_now().default_ttl_hours:.10g}", **given}

    def save_model(self, request: HttpRequest, obj: MonitoredUser, form: Any, change: bool) -> None:
        asked = form.cleaned_data
        ttl = timedelta(hours=asked["hours"])
        period = MonitoredUser.enable(
            asked["person"].user_id, by=cast(User, request.user), ttl=ttl, reason=asked["reason"] or None
        )
        obj.pk = period.pk
        obj.refresh_from_db()

    def get_custom_urls(self) -> tuple[tuple[str, str, Any], ...]:
        return (("people/", "monitoring_monitoreduser_people", self.people),)

    def people(self, request: HttpRequest, **_: Any) -> JsonResponse:
        """People whose name or e-mail holds `term`, twenty a page, as the field of the form wants them."""
        if not self.has_manage_permission(request):
            raise PermissionDenied
        term = request.GET.get("term", "").strip()[:100]
        page = request.GET.get("page", "1")
        start = (int(page) - 1) * PEOPLE_A_PAGE if page.isascii() and page.isdigit() and 0 < len(page) < 6 else 0
        found = User.objects.filter(Q(email__icontains=term) | Q(name__icontains=term)).order_by("name", "email")
        shown = list(found[max(start, 0) : max(start, 0) + PEOPLE_A_PAGE + 1])
        results = [{"id": user.user_id, "text": _label(user)} for user in shown[:PEOPLE_A_PAGE]]
        return JsonResponse({"results": results, "pagination": {"more": len(shown) > PEOPLE_A_PAGE}})

    # --- the verbs ----------------------------------------------------------------------------

    @admin.action(description="Enable again, for 24 hours from now", permissions=["manage"])
    def enable_again(self, request: HttpRequest, periods: QuerySet[MonitoredUser]) -> None:
        ttl = timedelta(hours=min(DAY_HOURS, Omni2Config.flow_monitoring_now().max_ttl_hours))
        self._each(request, periods, lambda user_id, by: MonitoredUser.enable(user_id, by=by, ttl=ttl), "Enabled")

    @admin.action(description="Extend by 1 hour", permissions=["manage"])
    def extend_1_hour(self, request: HttpRequest, periods: QuerySet[MonitoredUser]) -> None:
        self._extend(request, periods, ttl=timedelta(hours=1))

    @admin.action(description="Extend by 8 hours", permissions=["manage"])
    def extend_8_hours(self, request: HttpRequest, periods: QuerySet[MonitoredUser]) -> None:
        self._extend(request, periods, ttl=timedelta(hours=8))

    @admin.action(description="Stop now", permissions=["manage"])
    def stop(self, request: HttpRequest, periods: QuerySet[MonitoredUser]) -> None:
        self._each(request, periods, lambda user_id, by: MonitoredUser.stop(user_id, by=by), "Stopped")

    def _extend(self, request: HttpRequest, periods: QuerySet[MonitoredUser], *, ttl: timedelta) -> None:
        longest = timedelta(hours=Omni2Config.flow_monitoring_now().max_ttl_hours)
        self._each(
            request,
            periods,
            lambda user_id, by: MonitoredUser.extend(user_id, by=by, ttl=ttl, longest=longest),
            "Extended",
        )

    def _each(
        self,
        request: HttpRequest,
        periods: QuerySet[MonitoredUser],
        verb: Callable[[str, User], object],
        done: str,
    ) -> None:
        """The verb for each user of the chosen rows, once: a user may have many periods."""
        users = sorted(set(periods.values_list("user_id", flat=True)))
        count = sum(bool(verb(user_id, cast(User, request.user))) for user_id in users)
        text = f"{done} the monitoring of {count} of {len(users)} user{'' if len(users) == 1 else 's'}."
        if count < len(users):
            messages.warning(request, f"{text} The others are not monitored now.")
        else:
            messages.success(request, text)


def _label(user: User) -> str:
    return f"{user.name} ({user.email})" if user.name else user.email


def in_words(remaining: timedelta) -> str:
    """`2 d 3 h`, `4 h 05 min`, `7 min`, `less than a minute`."""
    minutes = int(remaining.total_seconds()) // 60
    if minutes < 1:
        return "less than a minute"
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


class ConfigForm(forms.ModelForm):  # type: ignore[type-arg]
    """A field for each value of the setting; what is wrong is said beside it."""

    class Meta:
        model = Omni2Config
        fields = ("is_active",)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        known = self.instance.config_value if isinstance(self.instance.config_value, dict) else {}
        for rule in config.RULES.get(self.instance.config_key, ()):
            self.initial[rule.name] = known.get(rule.name)

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or self.cleaned_data
        key = self.instance.config_key
        rules = config.RULES.get(key, ())
        value = {rule.name: _short(cleaned.get(rule.name)) for rule in rules}
        problems = config.problems_of(key, value)
        for name, text in problems.items():
            if name not in self.errors:
                self.add_error(name or None, text)
        # with a problem nothing is saved; the model, which is asked next, would say it a second time
        self.instance.config_value = config.default_value(key) if problems else config.without_empty_options(key, value)
        return cleaned


def _short(number: Any) -> Any:
    """24, not 24.0: as a person writes it."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _field(rule: config.Rule) -> forms.Field:
    kind = forms.IntegerField if rule.whole else forms.FloatField
    widget = UnfoldAdminIntegerFieldWidget if rule.whole else UnfoldAdminDecimalFieldWidget
    hint = f"{rule.bounds()}; empty: no limit" if rule.nullable else rule.bounds()
    return kind(label=rule.label, required=not rule.nullable, widget=widget(), help_text=hint)


@admin.register(Omni2Config)
class Omni2ConfigAdmin(ModelAdmin):  # type: ignore[misc]
    """The settings, for superusers. Their number is fixed; a change is in force within a second."""

    form = ConfigForm
    list_display = ("config_key", "values", "is_active", "changed")
    readonly_fields = ("config_key", "description", "changed")
    actions = None

    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False

    def get_fieldsets(self, request: HttpRequest, obj: Omni2Config | None = None) -> Any:
        names = tuple(rule.name for rule in config.RULES.get(obj.config_key, ())) if obj is not None else ()
        return ((None, {"fields": ("config_key", "description", *names, "is_active", "changed")}),)

    def get_form(
        self, request: HttpRequest, obj: Omni2Config | None = None, change: bool = False, **kwargs: Any
    ) -> Any:
        rules = config.RULES.get(obj.config_key, ()) if obj is not None else ()
        kwargs["form"] = type("ConfigForm", (ConfigForm,), {rule.name: _field(rule) for rule in rules})
        return super().get_form(request, obj, change=change, **kwargs)

    @display(description="values")
    def values(self, row: Omni2Config) -> str:
        if not isinstance(row.config_value, dict):
            return str(row.config_value)
        return ", ".join(f"{name} {'no limit' if value is None else value}" for name, value in row.config_value.items())

    @display(description="changed (UTC)", ordering="updated_at")
    def changed(self, row: Omni2Config) -> str:
        return f"{row.updated_at:%Y-%m-%d %H:%M}"
