"""Waits that share a timer end when their own time is up, and not before."""

import asyncio

from flows.deadlines import Deadlines


def futures(count: int) -> list["asyncio.Future[None]"]:
    return [asyncio.get_running_loop().create_future() for _ in range(count)]


async def test_it_ends_each_wait_in_its_own_order() -> None:
    deadlines = Deadlines(asyncio.get_running_loop())
    late, early, middle = futures(3)
    ended: list[str] = []
    for name, future, timeout_s in (("late", late, 0.06), ("early", early, 0.01), ("middle", middle, 0.03)):
        future.add_done_callback(lambda _, name=name: ended.append(name))
        deadlines.add(future, timeout_s)
    await asyncio.wait_for(late, 5)
    assert ended == ["early", "middle", "late"]


async def test_it_leaves_what_is_done_alone_and_rests_afterwards() -> None:
    deadlines = Deadlines(asyncio.get_running_loop())
    done, cancelled, waiting = futures(3)
    for future in (done, cancelled, waiting):
        deadlines.add(future, 0.02)
    done.set_result(None)
    cancelled.cancel()
    await asyncio.wait_for(waiting, 5)
    assert deadlines._timer is None
    assert deadlines._waiting == []


async def test_it_can_be_used_again() -> None:
    deadlines = Deadlines(asyncio.get_running_loop())
    for future in futures(3):
        deadlines.add(future, 0.01)
        await asyncio.wait_for(future, 5)
