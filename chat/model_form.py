"""What may be said about a model of the catalogue: the rules behind its admin page and `manage.py add_model`."""

import re
from typing import Any, ClassVar
from urllib.parse import urlsplit

from django import forms

from chat import model_settings
from chat.model_check import CannotBeMade, made
from chat.models import LanguageModel
from chat.wanted import NoKey, fits_a_header, key_of, wanted_of
from omni2.sealing import seal

KEY_VARIABLE = re.compile(r"[A-Z][A-Z0-9_]*_(KEY|TOKEN)")
PLACEHOLDER = "no-key-is-needed-to-make-it"


class LanguageModelForm(forms.ModelForm):  # type: ignore[type-arg]
    """A model, with its key as something that is only ever written."""

    api_key = forms.CharField(
        required=False,
        strip=True,
        max_length=4000,
        label="New API key",
        widget=forms.PasswordInput(render_value=False, attrs={"autocomplete": "new-password"}),
        help_text="Stored encrypted and never shown again. Empty: the one that is set stays.",
    )
    forget_key = forms.BooleanField(required=False, label="Forget the stored API key")

    class Meta:
        model = LanguageModel
        fields = (
            "name",
            "description",
            "enabled",
            "is_default",
            "model",
            "base_url",
            "key_variable",
            "takes_tools",
            "settings",
            "system_prompt",
            "history_tokens",
            "input_usd_per_million",
            "output_usd_per_million",
            "first_token_timeout_s",
            "next_token_timeout_s",
            "attempts",
            "fallback",
            "groups",
            "users",
        )
        labels: ClassVar[dict[str, str]] = {
            "is_default": "Default",
            "base_url": "Base URL",
            "key_variable": "or environment variable",
            "history_tokens": "History, in tokens",
            "input_usd_per_million": "Input",
            "output_usd_per_million": "Output",
            "first_token_timeout_s": "First token within, seconds",
            "next_token_timeout_s": "Each further one within, seconds",
        }
        help_texts: ClassVar[dict[str, str]] = {
            "description": "shown to users beside the name",
            "base_url": "of an OpenAI-compatible server, such as https://models.example.com/v1; "
            "empty: the provider of the name",
            "key_variable": "of the server; in capitals, ending in _KEY or _TOKEN",
            "settings": f'a JSON object such as {{"temperature": 0.2}}; known are {", ".join(model_settings.SETTINGS)}',
            "system_prompt": "empty: one plain sentence; the prompts of the user's groups come after it",
            "takes_tools": "off for models that cannot call tools",
            "fallback": "asked when this one has failed for good",
        }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.was = {name: getattr(self.instance, name) for name in ("model", "base_url")}
        if self.instance.pk and "fallback" in self.fields:
            others = LanguageModel.objects.exclude(pk=self.instance.pk)
            self.fields["fallback"].queryset = others  # type: ignore[attr-defined]

    # --- one field ------------------------------------------------------------------------------

    def clean_base_url(self) -> str:
        url = str(self.cleaned_data["base_url"]).strip().rstrip("/")
        if not url:
            return ""
        try:
            parts = urlsplit(url)
            port_is_good = parts.port is None or parts.port > 0
        except ValueError:
            raise forms.ValidationError("This is no address.") from None
        if parts.scheme not in ("http", "https") or not parts.hostname or not port_is_good or not url.isprintable():
            raise forms.ValidationError("This has to be an address such as https://models.example.com/v1.")
        if parts.username is not None or parts.query or parts.fragment or " " in url:
            raise forms.ValidationError(
                "An address without user, password, “?” or “#”: the key has a field of its own."
            )
        return url

    def clean_key_variable(self) -> str:
        name = str(self.cleaned_data["key_variable"]).strip()
        if name and (not KEY_VARIABLE.fullmatch(name) or name == "SECRET_KEY" or name.startswith("OMNI2_")):
            raise forms.ValidationError(
                "The name of a variable that holds a model's key: in capitals, ending in _KEY or _TOKEN, and none of "
                "Omni2's own."
            )
        return name

    def clean_api_key(self) -> str:
        key = str(self.cleaned_data["api_key"])
        if not fits_a_header(key):
            raise forms.ValidationError("An API key is printable ASCII without spaces.")
        return key

    def clean_settings(self) -> dict[str, Any]:
        # an empty field comes as None
        said = self.cleaned_data["settings"]
        settings = {} if said is None else said
        if problems := model_settings.problems_of(settings):
            raise forms.ValidationError(problems)
        return dict(settings)

    def clean_attempts(self) -> int:
        return self._between("attempts", 1, 10)

    def clean_first_token_timeout_s(self) -> int:
        return self._between("first_token_timeout_s", 1, 600)

    def clean_next_token_timeout_s(self) -> int:
        return self._between("next_token_timeout_s", 1, 600)

    def clean_history_tokens(self) -> int:
        return self._between("history_tokens", 0, 10_000_000)

    def clean_input_usd_per_million(self) -> Any:
        return self._not_negative("input_usd_per_million")

    def clean_output_usd_per_million(self) -> Any:
        return self._not_negative("output_usd_per_million")

    def _between(self, name: str, low: int, high: int) -> int:
        value = int(self.cleaned_data[name])
        if not low <= value <= high:
            raise forms.ValidationError(f"Between {low:,} and {high:,}.")
        return value

    def _not_negative(self, name: str) -> Any:
        value = self.cleaned_data[name]
        if value is not None and value < 0:
            raise forms.ValidationError("A price is not negative.")
        return value

    # --- what hangs together --------------------------------------------------------------------

    def clean(self) -> dict[str, Any]:
        super().clean()
        said = self.cleaned_data
        if (said.get("input_usd_per_million") is None) != (said.get("output_usd_per_million") is None):
            self.add_error("output_usd_per_million", "Either both prices or none.")
        if said.get("is_default") and not said.get("enabled"):
            self.add_error("is_default", "A model that is not enabled answers nobody.")
        self._check_fallback(said.get("fallback"))
        self._check_key(said)
        if not self.errors:
            self._check_model(said)
        return said

    def _check_fallback(self, fallback: LanguageModel | None) -> None:
        """Follow the chain of fallbacks; one query a step."""
        seen: set[int] = set()
        while fallback is not None and fallback.pk not in seen:
            if fallback.pk == self.instance.pk:
                self.add_error("fallback", "This one is its own fallback then, by way of others or directly.")
                return
            seen.add(fallback.pk)
            fallback = fallback.fallback

    def _check_key(self, said: dict[str, Any]) -> None:
        has_key = bool(self.instance.sealed_key)
        keeps = has_key and not said.get("forget_key")
        if said.get("api_key") and said.get("forget_key"):
            self.add_error("forget_key", "A new key takes the place of the stored one by itself.")
        if said.get("api_key") and said.get("key_variable"):
            self.add_error("api_key", "Either a key or the variable that holds it, not both.")
        elif said.get("key_variable") and keeps:
            self.add_error("key_variable", "A key is stored: tick “forget” to use this variable instead of it.")
        if keeps and not said.get("api_key") and self._goes_elsewhere(said):
            # else whoever may edit models but does not know the key could have it sent to a server of his own
            self.add_error(
                "api_key", "The stored key was entered for another server: enter the key again, or forget it."
            )

    def _goes_elsewhere(self, said: dict[str, Any]) -> bool:
        def server(model: str, base_url: str) -> str:
            return base_url or model.partition(":")[0]

        now = {name: str(said.get(name, "")) for name in ("model", "base_url")}
        return server(**now) != server(**self.was)

    def _check_model(self, said: dict[str, Any]) -> None:
        """Make it, without a request."""
        try:
            key = said["api_key"] or (
                "" if said["forget_key"] else key_of(self.instance.sealed_key, said["key_variable"])
            )
        except NoKey:
            # another process may have it; and a key that cannot be opened is shown beside its field
            key = PLACEHOLDER
        try:
            made(wanted_of(said["model"], said["base_url"], key))
        except CannotBeMade as problem:
            self.add_error("model", str(problem))

    def _get_validation_exclusions(self) -> set[str]:
        # that there is one default only is no error here: a new one takes the old one's place
        return {*super()._get_validation_exclusions(), "is_default"}  # type: ignore[misc]

    def save(self, commit: bool = True) -> LanguageModel:
        """In a transaction: a new default unsets the old one."""
        if self.cleaned_data["api_key"]:
            self.instance.sealed_key = seal(self.cleaned_data["api_key"])
        elif self.cleaned_data["forget_key"]:
            self.instance.sealed_key = ""
        if commit:
            self.unset_other_defaults()
        saved: LanguageModel = super().save(commit)
        return saved

    def unset_other_defaults(self) -> None:
        """To be called right before the row is written."""
        if self.instance.is_default:
            LanguageModel.objects.filter(is_default=True).exclude(pk=self.instance.pk).update(is_default=False)
