"""Who asks, when a proxy stands between: what the headers of a trusted proxy say, on either server and every door.

A header is believed only as far as trusted proxies wrote it: X-Forwarded-For is read from behind, and the first address
in it that is no proxy of ours is the client. What a client writes there himself stands further ahead.
"""

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

Scope = dict[str, Any]
Networks = Sequence[IPv4Network | IPv6Network]
SECURE = {"http": "https", "websocket": "wss"}
PLAIN = {"http": "http", "websocket": "ws"}


def as_the_proxy_says(scope: Scope, trusted: Networks) -> Scope:
    """The scope with the client's own address and scheme, if it came through one of these proxies."""
    peer = _address(scope["client"][0]) if trusted and scope.get("client") else None
    if peer is None or not _is_one_of(peer, trusted):
        return scope
    changed = {**scope, "client": (str(_client(_header(scope, b"x-forwarded-for"), peer, trusted)), 0)}
    scheme = _header(scope, b"x-forwarded-proto").rpartition(",")[2].strip().lower()
    if scheme in {"https", "http"}:
        changed["scheme"] = (SECURE if scheme == "https" else PLAIN)[scope["type"]]
    return changed


def _client(forwarded: str, peer: IPv4Address | IPv6Address, trusted: Networks) -> IPv4Address | IPv6Address:
    client = peer
    for text in reversed(forwarded.split(",")):
        address = _address(text.strip())
        if address is None:
            break
        client = address
        if not _is_one_of(client, trusted):
            break
    return client


def _address(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # a server that listens on both kinds sees IPv4 as ::ffff:192.0.2.1
    return getattr(address, "ipv4_mapped", None) or address


def _is_one_of(address: IPv4Address | IPv6Address, networks: Networks) -> bool:
    return any(address in network for network in networks)


def _header(scope: Scope, name: bytes) -> str:
    """All values of a header, as one."""
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)
