"""Conversations, and what each user may use: blocks, limits, and the usage that was counted.

Conversations and usage are written by `chat.usage` alone (one statement when a turn is let in, one
after each round of the model); blocks and limits by admins in the Django admin.
"""

from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models
from django.db.models.functions import Now

TITLE_CHARACTERS = 120


class Conversation(models.Model):
    """A session: whose it is and how it began. Made with its first turn that was let in."""

    session_id = models.UUIDField(primary_key=True, editable=False)
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="conversations", db_index=False
    )
    title = models.CharField(max_length=TITLE_CHARACTERS, help_text="the beginning of the first message")
    created_at = models.DateTimeField(db_default=Now())
    updated_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "conversations"
        # superusers may open them, and that is recorded; nobody can be given a right to it
        default_permissions = ()
        ordering: ClassVar[list[str]] = ["-updated_at", "-session_id"]
        indexes = [
            models.Index(
                "user", models.F("updated_at").desc(), models.F("session_id").desc(), name="idx_conversations_user"
            )
        ]

    def __str__(self) -> str:
        return self.title or str(self.session_id)


class Role(models.TextChoices):
    """Who said it."""

    USER = "user"
    ASSISTANT = "assistant"


class Message(models.Model):
    """What was said in a turn: the question when the turn is let in, the answer when it ends.

    An answer that broke off is kept as far as its user saw it; a turn without an answer has only
    the question.
    """

    conversation = models.ForeignKey(Conversation, on_delete=models.CASCADE, related_name="messages", db_index=False)
    role = models.CharField(max_length=10, choices=Role.choices)
    content = models.TextField()
    turn_id = models.UUIDField(editable=False)
    created_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "messages"
        default_permissions = ()
        ordering: ClassVar[list[str]] = ["id"]
        indexes = [models.Index("conversation", models.F("id").desc(), name="idx_messages_conversation")]

    def __str__(self) -> str:
        return f"{self.role}: {self.content[:60]}"


class UserBlock(models.Model):
    """A user who may not chat. The message is for the user, the reason for admins only."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="chat_block")
    message = models.TextField(blank=True, help_text="shown to the user; empty: a plain sentence")
    reason = models.TextField(blank=True, help_text="for admins; never shown to the user")
    blocked_at = models.DateTimeField(db_default=Now(), editable=False)
    blocked_by = models.ForeignKey(
        settings.AUTH_USER_MODEL, null=True, editable=False, on_delete=models.SET_NULL, related_name="+"
    )

    class Meta:
        db_table = "user_blocks"
        verbose_name = "block"
        ordering: ClassVar[list[str]] = ["-blocked_at"]

    def __str__(self) -> str:
        return f"{self.user} is blocked"


class UserLimits(models.Model):
    """Limits of one user's own. An empty number means the default of the config row
    `usage_limits`; to lift a limit altogether, tick its box."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="chat_limits")
    requests_per_day = models.PositiveIntegerField(null=True, blank=True)
    requests_unlimited = models.BooleanField(default=False)
    tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True)
    tokens_unlimited = models.BooleanField(default=False)
    cost_usd_per_day = models.DecimalField(max_digits=14, decimal_places=4, null=True, blank=True)
    cost_unlimited = models.BooleanField(default=False)
    turns_at_once = models.PositiveIntegerField(null=True, blank=True)
    turns_unlimited = models.BooleanField(default=False)

    PAIRS: ClassVar[tuple[tuple[str, str], ...]] = (
        ("requests_per_day", "requests_unlimited"),
        ("tokens_per_day", "tokens_unlimited"),
        ("cost_usd_per_day", "cost_unlimited"),
        ("turns_at_once", "turns_unlimited"),
    )

    class Meta:
        db_table = "user_limits"
        verbose_name = "limits of a user"
        verbose_name_plural = "limits of users"
        ordering: ClassVar[list[str]] = ["user__email"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(cost_usd_per_day__isnull=True) | models.Q(cost_usd_per_day__gte=0),
                name="cost_limit_not_negative",
            )
        ]

    def __str__(self) -> str:
        return f"limits of {self.user}"

    def clean(self) -> None:
        """A number and "unlimited" exclude each other."""
        problems: dict[str, Any] = {
            number: "Leave this empty, or untick “unlimited”."
            for number, unlimited in self.PAIRS
            if getattr(self, unlimited) and getattr(self, number) is not None
        }
        if problems:
            raise ValidationError(problems)


class DailyUsage(models.Model):
    """What one user used on one day (UTC, unless OMNI2_USAGE_TZ). Refused turns are not in it."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", db_index=False)
    day = models.DateField()
    requests = models.BigIntegerField(default=0, db_default=0)
    input_tokens = models.BigIntegerField(default=0, db_default=0)
    output_tokens = models.BigIntegerField(default=0, db_default=0)
    cost_usd = models.DecimalField(max_digits=18, decimal_places=8, default=0, db_default=0)

    class Meta:
        db_table = "daily_usage"
        default_permissions = ("view",)
        verbose_name = "usage of a day"
        verbose_name_plural = "usage by day"
        # not a composite primary key: the Django admin cannot show a table that has one
        constraints = [models.UniqueConstraint("user", "day", name="one_row_per_user_and_day")]
        indexes = [models.Index(models.F("day").desc(), name="idx_daily_usage_day")]

    def __str__(self) -> str:
        return f"{self.user_id} on {self.day}"


class TurnUsage(models.Model):
    """What one turn used so far. While it has no `ended_at` it is one of its user's running turns."""

    turn_id = models.UUIDField(primary_key=True, editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", db_index=False)
    session_id = models.UUIDField(editable=False)
    day = models.DateField(help_text="the day its usage is counted to: the one it began on")
    input_tokens = models.BigIntegerField(default=0, db_default=0)
    output_tokens = models.BigIntegerField(default=0, db_default=0)
    cost_usd = models.DecimalField(max_digits=18, decimal_places=8, default=0, db_default=0)
    started_at = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True)
    process_id = models.UUIDField(help_text="the web process that serves or served it")

    class Meta:
        db_table = "turn_usage"
        default_permissions = ("view",)
        verbose_name = "usage of a turn"
        verbose_name_plural = "usage by turn"
        indexes = [
            models.Index("user", name="idx_turn_usage_running", condition=models.Q(ended_at__isnull=True)),
            models.Index("user", models.F("started_at").desc(), name="idx_turn_usage_user"),
        ]

    def __str__(self) -> str:
        return f"usage of turn {self.turn_id}"
