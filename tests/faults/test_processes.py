"""Web processes and the persister are killed and restarted at a few chosen moments; `make faults` does it at random."""

from collections.abc import Iterator

import pytest

from tests.faults.rig import Outcome, Plan, Rig, started
from tests.faults.scenarios_persister import persister_moments, persisters_killed
from tests.faults.scenarios_still import rolling_restart
from tests.faults.scenarios_web import web_killed

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def rig() -> Iterator[Rig]:
    with started(Plan(times=1), web=2) as rig:
        yield rig


def assert_it_adds_up(outcome: Outcome) -> None:
    assert outcome.injections > 0
    assert outcome.problems == [], outcome.figures


async def test_a_killed_web_process_loses_nothing_it_acknowledged(rig: Rig) -> None:
    outcome = await web_killed(rig)
    assert_it_adds_up(outcome)
    assert outcome.figures["abandoned"] > 0
    assert outcome.figures["turns_at_the_steady_process"] > 0


async def test_a_persister_killed_at_any_step_stores_each_checkpoint_once(rig: Rig) -> None:
    assert_it_adds_up(await persister_moments(rig))


async def test_a_restart_of_one_part_after_the_other_cuts_no_answer_off(rig: Rig) -> None:
    assert_it_adds_up(await rolling_restart(rig))


async def test_of_two_persisters_either_may_be_killed(rig: Rig) -> None:
    rig.omni2.start_persister()
    assert_it_adds_up(await persisters_killed(rig))
