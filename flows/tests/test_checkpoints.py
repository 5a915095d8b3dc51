"""A checkpoint is one JSON document, always valid, bounded, and without secrets."""

import json
import math
import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flows import capture, checkpoints
from flows.checkpoints import METADATA_BYTES, Checkpoint, encode_metadata, iso_time, next_moment_us, uuid7
from flows.tracker import FlowTracker, TurnTrack


def made(**metadata: object) -> dict:
    turn = TurnTrack(FlowTracker(), "bob@example.com", "s")
    root = Checkpoint(turn, "auth_check", None, metadata)
    turn.turn_id = root.flow_id
    return root.as_dict()


def test_it_has_the_one_shape() -> None:
    document = made(status="passed")
    assert list(document) == [
        "flow_id", "user_id", "session_id", "turn_id", "checkpoint", "parent_id", "metadata", "created_at",
    ]  # fmt: skip
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", document["flow_id"])
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", document["created_at"])
    assert document["turn_id"] == document["flow_id"]
    assert document["parent_id"] is None


def test_it_gives_strictly_increasing_moments_and_ids_that_sort_like_them() -> None:
    moments = [next_moment_us() for _ in range(5000)]
    assert moments == sorted(set(moments))
    ids = [uuid7(moment) for moment in moments]
    assert ids == sorted(ids)


def test_it_goes_on_when_the_clock_steps_back() -> None:
    last = next_moment_us()
    checkpoints.use_clock(lambda: 1_000_000_000)
    try:
        assert next_moment_us() == last + 1
    finally:
        checkpoints.use_clock(time.time_ns)


def test_it_writes_times_with_six_digits() -> None:
    assert iso_time(1_795_327_200_000_000) == "2026-11-22T06:00:00.000000Z"
    assert iso_time(1_795_327_200_000_007) == "2026-11-22T06:00:00.000007Z"


def test_it_keeps_json_types() -> None:
    metadata = {"a": 1, "b": 1.5, "c": True, "d": None, "e": [1, "x"], "f": {"g": "é"}, "big": 2**70}
    assert made(**metadata)["metadata"] == metadata


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf, 10**5000], ids=["nan", "inf", "-inf", "huge"])
def test_it_makes_null_of_what_is_not_finite(odd: float) -> None:
    assert made(n=odd, deep=[{"n": odd}])["metadata"] == {"n": None, "deep": [{"n": None}]}


def test_it_replaces_nul_and_lone_surrogates() -> None:
    metadata = made(a="x\x00y", b="\ud800z", c=["\x00"], d={"\udfff": 1})["metadata"]
    assert metadata == {"a": "x�y", "b": "�z", "c": ["�"], "d": {"�": 1}}


def test_it_keeps_text_that_only_looks_like_an_escape() -> None:
    assert made(a="\\u0000")["metadata"] == {"a": "\\u0000"}


def test_it_cuts_the_longest_strings_first_and_says_so() -> None:
    metadata = made(short="stays", long="é" * 50_000, status="ok")["metadata"]
    assert metadata["_cut"] is True
    assert metadata["short"] == "stays"
    assert metadata["status"] == "ok"
    assert metadata["long"].startswith("éééé")


def test_it_cuts_what_has_no_long_strings_too() -> None:
    raw = encode_metadata({f"key{n}": n for n in range(5000)})
    assert len(raw) <= METADATA_BYTES
    assert json.loads(raw)["_cut"] is True
    assert json.loads(raw)["key0"] == 0


def test_it_survives_a_value_that_contains_itself() -> None:
    loop: list = []
    loop.append(loop)
    assert json.loads(encode_metadata({"loop": loop, "x": 1}))["x"] == 1


@given(
    st.dictionaries(
        st.text(),
        st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters()),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=30,
        ),
    )
)
def test_its_metadata_is_always_json_that_postgresql_takes(metadata: dict) -> None:
    raw = encode_metadata(metadata)
    assert len(raw) <= METADATA_BYTES
    text = raw.decode()
    assert "\x00" not in json.dumps(json.loads(text), ensure_ascii=False)
    json.loads(text, parse_constant=pytest.fail)


@pytest.mark.parametrize(
    "secret",
    [
        "sk-abcdefghijklmnop1234",
        "sk-" + "ant-" + "a1" * 20,
        "omni2_0123456789abcdefghij",
        "Bearer abcdefghijklmnopqrstuvwxyz",
        "ghp_abcdefghijklmnopqrst1234",
        "AKIAABCDEFGHIJKLMNOP",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abcdefghijk",
        "-----BEGIN PRIVATE KEY-----\nMIIEvQIBADANBg\n-----END PRIVATE KEY-----",
    ],
)
def test_it_masks_well_known_keys(secret: str) -> None:
    text = json.dumps(made(a=f"the key is\n{secret} ok?")["metadata"])
    assert "[masked]" in text
    assert json.dumps(secret)[1:-1] not in text


@given(st.from_regex(capture.SECRET))
def test_it_never_overlooks_a_key_at_its_quick_look(text: bytes) -> None:
    assert capture.HINT.search(text)


def test_it_leaves_words_alone_that_only_contain_a_prefix() -> None:
    assert made(a="a task-force-with-a-long-name-indeed")["metadata"] == {"a": "a task-force-with-a-long-name-indeed"}


def test_it_captures_as_configured(settings: object) -> None:
    long = "y" * 500
    settings.CAPTURE = "preview"
    assert capture.preview(long) == "y" * 199 + "…"
    settings.CAPTURE = "full"
    assert capture.preview(long) == long
    settings.CAPTURE = "none"
    assert capture.preview(long) is None


def test_it_masks_a_key_before_it_cuts(settings: object) -> None:
    settings.CAPTURE = "preview"
    shown = capture.preview("x" * 190 + " sk-abcdefghijklmnopqrstuvwxyz0123456789")
    assert "sk-" not in shown
