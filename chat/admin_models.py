"""The catalogue of models and the prompts of groups in the Django admin.

An API key goes in and never comes out: its field is empty whenever the page is shown, and beside it stands only
whether there is one. A check asks the model for one word, after what was entered is stored.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from django.contrib import admin, messages
from django.db import transaction
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse
from django.utils.html import format_html
from django.utils.safestring import SafeString
from unfold.admin import ModelAdmin
from unfold.decorators import action as unfold_action
from unfold.widgets import UnfoldAdminPasswordWidget, UnfoldBooleanSwitchWidget

from chat.llm import Price
from chat.model_check import CannotBeMade, check, list_price, made
from chat.model_form import LanguageModelForm
from chat.models import GroupPrompt, LanguageModel
from chat.wanted import NoKey, key_of, wanted_of
from monitoring.control import announce

CHECKED_AT_ONCE = 10
F = TypeVar("F", bound=Callable[..., Any])


def action(**options: Any) -> Callable[[F], F]:
    """unfold's own, with its type."""
    decorator: Callable[[F], F] = unfold_action(**options)
    return decorator


class AdminForm(LanguageModelForm):
    """The form in the admin's look."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # absent for whoever may only look
        if "api_key" in self.fields:
            self.fields["api_key"].widget = UnfoldAdminPasswordWidget(attrs={"autocomplete": "new-password"})
        if "forget_key" in self.fields:
            self.fields["forget_key"].widget = UnfoldBooleanSwitchWidget()


@admin.register(LanguageModel)
class LanguageModelAdmin(ModelAdmin):  # type: ignore[misc]
    """Which models there are, who may use them, and what they cost."""

    class Media:
        js = ("js/admin_names.js",)

    form = AdminForm
    list_display = ("name", "where", "enabled", "is_default", "key_state", "price", "fallback")
    list_filter = ("enabled", "is_default")
    list_select_related = ("fallback",)
    list_per_page = 50
    search_fields = ("name", "model", "description")
    autocomplete_fields = ("groups", "users")
    readonly_fields = ("key_is", "price_list", "updated_at")
    actions = ("check_selected",)
    actions_submit_line = ("check_now",)
    fieldsets = (
        (None, {"fields": ("name", "description", ("enabled", "is_default"))}),
        (
            "Which model",
            {
                "fields": ("model", "base_url", "takes_tools"),
                "description": "Saving makes it once, without a request. “Save and check” asks it for one word.",
            },
        ),
        (
            "API key",
            {
                "fields": ("key_is", "api_key", "forget_key", "key_variable"),
                "description": "Either a key, which is stored encrypted, or the name of an environment variable of the "
                "server that holds it. With neither, the provider's own variable is used (such as OPENAI_API_KEY); "
                "a server of one's own may need no key.",
            },
        ),
        (
            "Who may use it",
            {
                "fields": ("groups", "users"),
                "description": "Neither groups nor users: everybody. As a fallback it answers whoever was let in.",
            },
        ),
        ("What it is told", {"fields": ("system_prompt", "history_tokens", "settings")}),
        (
            "What it costs",
            {
                "fields": ("price_list", ("input_usd_per_million", "output_usd_per_million")),
                "description": "US dollars for a million tokens. Prices of one's own go before those of the list.",
            },
        ),
        (
            "When it fails",
            {
                "fields": ("first_token_timeout_s", "next_token_timeout_s", "attempts", "fallback"),
                "description": "It is asked again only before a first token came; then the fallback is asked.",
            },
        ),
        (None, {"fields": ("updated_at",)}),
    )

    # --- what is shown --------------------------------------------------------------------------

    @admin.display(description="model", ordering="model")
    def where(self, row: LanguageModel) -> str:
        return f"{row.model} at {row.base_url}" if row.base_url else row.model

    @admin.display(description="API key")
    def key_state(self, row: LanguageModel) -> str:
        said = self.key_is(row)
        return (
            "cannot be used" if said.startswith("Cannot") else "set" if row.sealed_key or row.key_variable else "none"
        )

    @admin.display(description="API key")
    def key_is(self, row: LanguageModel) -> str:
        """Whether there is one, and why it cannot be used; never the key."""
        try:
            key_of(row.sealed_key, row.key_variable)
        except NoKey as problem:
            return f"Cannot be used: {problem}."
        if row.sealed_key:
            return "A key is set."
        return f"In the environment variable {row.key_variable}." if row.key_variable else "None."

    @admin.display(description="$ per million tokens")
    def price(self, row: LanguageModel) -> str:
        if row.input_usd_per_million is not None:
            return _price(Price(row.input_usd_per_million, row.output_usd_per_million or row.input_usd_per_million))
        found = _listed(row)
        return f"{_price(found)} (list)" if found else "unknown"

    @admin.display(description="Price list (genai-prices)")
    def price_list(self, row: LanguageModel) -> SafeString | str:
        found = _listed(row) if row.model else None
        if found is None:
            return "The price list does not know this model: without prices of your own its cost is unknown."
        return format_html("{} (input / output)", _price(found))

    # --- what is done ---------------------------------------------------------------------------

    def save_model(self, request: HttpRequest, obj: LanguageModel, form: Any, change: bool) -> None:
        form.unset_other_defaults()
        super().save_model(request, obj, form, change)
        _announce()

    def delete_model(self, request: HttpRequest, obj: LanguageModel) -> None:
        super().delete_model(request, obj)
        _announce()

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[LanguageModel]) -> None:
        super().delete_queryset(request, queryset)
        _announce()

    @action(description="Save and check", permissions=["change"])
    def check_now(self, request: HttpRequest, obj: LanguageModel) -> None:
        """After the commit: nobody waits for a row while a model thinks."""
        transaction.on_commit(lambda: self._check(request, [obj]))

    @admin.action(description="Check selected models: one tiny request each", permissions=["change"])
    def check_selected(self, request: HttpRequest, queryset: QuerySet[LanguageModel]) -> None:
        self._check(request, list(queryset.order_by("name")[:CHECKED_AT_ONCE]))

    def _check(self, request: HttpRequest, models: list[LanguageModel]) -> None:
        for model, checked in zip(models, check(models), strict=True):
            level = messages.SUCCESS if checked.worked else messages.ERROR
            self.message_user(request, f"{model.name}: {checked.said}", level)

    def response_change(self, request: HttpRequest, obj: Model) -> HttpResponse:
        if "chat_languagemodel_check_now" in request.POST:
            # who checks looks at the same page for the answer
            posted = request.POST.copy()
            posted["_continue"] = "1"
            request.POST = posted  # type: ignore[assignment]
        response: HttpResponse = super().response_change(request, obj)
        return response


def _listed(row: LanguageModel) -> Price | None:
    """What the price list says; None for a model that it does not know or that cannot be made."""
    try:
        return list_price(made(wanted_of(row.model, row.base_url, "any")))
    except CannotBeMade:
        return None


def _price(price: Price) -> str:
    return f"{price.input_usd.normalize():f} / {price.output_usd.normalize():f}"


def _announce() -> None:
    transaction.on_commit(lambda: announce("models"), robust=True)


@admin.register(GroupPrompt)
class GroupPromptAdmin(ModelAdmin):  # type: ignore[misc]
    """What is told to models besides their own system prompt, when a user of the group asks."""

    list_display = ("group", "beginning")
    list_select_related = ("group",)
    list_per_page = 50
    search_fields = ("group__name", "prompt")
    autocomplete_fields = ("group",)

    @admin.display(description="prompt")
    def beginning(self, row: GroupPrompt) -> str:
        return row.prompt if len(row.prompt) <= 100 else row.prompt[:99] + "…"

    def save_model(self, request: HttpRequest, obj: GroupPrompt, form: Any, change: bool) -> None:
        super().save_model(request, obj, form, change)
        _announce()

    def delete_model(self, request: HttpRequest, obj: GroupPrompt) -> None:
        super().delete_model(request, obj)
        _announce()

    def delete_queryset(self, request: HttpRequest, queryset: QuerySet[GroupPrompt]) -> None:
        super().delete_queryset(request, queryset)
        _announce()
