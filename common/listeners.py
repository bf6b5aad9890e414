"""What the listeners of a service have in common: their sockets, and how many connections they may have open."""

from __future__ import annotations

import resource
import socket


def listening_socket(host: str, port: int, backlog: int) -> socket.socket:
    """Return a socket that listens on an address of IPv4 or IPv6; ``::`` is every address of both.

    Where the system has no IPv6, ``::`` is every address of IPv4. Raises OSError if the address cannot be used.
    """
    if host == "::":
        both = socket.has_dualstack_ipv6()
        family = socket.AF_INET6 if both else socket.AF_INET
        return socket.create_server(("", port), family=family, backlog=backlog, dualstack_ipv6=both)
    family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    return socket.create_server(address[:2], family=family, backlog=backlog)


def connection_limit(most: int) -> int:
    """Return how many connections a listener may have: ``most``, or half of the files this process may open if fewer.

    The rest is left to the service: its connection to the broker, its database and its worker processes.
    """
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft == resource.RLIM_INFINITY else max(1, min(most, soft // 2))
