"""What a proxy says about who asks is believed as far as trusted proxies wrote it."""

from ipaddress import ip_network

import pytest

from omni2.proxies import as_the_proxy_says

TRUSTED = [ip_network("10.0.0.0/8"), ip_network("::1")]


def scope(peer: str | None, *forwarded: str, proto: str = "", kind: str = "http") -> dict[str, object]:
    headers = [(b"x-forwarded-for", each.encode()) for each in forwarded]
    if proto:
        headers.append((b"x-forwarded-proto", proto.encode()))
    client = (peer, 4711) if peer is not None else None
    return {"type": kind, "scheme": "http" if kind == "http" else "ws", "client": client, "headers": headers}


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        # what the client wrote there himself stands ahead of what the proxy added
        ("10.0.0.1", ["6.6.6.6, 192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["6.6.6.6", "192.0.2.7"], "192.0.2.7"),
        # through two proxies of ours
        ("10.0.0.1", ["6.6.6.6, 192.0.2.7, 10.9.9.9"], "192.0.2.7"),
        ("::1", ["2001:db8::7"], "2001:db8::7"),
        ("::ffff:10.0.0.1", ["::ffff:192.0.2.7"], "192.0.2.7"),
        # nothing there, or no address: the last one that is known
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["<script>, 10.0.0.2"], "10.0.0.2"),
        # not a proxy of ours
        ("192.0.2.1", ["6.6.6.6"], "192.0.2.1"),
    ],
)
def test_the_client_is_the_first_from_behind_that_is_no_proxy(peer: str, forwarded: list[str], client: str) -> None:
    found = as_the_proxy_says(scope(peer, *forwarded), TRUSTED)["client"]
    assert found[0] == client


def test_without_trusted_proxies_no_header_is_believed() -> None:
    asked = scope("10.0.0.1", "192.0.2.7", proto="https")
    assert as_the_proxy_says(asked, []) is asked


def test_a_client_without_an_address_is_left_as_he_is() -> None:
    asked = scope(None, "192.0.2.7", proto="https")
    assert as_the_proxy_says(asked, TRUSTED) is asked


@pytest.mark.parametrize(
    ("kind", "proto", "scheme"),
    [
        ("http", "https", "https"),
        ("websocket", "https", "wss"),
        ("http", "http", "http"),
        ("http", "https, http", "http"),
        ("http", "gopher", "http"),
        ("websocket", "", "ws"),
    ],
)
def test_the_scheme_is_what_the_nearest_proxy_says(kind: str, proto: str, scheme: str) -> None:
    assert as_the_proxy_says(scope("10.0.0.1", "192.0.2.7", proto=proto, kind=kind), TRUSTED)["scheme"] == scheme
