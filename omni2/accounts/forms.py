"""The forms of the account pages; drawn by the templates, so no widget has a look of its own."""

from typing import Any

from django import forms
from django.contrib.auth.forms import AuthenticationForm, PasswordChangeForm
from django.core.exceptions import ValidationError
from django.views.decorators.debug import sensitive_variables

from omni2.accounts.models import TOKEN_DAYS, TOKEN_NAME_LENGTH_MAX, User
from omni2.accounts.password import check_old_password, check_sign_in
from omni2.accounts.serializers import PASSWORD_LENGTH_MAX
from omni2.accounts.throttle import TooManyTries

LIFETIMES = [(7, "7 days"), (30, "30 days"), (TOKEN_DAYS, "90 days"), (365, "1 year")]


class SignInForm(AuthenticationForm):
    """E-mail and password. `throttled` is set when there were too many tries."""

    username = forms.CharField(
        label="E-mail",
        max_length=255,
        widget=forms.EmailInput(attrs={"autocomplete": "username", "autofocus": True, "spellcheck": "false"}),
    )
    password = forms.CharField(
        max_length=PASSWORD_LENGTH_MAX,
        strip=False,
        widget=forms.PasswordInput(attrs={"autocomplete": "current-password"}),
    )
    throttled: TooManyTries | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.is_bound:
            # the second try: the address is there already
            del self.fields["username"].widget.attrs["autofocus"]
            self.fields["password"].widget.attrs["autofocus"] = True

    @sensitive_variables()
    def clean(self) -> dict[str, Any]:
        email, password = self.cleaned_data.get("username"), self.cleaned_data.get("password")
        if email and password and self.request is not None:
            try:
                self.user_cache = check_sign_in(self.request, email=email, password=password)
            except TooManyTries as problem:
                self.throttled = problem
                raise ValidationError(str(problem), code=problem.code) from None
            if self.user_cache is None:
                raise ValidationError("Wrong e-mail address or password.", code="invalid_credentials")
        return self.cleaned_data


class PasswordForm(PasswordChangeForm):
    """The old password and the new one twice; tokens end with the old one unless they are kept."""

    keep_tokens = forms.BooleanField(
        label="Keep my tokens working",
        required=False,
        help_text="Otherwise programs that use them stop at once, like your other browsers.",
    )
    throttled: TooManyTries | None = None

    def clean_old_password(self) -> str:
        password: str = self.cleaned_data["old_password"]
        try:
            right = check_old_password(self.user, password)
        except TooManyTries as problem:
            self.throttled = problem
            raise ValidationError(str(problem), code=problem.code) from None
        if not right:
            raise ValidationError("This is not your password.", code="password_incorrect")
        return password

    def save(self, commit: bool = True) -> User:
        self.user.change_password(
            self.cleaned_data["new_password1"], keep_tokens=bool(self.cleaned_data["keep_tokens"])
        )
        return self.user


class NewTokenForm(forms.Form):
    name = forms.CharField(
        label="What is it for?",
        max_length=TOKEN_NAME_LENGTH_MAX,
        widget=forms.TextInput(attrs={"placeholder": "laptop, nightly report …", "autocomplete": "off"}),
    )
    days = forms.TypedChoiceField(label="Ends after", choices=LIFETIMES, initial=TOKEN_DAYS, coerce=int)
