"""The tables a checkpoint ends in: every row of a turn, and one summary per turn.

`interaction_flows` keeps the columns of the original description; what was added is nullable or
has a database default, so that an INSERT in the original's columns alone still works.
"""

import uuid
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from django.contrib.postgres.fields import ArrayField
from django.contrib.postgres.functions import RandomUUID
from django.contrib.postgres.indexes import GinIndex
from django.db import models
from django.db.models.functions import Now

from flows.saved_views import SavedView  # noqa: F401 (a model of this app)


class CurrentTimestamp(models.Func):
    """CURRENT_TIMESTAMP, as in the original table (Django's Now() is STATEMENT_TIMESTAMP())."""

    template = "CURRENT_TIMESTAMP"
    output_field = models.DateTimeField()


class RealField(models.FloatField):  # type: ignore[type-arg]  # not subscriptable when it runs
    """A float of 4 bytes: six digits are enough for a duration."""

    def db_type(self, connection: Any) -> str:
        return "real"


class InteractionFlow(models.Model):
    """One checkpoint. Written once, never changed; stored by `flows.store.store()` alone."""

    flow_id = models.UUIDField(primary_key=True, default=uuid.uuid4, db_default=RandomUUID(), editable=False)
    user_id = models.CharField(max_length=255)
    session_id = models.CharField(max_length=255)
    checkpoint = models.CharField(max_length=50)
    # The constraint is made by hand in the first migration: Django's own is DEFERRABLE
    # INITIALLY DEFERRED, and then an orphan passes its savepoint and fails at COMMIT.
    parent = models.ForeignKey(
        "self",
        null=True,
        blank=True,
        on_delete=models.DO_NOTHING,
        db_constraint=False,
        db_index=False,
        related_name="children",
    )
    metadata = models.JSONField(null=True, blank=True)
    created_at = models.DateTimeField(db_default=CurrentTimestamp())
    turn_id = models.UUIDField(null=True, blank=True)

    class Meta:
        db_table = "interaction_flows"
        default_permissions = ()
        permissions = [
            ("view", "Can read everybody's flows and their analytics"),
            ("watch", "Can watch monitored users live"),
            ("operate", "Can see the ledger: whether all that was started is stored"),
        ]
        indexes = [
            models.Index("user_id", models.F("created_at").desc(), name="idx_flows_user"),
            models.Index("session_id", models.F("created_at").asc(), name="idx_flows_session"),
            models.Index("parent_id", name="idx_flows_parent", condition=models.Q(parent__isnull=False)),
            models.Index("turn_id", "created_at", name="idx_flows_turn"),
        ]
        constraints = [
            # A turn ends once: the sweep and a process that comes back may both try.
            models.UniqueConstraint("turn_id", name="one_flow_end_per_turn", condition=models.Q(checkpoint="flow_end")),
        ]

    def __str__(self) -> str:
        return f"{self.checkpoint} {self.flow_id}"


class Outcome(models.TextChoices):
    """How a turn ended."""

    COMPLETED = "completed"
    REFUSED = "refused"
    FAILED = "failed"
    DISCONNECTED = "disconnected"
    STOPPED = "stopped"
    ABANDONED = "abandoned"


STAGES: Mapping[int, str] = MappingProxyType(
    {
        0: "begun",
        1: "signed_in",
        2: "not_blocked",
        3: "within_limits",
        4: "model_called",
        5: "first_token",
        6: "completed",
    }
)
"""How far a turn came; `Turn.stage` only ever grows."""

STATUS_CHARACTERS = 50
TOOL_CHARACTERS = 200


def tag(checkpoint: str | None = None, status: str | None = None) -> str:
    """The mark in `Turn.tags` of a turn that has a checkpoint of this name (None: of any), with this
    status (None: with any). At least one of the two is given."""
    if status is None:
        return f"c{checkpoint}"
    status = status[:STATUS_CHARACTERS]
    return f"a{status}" if checkpoint is None else f"s{checkpoint}={status}"


def tool_tag(tool: str) -> str:
    """The mark in `Turn.tags` of a turn that has a tool_call of this tool."""
    return f"t{tool[:TOOL_CHARACTERS]}"


class Turn(models.Model):
    """One turn's summary, kept in the transaction that stores its checkpoints.

    Durations in milliseconds, money in US dollars. A running turn has no outcome yet.
    """

    turn_id = models.UUIDField(primary_key=True, editable=False)
    session_id = models.CharField(max_length=255)
    user_id = models.CharField(max_length=255)
    started_at = models.DateTimeField()
    ended_at = models.DateTimeField(null=True)
    duration_ms = models.FloatField(null=True)
    outcome = models.CharField(max_length=20, null=True, choices=Outcome.choices)
    question = models.TextField(default="", help_text="the beginning of what was asked, as far as OMNI2_CAPTURE allows")
    model = models.CharField(max_length=200, null=True)
    checkpoints = models.IntegerField(default=0)
    tool_calls = models.IntegerField(default=0)
    input_tokens = models.BigIntegerField(default=0)
    output_tokens = models.BigIntegerField(default=0)
    cost_usd = models.DecimalField(max_digits=14, decimal_places=8, null=True)
    ttft_ms = models.FloatField(null=True)
    error = models.TextField(null=True, help_text="code of the last error or refusal")
    process_id = models.UUIDField(null=True, help_text="the web process that serves or served it")
    tags = ArrayField(models.TextField(), default=list, db_default=[], help_text="see tag() and tool_tag()")
    stage = models.SmallIntegerField(default=0, db_default=0, choices=list(STAGES.items()))
    # Parallel: what flows.tallies makes its figures of, in words of its own, with each step's time.
    steps = ArrayField(models.TextField(), default=list, db_default=[])
    step_ms = ArrayField(RealField(null=True), default=list, db_default=[])

    class Meta:
        db_table = "turns"
        default_permissions = ()
        indexes = [
            # With the outcome, so that a user's columns over time are counted without a look at his turns.
            models.Index(fields=["user_id", "-started_at", "-turn_id"], include=["outcome"], name="idx_turns_user"),
            models.Index("session_id", "started_at", name="idx_turns_session"),
            models.Index(models.F("started_at").desc(), models.F("turn_id").desc(), name="idx_turns_started"),
            # The sweep and "running now" look only at these few rows.
            models.Index("process_id", name="idx_turns_running", condition=models.Q(outcome__isnull=True)),
            models.Index("outcome", models.F("started_at").desc(), name="idx_turns_outcome"),
            # The slowest, and "slower than": only of turns that ended.
            models.Index(
                models.F("duration_ms").desc(),
                models.F("turn_id").desc(),
                name="idx_turns_duration",
                condition=models.Q(duration_ms__isnull=False),
            ),
            # What else turns are sorted by. Only those that ended are, so each is written once a turn.
            models.Index(
                models.F("ttft_ms").desc(),
                models.F("turn_id").desc(),
                name="idx_turns_first_token",
                condition=models.Q(outcome__isnull=False, ttft_ms__isnull=False),
            ),
            models.Index(
                (models.F("input_tokens") + models.F("output_tokens")).desc(),
                models.F("turn_id").desc(),
                name="idx_turns_tokens",
                condition=models.Q(outcome__isnull=False),
            ),
            models.Index(
                models.F("cost_usd").desc(),
                models.F("turn_id").desc(),
                name="idx_turns_cost",
                condition=models.Q(outcome__isnull=False, cost_usd__isnull=False),
            ),
            models.Index(
                models.F("tool_calls").desc(),
                models.F("turn_id").desc(),
                name="idx_turns_tools",
                condition=models.Q(outcome__isnull=False),
            ),
            # How many of a model ended how, without a look at the turns.
            models.Index(
                fields=["model", "-started_at"],
                include=["outcome"],
                name="idx_turns_model",
                condition=models.Q(model__isnull=False),
            ),
            # Why turns ended, and where: the few that did not go through.
            models.Index(
                "error",
                models.F("started_at").desc(),
                models.F("turn_id").desc(),
                name="idx_turns_error",
                condition=models.Q(error__isnull=False),
            ),
            models.Index(
                "stage",
                models.F("started_at").desc(),
                models.F("turn_id").desc(),
                name="idx_turns_stage",
                condition=models.Q(stage__lt=6),
            ),
            GinIndex(fields=["tags"], name="idx_turns_tags"),
            # idx_turns_question, for words in the question, is made by hand in the third migration:
            # it needs pg_trgm, which not every database's owner may install.
        ]

    def __str__(self) -> str:
        return f"turn {self.turn_id}"


class ServingProcess(models.Model):
    """The heartbeat of a web process: renewed every 5 s by PostgreSQL's clock, judged by the sweep."""

    process_id = models.UUIDField(primary_key=True, editable=False)
    name = models.CharField(max_length=255, help_text="host and process number")
    started_at = models.DateTimeField(db_default=Now())
    seen_at = models.DateTimeField(db_default=Now())
    ended_at = models.DateTimeField(null=True, help_text="set by a process that ended in order")
    given_up = models.BigIntegerField(default=0, help_text="checkpoints this process could not keep")
    reported_at = models.DateTimeField(
        null=True, help_text="by its own clock: when it last said all it had counted; null: it keeps no ledger"
    )

    class Meta:
        db_table = "serving_processes"
        default_permissions = ()

    def __str__(self) -> str:
        return self.name


class LedgerEntry(models.Model):
    """What one web process says of the turns that began with it in one hour (UTC). Written by its heartbeat alone,
    compared by flows.ledger with what is stored."""

    process_id = models.UUIDField(editable=False)
    hour = models.DateTimeField()
    turns = models.IntegerField(default=0)
    turns_ended = models.IntegerField(default=0)
    turns_given_up = models.IntegerField(default=0, help_text="of which nothing can ever be stored")
    checkpoints = models.BigIntegerField(default=0, help_text="made, those that were given up included")
    durable = models.BigIntegerField(default=0, help_text="acknowledged by Redis, or by PostgreSQL without it")
    given_up = models.JSONField(default=dict, help_text="how many checkpoints for which reason")
    late = models.IntegerField(default=0, help_text="recorded after the turn's end, and not kept")
    reported_at = models.DateTimeField(help_text="by the clock of the process: it has counted all until then")

    class Meta:
        db_table = "ledger_entries"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["process_id", "hour"], name="one_ledger_entry")]
        indexes = [models.Index(fields=["hour"], name="idx_ledger_entries_hour")]

    def __str__(self) -> str:
        return f"{self.process_id} in the hour of {self.hour}"


class KeptSpan(models.Model):
    """An hour or a day (UTC) whose figures flows.keeping keeps.

    A trigger on `turns` makes it STALE in the transaction that changes one of its turns. `scope` says
    of which turns, as flows.tallies.Chosen spells it; "": of all.
    """

    STALE, KEEPING, KEPT = 0, 1, 2

    hours = models.SmallIntegerField(help_text="1 or 24")
    start = models.DateTimeField()
    state = models.SmallIntegerField(default=STALE)
    scope = models.CharField(max_length=256, default="", db_default="")

    class Meta:
        db_table = "kept_spans"
        default_permissions = ()
        constraints = [models.UniqueConstraint(fields=["hours", "start", "scope"], name="one_kept_span")]

    def __str__(self) -> str:
        return f"{self.hours} h from {self.start}"


class KeptTally(models.Model):
    """One row of the figures of a span; what its keys are depends on the figure (flows.tallies)."""

    span = models.ForeignKey(KeptSpan, on_delete=models.CASCADE)
    figure = models.CharField(max_length=10)
    key = models.TextField(null=True)
    key2 = models.TextField(null=True)
    key3 = models.TextField(null=True)
    count = models.BigIntegerField()
    input_tokens = models.BigIntegerField()
    output_tokens = models.BigIntegerField()
    cost_usd = models.DecimalField(max_digits=24, decimal_places=8, null=True)
    buckets = ArrayField(models.SmallIntegerField(), null=True, help_text="of durations, see flows.tallies")
    counts = ArrayField(models.IntegerField(), null=True, help_text="how many durations in each of the buckets")

    class Meta:
        db_table = "kept_tallies"
        default_permissions = ()
        indexes = [
            # How turns ended, hour by hour, without a look at the many other rows of each.
            models.Index(
                fields=["span"],
                include=["key2", "count"],
                name="idx_kept_tallies_end",
                condition=models.Q(figure="end"),
            ),
            # The same of the turns that called a tool.
            models.Index(
                fields=["span", "key"],
                include=["key2", "count"],
                name="idx_kept_tallies_tool",
                condition=models.Q(figure="tool"),
            ),
        ]

    def __str__(self) -> str:
        return f"{self.figure} {self.key}"


class Pruning(models.Model):
    """One run of flows.pruning: all that was older than `border` is gone, or is going if it has not ended.

    Several processes with the same border share a row."""

    border = models.DateTimeField(unique=True)
    by = models.CharField(max_length=20, help_text="persister or command")
    began_at = models.DateTimeField(db_default=Now())
    last_at = models.DateTimeField(db_default=Now(), help_text="when it last did something")
    ended_at = models.DateTimeField(null=True)
    turns = models.BigIntegerField(default=0, db_default=0)
    checkpoints = models.BigIntegerField(default=0, db_default=0)

    class Meta:
        db_table = "prunings"
        default_permissions = ()

    def __str__(self) -> str:
        return f"what was older than {self.border}"
