"""Conversations, and what each user may use: blocks, limits, and the usage that was counted.

Conversations and usage are written by `chat.usage` alone (one statement when a turn is let in, one
after each round of the model); blocks and limits, models and tool servers by admins in the Django admin.
"""

from typing import Any, ClassVar

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import models, transaction
from django.db.models.functions import Now

from chat.stops import call_out
from monitoring.control import announce

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
    """A user who may not chat. The message is for the user, the reason for admins only.

    While there is one, his running turns are stopped (chat.stops): those that ran before, and one that was let in at
    the very moment."""

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
        return f"{self.user.get_full_name()} is blocked"

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Saved; every process looks at once, after the commit, what it must stop."""
        super().save(*args, **kwargs)
        transaction.on_commit(call_out, robust=True)


class Limits(models.Model):
    """Numbers of what may be used. An empty one says nothing, and what is less special counts: of a user his
    groups', then the default of the config row `usage_limits`. “Unlimited” lifts what those say; a number
    beside it still counts.

    Saving or deleting one tells every process.
    """

    requests_per_minute = models.PositiveIntegerField(null=True, blank=True)
    requests_per_day = models.PositiveIntegerField(null=True, blank=True)
    requests_per_month = models.PositiveIntegerField(null=True, blank=True)
    requests_unlimited = models.BooleanField(default=False)
    tokens_per_minute = models.PositiveBigIntegerField(null=True, blank=True)
    tokens_per_day = models.PositiveBigIntegerField(null=True, blank=True)
    tokens_per_month = models.PositiveBigIntegerField(null=True, blank=True)
    tokens_unlimited = models.BooleanField(default=False)
    cost_usd_per_day = models.DecimalField(max_digits=14, decimal_places=4, null=True, blank=True)
    cost_usd_per_month = models.DecimalField(max_digits=14, decimal_places=4, null=True, blank=True)
    cost_unlimited = models.BooleanField(default=False)
    turns_at_once = models.PositiveIntegerField(null=True, blank=True)
    turns_unlimited = models.BooleanField(default=False)

    KINDS: ClassVar[dict[str, tuple[str, ...]]] = {
        "requests_unlimited": ("requests_per_minute", "requests_per_day", "requests_per_month"),
        "tokens_unlimited": ("tokens_per_minute", "tokens_per_day", "tokens_per_month"),
        "cost_unlimited": ("cost_usd_per_day", "cost_usd_per_month"),
        "turns_unlimited": ("turns_at_once",),
    }
    """which numbers each “unlimited” is about"""

    class Meta:
        abstract = True

    def save(self, *args: Any, **kwargs: Any) -> None:
        super().save(*args, **kwargs)
        transaction.on_commit(_announce, robust=True)

    def delete(self, *args: Any, **kwargs: Any) -> tuple[int, dict[str, int]]:
        gone = super().delete(*args, **kwargs)
        transaction.on_commit(_announce, robust=True)
        return gone

    def clean(self) -> None:
        """“Unlimited” with all its numbers filled in would say nothing; and nothing may be below zero."""
        problems: dict[str, Any] = {}
        for unlimited, numbers in self.KINDS.items():
            if getattr(self, unlimited) and all(getattr(self, number) is not None for number in numbers):
                problems[unlimited] = "Untick this, or leave a number empty: the numbers leave nothing to lift."
        for number in self.KINDS["cost_unlimited"]:
            if (getattr(self, number) or 0) < 0:
                problems[number] = "Must not be below zero."
        if problems:
            raise ValidationError(problems)


def _announce() -> None:
    announce("usage limits")


def _sets_any(*numbers: str) -> models.Q:
    """One of these numbers is set."""
    found = models.Q()
    for number in numbers:
        found |= models.Q(**{f"{number}__isnull": False})
    return found


BEYOND_THE_DAY = (
    "requests_per_minute",
    "tokens_per_minute",
    "requests_per_month",
    "tokens_per_month",
    "cost_usd_per_month",
)


class UserLimits(Limits):
    """Limits of one user's own: they go before those of his groups and the default."""

    user = models.OneToOneField(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="chat_limits")

    class Meta:
        db_table = "user_limits"
        verbose_name = "limits of a user"
        verbose_name_plural = "limits of users"
        ordering: ClassVar[list[str]] = ["user__email"]
        constraints = [
            models.CheckConstraint(
                condition=models.Q(cost_usd_per_day__isnull=True) | models.Q(cost_usd_per_day__gte=0),
                name="cost_limit_not_negative",
            ),
            models.CheckConstraint(
                condition=models.Q(cost_usd_per_month__isnull=True) | models.Q(cost_usd_per_month__gte=0),
                name="month_cost_not_negative",
            ),
        ]
        # each process asks twice a second which of these are used at all
        indexes = [models.Index("user", name="idx_user_limits_beyond_day", condition=_sets_any(*BEYOND_THE_DAY))]

    def __str__(self) -> str:
        return f"limits of {self.user.get_full_name()}"


class GroupLimits(Limits):
    """Limits of a group's users. Of several groups the most generous number counts."""

    group = models.OneToOneField("auth.Group", on_delete=models.CASCADE, related_name="chat_limits")

    class Meta:
        db_table = "group_limits"
        verbose_name = "limits of a group"
        verbose_name_plural = "limits of groups"
        ordering: ClassVar[list[str]] = ["group__name"]
        constraints = [
            models.CheckConstraint(
                condition=(models.Q(cost_usd_per_day__isnull=True) | models.Q(cost_usd_per_day__gte=0))
                & (models.Q(cost_usd_per_month__isnull=True) | models.Q(cost_usd_per_month__gte=0)),
                name="group_cost_not_negative",
            )
        ]

    def __str__(self) -> str:
        return f"limits of {self.group}"


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
    read_characters = models.IntegerField(default=0, db_default=0)
    """of the conversation, its own question included, that the model was given in the first round"""
    read_tokens = models.IntegerField(default=0, db_default=0)
    """as the model counted that round, its system prompt and tools included; 0: it did not say"""

    class Meta:
        db_table = "turn_usage"
        default_permissions = ("view",)
        verbose_name = "usage of a turn"
        verbose_name_plural = "usage by turn"
        indexes = [
            models.Index("user", name="idx_turn_usage_running", condition=models.Q(ended_at__isnull=True)),
            models.Index("user", models.F("started_at").desc(), name="idx_turn_usage_user"),
            # which tokens belong to the last minute is known when a turn has ended
            models.Index(
                "user",
                models.F("ended_at").desc(),
                name="idx_turn_usage_ended",
                condition=models.Q(ended_at__isnull=False),
            ),
        ]

    def __str__(self) -> str:
        return f"usage of turn {self.turn_id}"


class Offered(models.Model):
    """Something that is offered to chat users: to everybody, or to some groups and some users only."""

    enabled = models.BooleanField(default=True)
    groups = models.ManyToManyField("auth.Group", blank=True, related_name="+", help_text="offered to these groups")
    users = models.ManyToManyField(
        settings.AUTH_USER_MODEL,
        blank=True,
        related_name="+",
        help_text="and to these users; neither: to everybody",
    )
    updated_at = models.DateTimeField(auto_now=True)

    class Meta:
        abstract = True


class LanguageModel(Offered):
    """A model of the catalogue. Without any that is the default, LLM_MODEL of the environment answers."""

    name = models.CharField(max_length=100, unique=True, help_text="what users and clients call it")
    description = models.CharField(max_length=200, blank=True)
    model = models.CharField(
        max_length=200, help_text="a pydantic-ai name such as openai:gpt-5.2; with a base URL: its name there"
    )
    base_url = models.CharField(max_length=500, blank=True, help_text="of an OpenAI-compatible server")
    key_variable = models.CharField(
        max_length=100, blank=True, help_text="the environment variable that holds its API key"
    )
    sealed_key = models.TextField(blank=True, editable=False)
    """the API key, encrypted (omni2.sealing)"""
    settings = models.JSONField(default=dict, blank=True, help_text="such as temperature and max_tokens")
    system_prompt = models.TextField(blank=True)
    history_tokens = models.PositiveIntegerField(default=6000, help_text="of the conversation so far, at most")
    takes_tools = models.BooleanField(default=True)
    input_usd_per_million = models.DecimalField(max_digits=12, decimal_places=6, null=True, blank=True)
    output_usd_per_million = models.DecimalField(max_digits=12, decimal_places=6, null=True, blank=True)
    first_token_timeout_s = models.PositiveIntegerField(default=90)
    next_token_timeout_s = models.PositiveIntegerField(default=60)
    attempts = models.PositiveSmallIntegerField(default=2, help_text="requests at most, until a first token comes")
    is_default = models.BooleanField(default=False, help_text="answers who names no model")
    fallback = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.SET_NULL,
        related_name="+",
        help_text="while this one is down",
    )

    class Meta:
        db_table = "language_models"
        verbose_name = "model"
        ordering: ClassVar[list[str]] = ["name"]
        constraints = [
            models.UniqueConstraint("is_default", name="one_default_model", condition=models.Q(is_default=True))
        ]

    def __str__(self) -> str:
        return self.name


class GroupPrompt(models.Model):
    """What models are told besides their own system prompt, in turns of a group's users."""

    group = models.OneToOneField("auth.Group", on_delete=models.CASCADE, related_name="chat_prompt")
    prompt = models.TextField()

    class Meta:
        db_table = "group_prompts"
        verbose_name = "prompt of a group"
        verbose_name_plural = "prompts of groups"
        ordering: ClassVar[list[str]] = ["group__name"]

    def __str__(self) -> str:
        return f"prompt of {self.group}"


class Transport(models.TextChoices):
    """How a tool server is reached."""

    HTTP = "http", "streamable HTTP"
    STDIO = "stdio", "a program of this machine (stdio)"


class ToolServer(Offered):
    """An MCP server whose tools models may use."""

    name = models.SlugField(max_length=40, unique=True, help_text="stands before the names of its tools")
    transport = models.CharField(max_length=10, choices=Transport.choices, default=Transport.HTTP)
    url = models.CharField(max_length=500, blank=True)
    command = models.CharField(max_length=500, blank=True)
    arguments = models.JSONField(default=list, blank=True, help_text="of the command: a list of strings")
    sealed_headers = models.TextField(blank=True, editable=False)
    """HTTP headers as JSON, encrypted (omni2.sealing)"""
    sealed_environment = models.TextField(blank=True, editable=False)
    """environment of the command as JSON, encrypted (omni2.sealing)"""
    timeout_s = models.PositiveIntegerField(default=30, help_text="of one call")
    allowed_tools = models.JSONField(default=list, blank=True, help_text="which of its tools; none: all")
    approved_tools = models.JSONField(default=list, blank=True, help_text="which of them wait for the user's yes")
    checked_at = models.DateTimeField(null=True, editable=False)
    problem = models.CharField(max_length=300, blank=True, editable=False)
    """why it could not be reached at the last check; empty: it could"""
    tools = models.JSONField(default=list, editable=False)
    """what it listed at the last check: [{"name", "description", "parameters"}]"""

    class Meta:
        db_table = "tool_servers"
        verbose_name = "tool server"
        ordering: ClassVar[list[str]] = ["name"]

    def __str__(self) -> str:
        return self.name


class ToolApproval(models.Model):
    """A tool call that waits for its user's yes, and what he said."""

    call = models.UUIDField(primary_key=True, editable=False)
    """the flow_id of its tool_call"""
    turn_id = models.UUIDField(editable=False)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, related_name="+", db_index=False)
    session_id = models.UUIDField(editable=False)
    server = models.CharField(max_length=40)
    tool = models.CharField(max_length=200)
    call_id = models.CharField(max_length=200, help_text="what the model calls this call; once in a turn")
    arguments = models.TextField(blank=True, help_text="as the model wrote them; empty once it is decided")
    expires_at = models.DateTimeField()
    asked_at = models.DateTimeField(db_default=Now())
    approved = models.BooleanField(null=True)
    """None: nobody has said anything yet"""
    decided_at = models.DateTimeField(null=True)

    class Meta:
        db_table = "tool_approvals"
        default_permissions = ()
        constraints = [models.UniqueConstraint("turn_id", "call_id", name="one_approval_per_call")]
        indexes = [
            models.Index("decided_at", name="idx_tool_approvals_decided"),
            models.Index("user", name="idx_tool_approvals_open", condition=models.Q(decided_at__isnull=True)),
        ]

    def __str__(self) -> str:
        return f"{self.tool} in turn {self.turn_id}"


class TurnStop(models.Model):
    """Somebody asked that a turn ends now. Its process sees it within a second, whichever that is."""

    turn_id = models.UUIDField(primary_key=True, editable=False)
    stopped_by = models.CharField(max_length=255, help_text="user_id")
    reason = models.CharField(max_length=500, blank=True, help_text="for admins")
    message = models.CharField(max_length=500, blank=True, help_text="shown to the user")
    stopped_at = models.DateTimeField(db_default=Now())

    class Meta:
        db_table = "turn_stops"
        default_permissions = ()
        permissions = [("stop", "Can stop running turns")]
        indexes = [models.Index("stopped_at", name="idx_turn_stops_at")]

    def __str__(self) -> str:
        return f"stop of turn {self.turn_id}"
