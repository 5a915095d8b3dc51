"""People, their tokens, how often somebody tried to sign in, and who looked at whom.

A person is known everywhere by his e-mail address, lower-cased.
"""

import hashlib
import secrets
from datetime import datetime, timedelta
from typing import Any, ClassVar

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models, transaction
from django.db.models.functions import Least, Lower, Now
from django.utils import timezone

TOKEN_DAYS = 90
TOKEN_DAYS_MAX = 3650
TOKEN_NAME_LENGTH_MAX = 100
# 256 random bits, so a plain digest is enough: there is nothing to guess, and nothing to salt.
TOKEN_BYTES = 32
# The mark lets secret scanners and our own masking know a token when they see one.
MARK = "omni2_"
PREFIX_LENGTH = len(MARK) + 4


class UserManager(BaseUserManager["User"]):
    """Makes people; the e-mail address is lower-cased on the way in."""

    def create_user(self, email: str, password: str | None = None, **fields: Any) -> "User":
        user = self.model(email=email.strip().lower(), **fields)
        user.set_password(password)
        user.save(using=self._db)
        return user

    def create_superuser(self, email: str, password: str | None = None, **fields: Any) -> "User":
        return self.create_user(email, password, is_staff=True, is_superuser=True, **fields)

    def get_by_natural_key(self, username: str | None) -> "User":
        return self.get(email=(username or "").strip().lower())


class User(AbstractBaseUser, PermissionsMixin):
    """A person. Leaves by being deactivated; the address never changes once made."""

    email = models.EmailField(max_length=255, unique=True)
    name = models.CharField(max_length=150, blank=True)
    is_staff = models.BooleanField(default=False, help_text="may sign in to the admin pages")
    is_active = models.BooleanField(default=True)
    date_joined = models.DateTimeField(default=timezone.now)

    objects: ClassVar[UserManager] = UserManager()

    EMAIL_FIELD = "email"
    USERNAME_FIELD = "email"
    REQUIRED_FIELDS: ClassVar[list[str]] = []

    class Meta:
        db_table = "users"
        ordering = ["email"]
        constraints = [models.CheckConstraint(condition=models.Q(email=Lower("email")), name="email_is_lower_case")]

    def __str__(self) -> str:
        return self.email

    @property
    def user_id(self) -> str:
        """The canonical identity in checkpoints, URLs and Redis names."""
        return self.email

    def get_full_name(self) -> str:
        return self.name or self.email

    def get_short_name(self) -> str:
        return self.name or self.email.split("@")[0]

    def change_password(self, password: str, *, keep_tokens: bool = False) -> None:
        """Set and save a new password: other sessions end at once, and with them the tokens.

        Whoever changes a password because somebody else knows it would not think of the tokens
        that somebody may have made with it; `keep_tokens` is for those who know better.
        """
        with transaction.atomic():
            self.set_password(password)
            self.save(update_fields=["password"])
            if not keep_tokens:
                self.tokens.revoke()


class ApiTokenQuerySet(models.QuerySet["ApiToken"]):
    def with_state(self) -> "ApiTokenQuerySet":
        """Adds `state`, by PostgreSQL's clock: what was taken back stays so, then what has expired."""
        return self.annotate(
            state=models.Case(
                models.When(revoked_at__isnull=False, then=models.Value("revoked")),
                models.When(expires_at__lte=Now(), then=models.Value("expired")),
                default=models.Value("usable"),
            )
        )

    def usable(self) -> "ApiTokenQuerySet":
        """Neither revoked nor expired, by PostgreSQL's clock; the user's state is not looked at."""
        return self.filter(revoked_at=None, expires_at__gt=Now())

    def revoke(self) -> int:
        """Revoke them from now on and say how many were not revoked before; one statement."""
        return self.filter(revoked_at=None).update(revoked_at=Now())


class ApiTokenManager(models.Manager.from_queryset(ApiTokenQuerySet)):  # type: ignore[misc]
    def issue(
        self, user: User, *, name: str = "", days: float = TOKEN_DAYS, not_after: datetime | None = None
    ) -> "tuple[ApiToken, str]":
        """A new token and its text. The text is kept nowhere: this is the only time it is known."""
        text = MARK + secrets.token_urlsafe(TOKEN_BYTES)
        token = self.create(
            user=user,
            name=name,
            digest=ApiToken.digest_of(text),
            prefix=text[:PREFIX_LENGTH],
            # LEAST ignores a null
            expires_at=Least(Now() + timedelta(days=days), models.Value(not_after, models.DateTimeField())),
        )
        token.refresh_from_db(fields=["created_at", "expires_at"])
        return token, text


class ApiToken(models.Model):
    """What a program signs in with. Its text is never stored, only the SHA-256 of it."""

    user = models.ForeignKey(User, on_delete=models.CASCADE, related_name="tokens")
    name = models.CharField(max_length=TOKEN_NAME_LENGTH_MAX, blank=True, help_text="what it is for")
    digest = models.CharField(max_length=64, unique=True, editable=False)
    prefix = models.CharField(max_length=PREFIX_LENGTH, editable=False, help_text="how the token begins")
    created_at = models.DateTimeField(db_default=Now(), editable=False)
    expires_at = models.DateTimeField(editable=False)
    revoked_at = models.DateTimeField(null=True, editable=False)
    last_used_at = models.DateTimeField(null=True, editable=False, help_text="noted once a minute at most")

    objects: ClassVar[ApiTokenManager] = ApiTokenManager()

    class Meta:
        db_table = "api_tokens"
        verbose_name = "token"
        # made and revoked only: never edited, never deleted
        default_permissions = ()
        permissions = [("manage_tokens", "Can list and revoke everybody's tokens")]
        ordering = ["-created_at", "-id"]
        indexes = [models.Index("user", models.F("created_at").desc(), name="idx_api_tokens_user")]

    def __str__(self) -> str:
        return self.name or f"{self.prefix}…"

    @staticmethod
    def digest_of(text: str) -> str:
        return hashlib.sha256(text.encode()).hexdigest()


class SignInCount(models.Model):
    """How often somebody tried to sign in lately, per e-mail address and per network address.

    Written by `omni2.accounts.throttle` alone. The key is a digest: what a stranger types into
    the sign-in form is not kept.
    """

    key = models.CharField(max_length=64, primary_key=True)
    started_at = models.DateTimeField(db_index=True)
    count = models.IntegerField()

    class Meta:
        db_table = "sign_in_counts"
        default_permissions = ()

    def __str__(self) -> str:
        return f"{self.count} since {self.started_at}"


class AppendOnly(Exception):
    """Somebody tried to change or delete a line of the access log."""


class AccessLog(models.Model):
    """The watchers are watched: who enabled, watched, opened or exported what of whom.

    Append-only: here, and by a trigger in PostgreSQL that refuses UPDATE and DELETE.
    """

    actor = models.CharField(max_length=255, help_text="user_id of who did it")
    action = models.CharField(max_length=50)
    subject_user_id = models.CharField(max_length=255, null=True, help_text="whom it was about")
    detail = models.JSONField(default=dict, help_text="filters, reason, until when")
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "access_log"
        verbose_name = "access"
        verbose_name_plural = "access log"
        # nobody can be given a right to it: superusers read it, and that is all
        default_permissions = ()
        ordering = ["-created_at", "-id"]
        indexes = [
            models.Index(models.F("created_at").desc(), name="idx_access_log_time"),
            models.Index("subject_user_id", models.F("created_at").desc(), name="idx_access_log_subject"),
            models.Index("actor", models.F("created_at").desc(), name="idx_access_log_actor"),
        ]

    def __str__(self) -> str:
        return f"{self.actor}: {self.action} {self.subject_user_id or ''}".rstrip()

    def save(self, *args: Any, **kwargs: Any) -> None:
        if not self._state.adding:
            raise AppendOnly("a line of the access log is never changed")
        super().save(*args, **kwargs)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        raise AppendOnly("a line of the access log is never deleted")
