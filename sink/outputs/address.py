"""Connecting to a host of the public Internet, and to none behind our own door.

A URL in a config, or one that a receiver redirects to, may name a service that trusts everybody inside: a router, a
cloud's metadata, Redis itself. What a name means can change between looking it up and connecting, so the address is
checked that the connection is made to.
"""

from __future__ import annotations

import socket
import time
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from sink.outputs.delivery import Refused, Unreachable

# NAT64 (RFC 6052): the last 32 bits are an IPv4 address, which the network connects to.
_NAT64 = IPv6Network("64:ff9b::/96")


class PrivateAddress(Refused):
    """The host is none of the public Internet, and the output may not go to others."""


def is_public(address: str) -> bool:
    """Whether an IP address belongs to a host of the public Internet; IPv4 inside of IPv6 is looked at too."""
    ip: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    if isinstance(ip, IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour or (ip.teredo[1] if ip.teredo else None)
        if ip in _NAT64:
            inner = IPv4Address(int(ip) & 0xFFFF_FFFF)
        ip = inner or ip
    return ip.is_global and not ip.is_multicast and not ip.is_reserved


def is_private_literal(host: str) -> bool:
    """Whether a URL's host is an address that is not public, in any way of writing it, or `localhost`.

    Other names are looked up only when the connection is made.
    """
    if host.rstrip(".").lower() in ("localhost", "localhost.localdomain"):
        return True
    try:
        return not is_public(host)
    except ValueError:
        pass
    try:
        return not is_public(socket.inet_ntoa(socket.inet_aton(host)))  # 127.1 and the like
    except (OSError, UnicodeError):
        return False


def connect_to(host: str, port: int, *, allow_private: bool, until_s: float) -> socket.socket:
    """A TCP connection, made before `until_s` (monotonic). Raises Unreachable, PrivateAddress.

    Of a name that stands for several addresses the private ones are left out. Looking the name up is as slow as the
    system's resolver: its own time limits hold.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise Unreachable(f"the name {host!r} cannot be looked up: {error}") from None
    allowed = [one for one in found if allow_private or is_public(str(one[4][0]))]
    if not allowed:
        raise PrivateAddress(f"{host!r} is a private address ({found[0][4][0]})")
    reason = ""
    for family, kind, protocol, _, address in allowed:
        link = socket.socket(family, kind, protocol)
        try:
            link.settimeout(max(0.001, until_s - time.monotonic()))
            link.connect(address)
            return link
        except OSError as error:
            link.close()
            reason = str(error)
    raise Unreachable(f"{host} port {port}: {reason}")
