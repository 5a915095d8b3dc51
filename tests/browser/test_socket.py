"""The watcher's side of the socket protocol (SPEC, section 7), against a server that is played."""

from typing import Any

import pytest
from playwright.sync_api import Page

from tests.browser.conftest import Visits

# A WebSocket that connects to nobody: the test says what the server sends and how it closes.
PLAY = """async () => {
    const { FlowSocket } = await import("/static/js/flow_socket.js");
    window.sockets = [];
    window.seen = { states: [], snapshots: [], checkpoints: [], drawn: 0 };
    window.WebSocket = class {
        static OPEN = 1;
        constructor(url) { this.url = url; this.sent = []; this.readyState = 1; sockets.push(this); }
        send(text) { this.sent.push(JSON.parse(text)); }
        close() { this.readyState = 3; }
    };
    window.socket = new FlowSocket("bob@example.com", {
        state: (state) => seen.states.push(state),
        hello: () => {}, monitoring: () => {}, live: () => {},
        snapshot: (checkpoints, { fresh }) => seen.snapshots.push([checkpoints.length, fresh]),
        checkpoint: (checkpoint) => seen.checkpoints.push(checkpoint.flow_id),
        draw: () => (seen.drawn += 1),
    });
    window.server = () => sockets.at(-1);
    window.say = (message) => server().onmessage({ data: JSON.stringify(message) });
    window.hello = (active = true) => say({ type: "hello", user_id: "bob@example.com", monitoring: { active }, server_time: new Date().toISOString() });
    window.snapshot = (cursor, more = {}) => say({ type: "snapshot", complete: true, cursor, more: false, checkpoints: [], ...more });
    window.frame = (number) => say({ type: "checkpoint", cursor: `e.${number}-0`, checkpoint: { flow_id: `f${number}` } });
    window.acks = () => server().sent.filter((one) => one.type === "ack").map((one) => one.cursor);
}"""  # noqa: E501


@pytest.fixture
def page(visit: Visits) -> Page:
    page = visit("charlie@example.com", "/account/password/")
    page.evaluate(PLAY)
    return page


def until(page: Page, condition: str) -> Any:
    return page.wait_for_function(condition, timeout=20_000)


def test_it_acknowledges_what_was_drawn_every_hundred_frames_or_second(page: Page) -> None:
    page.evaluate("hello(); snapshot('e.1-0')")
    until(page, "acks().length === 1 && acks()[0] === 'e.1-0'")
    page.evaluate("for (let i = 2; i <= 251; i += 1) frame(i)")
    assert page.evaluate("acks()")[:2] == ["e.1-0", "e.101-0"]
    until(page, "acks().at(-1) === 'e.251-0'")
    assert page.evaluate("seen.checkpoints.length") == 250
    # nothing new: nothing to acknowledge
    count = page.evaluate("acks().length")
    page.evaluate("say({ type: 'ping', server_time: new Date().toISOString() })")
    page.wait_for_timeout(1300)
    assert page.evaluate("acks().length") == count


def test_each_part_of_a_snapshot_is_acknowledged_and_shown_as_one(page: Page) -> None:
    page.evaluate("hello()")
    for number in range(3):
        page.evaluate(
            "([n, more]) => snapshot(`e.${n}-0`, { more, checkpoints: [{ flow_id: `a${n}` }, { flow_id: `b${n}` }] })",
            [number, number < 2],
        )
    until(page, "acks().length === 3")
    assert page.evaluate("seen.snapshots") == [[6, True]]


def test_it_comes_back_with_its_cursor_and_a_gap_replaces_the_picture(page: Page) -> None:
    page.evaluate("hello(); snapshot('e.1-0'); frame(2); frame(3)")
    page.evaluate("server().onclose({ code: 1006 })")
    until(page, "sockets.length === 2")
    assert page.evaluate("server().url").endswith("/ws/flows/bob%40example.com?after=e.3-0")
    assert page.evaluate("seen.states.map((one) => one.name)") == [
        "connecting",
        "connected",
        "reconnecting",
        "reconnecting",
    ]
    assert page.evaluate("seen.states.at(-1).attempt") == 1
    page.evaluate("hello(); snapshot('e.5-0', { checkpoints: [{}, {}] })")
    page.evaluate("server().onclose({ code: 1006 })")
    until(page, "sockets.length === 3")
    page.evaluate("hello(); snapshot('g.9-0', { complete: false, checkpoints: [{}] })")
    assert page.evaluate("seen.snapshots") == [[0, True], [2, False], [1, True]]


def test_a_snapshot_that_broke_off_is_not_shown(page: Page) -> None:
    page.evaluate("hello(); snapshot('e.1-0'); frame(2)")
    page.evaluate("server().onclose({ code: 1006 })")
    until(page, "sockets.length === 2")
    page.evaluate("hello(); snapshot('e.7-0', { complete: false, more: true, checkpoints: [{}, {}] })")
    page.evaluate("server().onclose({ code: 1006 })")
    until(page, "sockets.length === 3")
    # what it was told of in part it asks for again, from before that snapshot
    assert page.evaluate("server().url").endswith("?after=e.2-0")
    assert page.evaluate("seen.snapshots") == [[0, True]]


def test_close_codes_are_understood(page: Page) -> None:
    page.evaluate("hello(); snapshot('e.1-0')")
    page.evaluate("server().onclose({ code: 4408 })")
    until(page, "sockets.length === 2")
    assert page.evaluate("server().url").endswith("?after=e.1-0")
    page.evaluate("server().onclose({ code: 4400 })")
    until(page, "sockets.length === 3")
    assert "after" not in page.evaluate("server().url")
    for code in (4401, 4403, 4404):
        page.evaluate(PLAY)
        page.evaluate("code => server().onclose({ code })", code)
        state = page.evaluate("seen.states.at(-1)")
        assert (state["name"], state["signIn"]) == ("disconnected", code == 4401)
        assert state["why"]
    page.wait_for_timeout(1500)
    assert page.evaluate("sockets.length") == 1


def test_a_picture_that_is_held_lets_go_and_reads_on(page: Page) -> None:
    page.evaluate("hello(); snapshot('e.1-0'); frame(2); socket.hold()")
    page.wait_for_timeout(1200)
    assert page.evaluate("sockets.length") == 1
    page.evaluate("socket.release()")
    assert page.evaluate("server().url").endswith("?after=e.2-0")


def test_a_new_period_begins_with_a_new_picture(page: Page) -> None:
    page.evaluate("hello(false); snapshot(null)")
    page.evaluate(
        "say({ type: 'monitoring', active: true, reason: 'enabled' }); snapshot('e.4-0', { checkpoints: [{}] })"
    )
    page.evaluate("say({ type: 'monitoring', active: true, reason: 'extended' })")
    assert page.evaluate("seen.snapshots.at(-1)") == [1, True]
