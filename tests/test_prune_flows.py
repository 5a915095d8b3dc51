"""`manage.py prune_flows` and the daily pruning, with the setting and all that is kept beside the turns."""

import io
import os
import signal
import threading
import time
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import connection

from flows import keys, retention
from flows.checkpoints import uuid7
from flows.models import InteractionFlow, Pruning, Turn
from flows.pruning import Batch, Pruner
from flows.redis import sync_client
from flows.retention import Retention
from flows.tests.ledger_cast import BOB, admit, settle
from flows.tests.test_pruning import SECOND, stored_turns, turn
from monitoring.models import Omni2Config
from omni2 import upkeep
from omni2.accounts.models import User

pytestmark = pytest.mark.django_db(transaction=True)

DAY = timedelta(days=1)


def now() -> datetime:
    return datetime.now(UTC)


def ago(age: timedelta) -> str:
    """A turn that ended a second after it began so long ago."""
    return turn(now() - age, now() - age + SECOND)


def prune(*words: str) -> tuple[int, str]:
    out = io.StringIO()
    try:
        call_command("prune_flows", *words, stdout=out)
    except SystemExit as end:
        return int(end.code or 0), out.getvalue()
    return 0, out.getvalue()


@pytest.mark.parametrize(("word", "age"), [("2h", DAY / 12), ("3d", 3 * DAY), ("2w", 14 * DAY)])
def test_it_deletes_what_is_older_than_it_is_told(word: str, age: timedelta) -> None:
    ago(age + timedelta(minutes=5))
    stays = {ago(age - timedelta(minutes=5)), turn(now() - age - DAY)}
    status, said = prune("--older-than", word)
    assert status == 0
    assert "Deleted 1 turn with 3 checkpoints in" in said
    assert stored_turns() == stays


def test_without_an_age_it_is_the_setting_by_whole_days() -> None:
    Omni2Config(config_key="retention", config_value={"days": 7}).save()
    midnight = now().replace(hour=0, minute=0, second=0, microsecond=0)
    turn(midnight - 7 * DAY - 2 * SECOND, midnight - 7 * DAY - SECOND)
    stays = turn(midnight - 7 * DAY, midnight - 7 * DAY + SECOND)
    assert "ended 1 turn with 3 checkpoints." in prune()[1]
    assert stored_turns() == {stays}


def test_without_an_age_it_says_when_the_setting_keeps_everything() -> None:
    Omni2Config(config_key="retention", config_value={"days": 0}).save()
    with pytest.raises(CommandError, match="for ever; name an age with --older-than") as problem:
        prune()
    assert problem.value.returncode == 2


def test_a_dry_run_counts_and_deletes_nothing() -> None:
    kept = {ago(9 * DAY), ago(8 * DAY), ago(DAY)}
    status, said = prune("--older-than", "7d", "--dry-run")
    assert status == 0
    assert "ended 2 turns with 6 checkpoints." in said
    assert stored_turns() == kept
    assert not Pruning.objects.exists()


@pytest.mark.parametrize(
    ("words", "option"),
    [
        (("--older-than", "90"), "--older-than"),
        (("--older-than", "x"), "--older-than"),
        (("--older-than", ""), "--older-than"),
        (("--older-than", "1.5d"), "--older-than"),
        (("--older-than", "-1d"), "--older-than"),
        (("--older-than", "0d"), "--older-than"),
        (("--older-than", "٣d"), "--older-than"),
        (("--older-than", "99999w"), "--older-than"),
        (("--batch", "0", "--older-than", "1d"), "--batch"),
        (("--batch", "1e3", "--older-than", "1d"), "--batch"),
        (("--batch", "1000000", "--older-than", "1d"), "--batch"),
    ],
)
def test_it_names_the_option_that_is_wrong(words: tuple[str, ...], option: str) -> None:
    with pytest.raises(CommandError, match=f"^{option}: ") as problem:
        call_command("prune_flows", *(f"{name}={value}" for name, value in zip(words[::2], words[1::2], strict=True)))
    assert problem.value.returncode == 2


def test_interrupted_it_ends_after_the_batch_in_hand_and_says_what_was_done(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(6):
        ago(9 * DAY + number * SECOND)
    once = Pruner._once

    def interrupted(self: Pruner, *words: Any) -> Batch:
        os.kill(os.getpid(), signal.SIGINT)
        return once(self, *words)

    monkeypatch.setattr(Pruner, "_once", interrupted)
    before = signal.getsignal(signal.SIGINT)
    status, said = prune("--older-than", "7d", "--batch", "6")
    assert status == 1
    assert "Deleted 2 turns with 6 checkpoints" in said
    assert "Stopped before the end" in said
    assert len(stored_turns()) == 4
    assert signal.getsignal(signal.SIGINT) is before
    monkeypatch.setattr(Pruner, "_once", once)
    assert prune("--older-than", "7d")[0] == 0
    assert stored_turns() == set()


def test_it_tells_how_far_it_is_in_lines_when_nobody_sits_at_a_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from omni2.management.commands import prune_flows

    monkeypatch.setattr(prune_flows, "SAID_EVERY_S", 0.0)
    ago(9 * DAY)
    prune("--older-than", "7d")
    assert "1 of 1 turns, 3 of 3 checkpoints" in capsys.readouterr().err.splitlines()[0]


def test_the_records_of_what_a_pruned_turn_used_go_with_it_and_the_days_sums_stay() -> None:
    process = str(uuid.uuid4())
    User.objects.create_user(email=BOB, password="long enough 1")

    def used(at: datetime, *, stored: bool = True, ended: bool = True) -> str:
        turn_id = uuid7(int(at.timestamp() * 1_000_000))
        admit(turn_id, process)
        if stored:
            turn(at, at + SECOND, turn_id)
        if ended:
            settle(turn_id)
        with connection.cursor() as cursor:
            cursor.execute(
                "UPDATE turn_usage SET ended_at = %s WHERE turn_id = %s AND ended_at IS NOT NULL", [at, turn_id]
            )
        return turn_id

    used(now() - 9 * DAY)
    used(now() - 9 * DAY, stored=False)
    stay = {used(now() - DAY), used(now() - DAY, stored=False), used(now() - 9 * DAY, stored=False, ended=False)}
    with connection.cursor() as cursor:
        cursor.execute("INSERT INTO daily_usage (user_id, day, requests) SELECT id, current_date - 9, 2 FROM users")
        assert "2 records that were kept beside them" in prune("--older-than", "7d")[1]
        cursor.execute("SELECT turn_id::text FROM turn_usage")
        assert {row[0] for row in cursor.fetchall()} == stay
        cursor.execute("SELECT requests FROM daily_usage")
        assert cursor.fetchall() == [(2,)]


def test_what_is_older_goes_out_of_the_users_streams_too() -> None:
    """Of somebody who asks a little every day a stream would hold months."""
    with sync_client() as client:
        client.flushall()
        stream, border = keys.user_stream(BOB), int((now() - 7 * DAY).timestamp() * 1000)
        for at in (border - 86_400_000, border - 60_000, border + 60_000):
            client.xadd(stream, {"d": b"{}"}, id=f"{at}-0")
        client.xadd(keys.log_shard(0), {"d": b"{}"}, id="1-0")
        prune("--older-than", "7d")
        assert [entry_id for entry_id, _ in client.xrange(stream)] == [f"{border + 60_000}-0".encode()]
        assert client.xlen(keys.log_shard(0)) == 1, "what is not stored yet is nobody's to trim"
        client.flushall()


def test_it_prunes_although_redis_is_away(settings: Any) -> None:
    settings.REDIS_URL = "redis://127.0.0.1:1/0"
    ago(9 * DAY)
    assert prune("--older-than", "7d")[0] == 0
    assert stored_turns() == set()


# --- beside the persister ------------------------------------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(retention, "REST", 0.0)


def daily() -> Retention:
    return Retention(upkeep.days_kept)


@pytest.mark.usefixtures("at_once")
def test_the_persister_prunes_by_the_setting_once_a_day() -> None:
    ago(92 * DAY)
    stays = {ago(89 * DAY), turn(now() - 99 * DAY)}
    work = daily()
    work.slice()
    assert stored_turns() == stays
    run = Pruning.objects.get()
    assert (run.by, run.turns, run.border.hour, run.border.minute) == ("persister", 1, 0, 0)
    assert run.ended_at is not None
    late = ago(92 * DAY)
    work.slice()
    assert late in stored_turns(), "tomorrow"


@pytest.mark.usefixtures("at_once")
def test_it_prunes_nothing_when_turns_are_kept_for_ever_and_begins_when_that_changes() -> None:
    Omni2Config(config_key="retention", config_value={"days": 0}).save()
    ago(500 * DAY)
    work = daily()
    work.slice()
    assert len(stored_turns()) == 1
    Omni2Config(config_key="retention", config_value={"days": 365}).save()
    work.slice()
    assert stored_turns() == set()


@pytest.mark.usefixtures("at_once")
def test_a_run_goes_on_in_slices_and_after_an_end_in_another_process(monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(8):
        ago(92 * DAY + number * SECOND)
    monkeypatch.setattr(retention, "SLICE_S", -1.0)  # so that a call only begins
    work = daily()
    work.slice()
    assert len(stored_turns()) == 8
    assert work._pruner is not None
    work._pruner.batch = 6
    next(work._batches)
    assert len(stored_turns()) == 6
    monkeypatch.undo()
    monkeypatch.setattr(retention, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(retention, "REST", 0.0)
    daily().slice()
    assert stored_turns() == set()
    assert Pruning.objects.get().turns == 8


@pytest.mark.usefixtures("at_once")
def test_it_looks_again_after_postgresql_was_away(monkeypatch: pytest.MonkeyPatch) -> None:
    from django.db import OperationalError

    ago(92 * DAY)
    work = daily()

    def away(*_: Any) -> None:
        raise OperationalError("away")

    with monkeypatch.context() as patched:
        patched.setattr(Pruner, "_old_turns", away)
        with pytest.raises(OperationalError):
            work.slice()
    work.slice()
    assert stored_turns() == set()


def test_it_never_delays_the_loop_beside_which_it_works() -> None:
    """The call returns while the work still goes on, and there is one at a time."""
    go_on, calls = threading.Event(), []

    def work() -> None:
        calls.append(threading.current_thread())
        go_on.wait(30)

    aside = upkeep._Aside("pruning", work)
    aside()
    aside()
    deadline = time.monotonic() + 30
    while not calls and time.monotonic() < deadline:
        time.sleep(0.01)
    assert [thread is threading.current_thread() for thread in calls] == [False]
    go_on.set()
    aside._thread.shutdown()


def test_it_says_how_it_stands() -> None:
    assert retention.status() == {"days": 90, "late": False}
    ago(9 * DAY)
    prune("--older-than", "7d")
    known = retention.status()
    assert (known["turns"], known["checkpoints"], known["running"], known["late"]) == (1, 3, False, False)
    Pruning.objects.update(last_at=now() - 3 * DAY)
    assert retention.status()["late"]
    assert not InteractionFlow.objects.exists()
    assert not Turn.objects.exists()
