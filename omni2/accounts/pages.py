"""The pages about oneself: signing in and out, the password, the tokens."""

from typing import Any, cast
from urllib.parse import urlencode

from django.contrib import messages
from django.contrib.auth.mixins import LoginRequiredMixin
from django.contrib.auth.views import LoginView, LogoutView, PasswordChangeView
from django.core.exceptions import PermissionDenied
from django.forms import BaseForm
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse, reverse_lazy
from django.utils.decorators import method_decorator
from django.views import View
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_GET

from omni2.accounts.forms import NewTokenForm, PasswordForm, SignInForm
from omni2.accounts.models import ApiToken, User

LISTED_AT_MOST = 200


def _say_when(response: HttpResponse, form: BaseForm) -> HttpResponse:
    """The same page as a 429 when there were too many tries."""
    throttled = getattr(form, "throttled", None)
    if throttled is not None:
        response.status_code = 429
        response["Retry-After"] = str(throttled.retry_after_s)
    return response


class SignIn(LoginView):
    """For everyone, the Django admin included."""

    template_name = "accounts/sign_in.html"
    authentication_form = SignInForm
    redirect_authenticated_user = True
    extra_context = {"title": "Sign in"}

    def form_invalid(self, form: Any) -> HttpResponse:
        return _say_when(super().form_invalid(form), form)


class SignOut(LogoutView):
    """POST only: a link on a stranger's page must not sign anybody out."""


@require_GET
@never_cache
def admin_sign_in(request: HttpRequest) -> HttpResponse:
    """Where the Django admin sends those it does not let in: to sign in, or they hear why not."""
    next_page = request.GET.get("next", reverse("admin:index"))
    if not request.user.is_authenticated:
        return HttpResponseRedirect(f"{reverse('sign_in')}?{urlencode({'next': next_page})}")
    if not request.user.is_staff:
        raise PermissionDenied("The admin pages are for staff.")
    return redirect("admin:index")


@require_GET
def admin_password(request: HttpRequest) -> HttpResponse:
    """The admin's own password page is ours."""
    return redirect("password")


@method_decorator(never_cache, name="dispatch")
class Password(LoginRequiredMixin, PasswordChangeView):
    """Change one's own password. This browser stays signed in, all others do not."""

    template_name = "accounts/password.html"
    form_class = PasswordForm
    success_url = reverse_lazy("password")
    extra_context = {"title": "Password"}

    def form_valid(self, form: Any) -> HttpResponse:
        messages.success(self.request, "Your password is changed.")
        return super().form_valid(form)

    def form_invalid(self, form: Any) -> HttpResponse:
        return _say_when(super().form_invalid(form), form)


@method_decorator(never_cache, name="dispatch")
class Tokens(LoginRequiredMixin, View):
    """One's own tokens: make, name, revoke."""

    def get(self, request: HttpRequest) -> HttpResponse:
        return self._show(request, NewTokenForm())

    def post(self, request: HttpRequest) -> HttpResponse:
        """Make one and show its text in this answer: it is in no URL, no session, no log, and not kept."""
        form = NewTokenForm(request.POST)
        if not form.is_valid():
            return self._show(request, form, status=400)
        token, text = ApiToken.objects.issue(
            cast(User, request.user), name=form.cleaned_data["name"], days=form.cleaned_data["days"]
        )
        return self._show(request, NewTokenForm(), made=token, text=text)

    def _show(self, request: HttpRequest, form: NewTokenForm, *, status: int = 200, **context: Any) -> HttpResponse:
        tokens = list(ApiToken.objects.with_state().filter(user=cast(User, request.user))[:LISTED_AT_MOST])
        context |= {
            "title": "Tokens",
            "form": form,
            "usable": [token for token in tokens if token.state == "usable"],
            "over": [token for token in tokens if token.state != "usable"],
        }
        return render(request, "accounts/tokens.html", context, status=status)


class RevokeToken(LoginRequiredMixin, View):
    """Take back one of one's own tokens, at once and for good."""

    def post(self, request: HttpRequest, token_id: int) -> HttpResponse:
        token = get_object_or_404(ApiToken, user=cast(User, request.user), pk=token_id)
        ApiToken.objects.filter(pk=token.pk).revoke()
        messages.success(request, f"{token} is revoked: whatever uses it is refused from now on.")
        return redirect("tokens")
