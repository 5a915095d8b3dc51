"""E-mail and password → a person, or no: the same way for the sign-in page and the token endpoint."""

from django.contrib.auth.hashers import make_password
from django.http import HttpRequest
from django.views.decorators.debug import sensitive_variables
from rest_framework.request import Request

from omni2.accounts.models import User
from omni2.accounts.throttle import address_of, count_attempt


@sensitive_variables("password")
def check_sign_in(request: HttpRequest | Request, *, email: str, password: str) -> User | None:
    """Whose e-mail and password these are; None for wrong ones, for strangers and for the inactive.

    Raises TooManyTries. All three refusals cost one hash, so that time tells nothing either.
    """
    email = email.strip().lower()
    attempt = count_attempt(email=email, address=address_of(request))
    user = User.objects.filter(email=email).first()
    if user is None or not user.has_usable_password():
        make_password(password)
        return None
    if not user.check_password(password) or not user.is_active:
        return None
    attempt.succeeded()
    return user


@sensitive_variables("password")
def check_old_password(user: User, password: str) -> bool:
    """Whether this is the password of somebody who is signed in. Raises TooManyTries.

    Counted like signing in: a browser left open must not become a place to guess.
    """
    attempt = count_attempt(email=user.email, address=None)
    if not user.check_password(password):
        return False
    attempt.succeeded()
    return True
