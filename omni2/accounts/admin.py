"""People, groups, tokens and the access log in the Django admin.

Nothing here is deleted: a person is deactivated, a token revoked, the access log only read.
"""

import json
from collections.abc import Callable
from typing import Any, TypeVar

from django import forms
from django.contrib import admin, messages
from django.contrib.admin import SimpleListFilter
from django.contrib.auth.admin import GroupAdmin as DjangoGroupAdmin
from django.contrib.auth.admin import UserAdmin as DjangoUserAdmin
from django.contrib.auth.models import Group, Permission
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest
from unfold.admin import ModelAdmin
from unfold.decorators import display as unfold_display
from unfold.forms import AdminPasswordChangeForm, UserChangeForm, UserCreationForm
from unfold.widgets import (
    UnfoldAdminCheckboxSelectMultipleWidget,
    UnfoldAdminEmailInputWidget,
    UnfoldAdminTextInputWidget,
)

from omni2.accounts.models import AccessLog, ApiToken, User

F = TypeVar("F", bound=Callable[..., Any])

# Only those who may everything may make others so: a right to edit people must not grow by itself.
RIGHTS = ("is_staff", "is_superuser", "groups", "user_permissions")


# Rights to Django's own tables, which nobody uses here, and to delete people, which nobody can.
FOREIGN_RIGHTS = (
    Q(content_type__app_label__in=("admin", "contenttypes", "sessions"))
    | Q(content_type__app_label="auth", content_type__model="permission")
    | Q(content_type__app_label="accounts", codename="delete_user")
)


def display(**options: Any) -> Callable[[F], F]:
    """unfold's own, with its type."""
    decorator: Callable[[F], F] = unfold_display(**options)
    return decorator


class NewPersonForm(UserCreationForm):  # type: ignore[misc]
    """E-mail and name; the password may be left out for people who only use tokens."""

    class Meta:
        model = User
        fields = ("email", "name")
        field_classes: dict[str, type[forms.Field]] = {}
        widgets = {"email": UnfoldAdminEmailInputWidget, "name": UnfoldAdminTextInputWidget}

    def clean_email(self) -> str:
        return str(self.cleaned_data["email"]).strip().lower()


class PersonForm(UserChangeForm):  # type: ignore[misc]
    class Meta:
        model = User
        fields = "__all__"
        field_classes: dict[str, type[forms.Field]] = {}


class PersonPasswordForm(AdminPasswordChangeForm):  # type: ignore[misc]
    """A new password ends the person's sessions and tokens, like one of his own choice; his first
    one has nothing to end, and programs that chat for him go on."""

    def save(self, commit: bool = True) -> User:
        had_one = self.user.has_usable_password()
        user: User = super().save(commit)
        if had_one:
            user.tokens.revoke()
        return user


class OwnRights:
    """Rights and groups as boxes to tick, under their own names, and only those that mean something here.

    Django's list needs Ctrl-click, and a plain click in it takes every other right away.
    """

    filter_horizontal = ()

    class Media:
        css = {"all": ["accounts/accounts.css"]}

    def formfield_for_manytomany(self, db_field: Any, request: HttpRequest, **options: Any) -> Any:
        options["widget"] = UnfoldAdminCheckboxSelectMultipleWidget()
        field = super().formfield_for_manytomany(db_field, request, **options)  # type: ignore[misc]
        if db_field.related_model is Permission:
            field.queryset = field.queryset.exclude(FOREIGN_RIGHTS)
            field.label_from_instance = _right
        field.help_text = ""
        return field


def _right(permission: Permission) -> str:
    return f"{permission.name} ({permission.content_type.app_label}.{permission.codename})"


class NeverDeleted:
    def has_delete_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


class ReadOnly(NeverDeleted):
    def has_add_permission(self, request: HttpRequest) -> bool:
        return False

    def has_change_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return False


@admin.register(User)
class UserAdmin(OwnRights, NeverDeleted, DjangoUserAdmin, ModelAdmin):  # type: ignore[misc, type-arg]
    form = PersonForm
    add_form = NewPersonForm
    change_password_form = PersonPasswordForm
    list_display = ("email", "name", "state", "role", "last_login", "date_joined")
    list_display_links = ("email", "name")
    list_filter = ("is_active", "is_staff", "is_superuser", "groups")
    search_fields = ("email", "name")
    search_help_text = "E-mail or name"
    ordering = ("email",)
    list_per_page = 50
    actions = ("activate", "deactivate", "revoke_tokens")
    readonly_fields = ("last_login", "date_joined")
    fieldsets = (
        (None, {"fields": ("email", "name", "password", "is_active")}),
        ("Rights", {"fields": RIGHTS}),
        ("Times", {"fields": ("last_login", "date_joined")}),
    )
    add_fieldsets = ((None, {"fields": ("email", "name", "usable_password", "password1", "password2")}),)

    def get_queryset(self, request: HttpRequest) -> QuerySet[User]:
        people: QuerySet[User] = super().get_queryset(request).prefetch_related("groups")
        return people

    def get_readonly_fields(self, request: HttpRequest, obj: User | None = None) -> tuple[str, ...]:
        fields = tuple(super().get_readonly_fields(request, obj))
        if obj is not None:
            fields += ("email",)
        if obj is not None and obj.pk == request.user.pk:
            # nobody locks himself out by a slip
            fields += ("is_active", "is_superuser", "is_staff")
        if not request.user.is_superuser:
            fields += RIGHTS
        return tuple(dict.fromkeys(fields))

    def has_change_permission(self, request: HttpRequest, obj: User | None = None) -> bool:
        if obj is not None and obj.is_superuser and not request.user.is_superuser:
            return False
        return bool(super().has_change_permission(request, obj))

    @display(description="state", label={"active": "success", "inactive": "danger"}, ordering="is_active")
    def state(self, user: User) -> str:
        return "active" if user.is_active else "inactive"

    @display(description="role")
    def role(self, user: User) -> str:
        titles = ["superuser"] if user.is_superuser else ["staff"] if user.is_staff else []
        return ", ".join(titles + [group.name for group in user.groups.all()]) or "—"

    @admin.action(description="Activate", permissions=["change"])
    def activate(self, request: HttpRequest, people: QuerySet[User]) -> None:
        self._set_active(request, people, active=True)

    @admin.action(description="Deactivate: sessions and tokens stop at once", permissions=["change"])
    def deactivate(self, request: HttpRequest, people: QuerySet[User]) -> None:
        self._set_active(request, people, active=False)

    @admin.action(description="Revoke all their tokens", permissions=["change"])
    def revoke_tokens(self, request: HttpRequest, people: QuerySet[User]) -> None:
        people = self._within_reach(request, people)
        count = ApiToken.objects.filter(user__in=people).revoke()
        for user in people:
            self.log_change(request, user, "Revoked all tokens.")
        messages.success(request, f"Revoked {count} token{'' if count == 1 else 's'}.")

    def _set_active(self, request: HttpRequest, people: QuerySet[User], *, active: bool) -> None:
        changed = list(
            self._within_reach(request, people).filter(is_active=not active).exclude(email=request.user.get_username())
        )
        User.objects.filter(email__in=[user.email for user in changed]).update(is_active=active)
        word = "Activated" if active else "Deactivated"
        for user in changed:
            self.log_change(request, user, f"{word}.")
        messages.success(request, f"{word} {len(changed)} of {people.count()}.")

    @staticmethod
    def _within_reach(request: HttpRequest, people: QuerySet[User]) -> QuerySet[User]:
        return people if request.user.is_superuser else people.filter(is_superuser=False)


admin.site.unregister(Group)


@admin.register(Group)
class GroupAdmin(OwnRights, DjangoGroupAdmin, ModelAdmin):  # type: ignore[misc]
    list_display = ("name", "rights")

    def get_queryset(self, request: HttpRequest) -> QuerySet[Group]:
        groups: QuerySet[Group] = super().get_queryset(request).prefetch_related("permissions__content_type")
        return groups

    @display(description="rights")
    def rights(self, group: Group) -> str:
        names = (f"{each.content_type.app_label}.{each.codename}" for each in group.permissions.all())
        return ", ".join(sorted(names)) or "—"


class TokenStateFilter(SimpleListFilter):
    title = "state"
    parameter_name = "state"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, str]]:
        return [("usable", "usable"), ("expired", "expired"), ("revoked", "revoked")]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Model]) -> QuerySet[Model]:
        return queryset.filter(state=self.value()) if self.value() else queryset


@admin.register(ApiToken)
class ApiTokenAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    """Everybody's tokens, for superusers and staff with accounts.manage_tokens. Never a token's text."""

    list_display = ("user", "name", "begins_with", "state", "created_at", "last_used_at", "expires_at")
    list_filter = (TokenStateFilter,)
    list_select_related = ("user",)
    search_fields = ("user__email", "user__name", "name", "prefix")
    search_help_text = "Owner, name, or how the token begins"
    fields = ("user", "name", "begins_with", "state", "created_at", "last_used_at", "expires_at", "revoked_at")
    readonly_fields = fields
    list_per_page = 50
    actions = ("revoke",)

    def has_manage_permission(self, request: HttpRequest) -> bool:
        return request.user.has_perm("accounts.manage_tokens")

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return self.has_manage_permission(request)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_manage_permission(request)

    def get_queryset(self, request: HttpRequest) -> QuerySet[ApiToken]:
        tokens: QuerySet[ApiToken] = ApiToken.objects.with_state()
        return tokens

    @display(description="begins with")
    def begins_with(self, token: ApiToken) -> str:
        return f"{token.prefix}…"

    @display(description="state", label={"usable": "success", "expired": "warning", "revoked": "danger"})
    def state(self, token: Any) -> str:
        return str(token.state)

    @admin.action(description="Revoke: whatever uses it is refused at once", permissions=["manage"])
    def revoke(self, request: HttpRequest, tokens: QuerySet[ApiToken]) -> None:
        chosen = list(tokens.filter(revoked_at=None))
        count = ApiToken.objects.filter(pk__in=[token.pk for token in chosen]).revoke()
        for token in chosen:
            self.log_change(request, token, "Revoked.")
        messages.success(request, f"Revoked {count} token{'' if count == 1 else 's'}.")


@admin.register(AccessLog)
class AccessLogAdmin(ReadOnly, ModelAdmin):  # type: ignore[misc]
    """Read by superusers, edited by nobody."""

    list_display = ("when", "actor", "what", "about", "short_detail")
    list_filter = (("action", admin.AllValuesFieldListFilter),)
    search_fields = ("actor", "subject_user_id")
    search_help_text = "E-mail of who looked, or of whom"
    date_hierarchy = "created_at"
    fields = ("when", "actor", "what", "about", "whole_detail")
    readonly_fields = fields
    list_per_page = 100
    actions = None

    def has_view_permission(self, request: HttpRequest, obj: Model | None = None) -> bool:
        return bool(request.user.is_active and request.user.is_superuser)

    def has_module_permission(self, request: HttpRequest) -> bool:
        return self.has_view_permission(request)

    @display(description="when (UTC)", ordering="created_at")
    def when(self, line: AccessLog) -> str:
        return f"{line.created_at:%Y-%m-%d %H:%M:%S}"

    @display(description="whom", ordering="subject_user_id")
    def about(self, line: AccessLog) -> str:
        return line.subject_user_id or "—"

    @display(description="what", ordering="action")
    def what(self, line: AccessLog) -> str:
        return line.action.replace("_", " ")

    @display(description="detail")
    def short_detail(self, line: AccessLog) -> str:
        text = ", ".join(f"{key}: {value}" for key, value in line.detail.items() if value not in (None, "", {}, []))
        return text if len(text) <= 120 else text[:119] + "…"

    @display(description="detail")
    def whole_detail(self, line: AccessLog) -> str:
        return json.dumps(line.detail, indent=2, ensure_ascii=False)
