"""Which network interface reaches a host, for libraries that would guess it from a host's name."""

from __future__ import annotations

import os
import socket

import psutil

VARIABLES = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
BEYOND = "192.0.2.1"  # an address kept for documentation (RFC 5737): its route is the default route
DISCARD = 9  # a port number, which `connect` of a datagram socket needs; no packet is sent


def choose_interface(master: str, *, same_host: bool) -> None:
    """Set the interface of gloo and NCCL where the user did not: the one with a route to `master`.

    gloo looks up the host's name, which Debian resolves to 127.0.1.1, and then waits for ever for
    hosts that cannot reach that address. On one host the interface is the loopback.
    """
    name = interface_of(local_address("127.0.0.1") if same_host else _reachable_address(master))
    for variable in VARIABLES if name else ():
        os.environ.setdefault(variable, name)


def local_address(host: str) -> str:
    """The address of this machine from which packets to `host` would leave; "" without a route."""
    try:
        family, kind, _, _, place = socket.getaddrinfo(host, DISCARD, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind) as probe:
            probe.connect(place)
            return probe.getsockname()[0]
    except OSError:
        return ""


def interface_of(address: str) -> str:
    """The name of the interface with an address, or ""; all of 127.0.0.0/8 is the loopback's."""
    if _is_loopback(address):
        address = "127.0.0.1"
    for name, entries in psutil.net_if_addrs().items():
        if any(entry.address.partition("%")[0] == address for entry in entries):
            return name
    return ""


def _reachable_address(master: str) -> str:
    """This machine's address for other hosts. The first host may know itself as a loopback only."""
    address = local_address(master)
    return local_address(BEYOND) if _is_loopback(address) else address


def _is_loopback(address: str) -> bool:
    return address.startswith("127.") or address == "::1"
