"""Addresses that are never connected to: those of this link, and those at which clouds hand out credentials.

The rule holds for a process when it is installed there, and for the workers that Dask starts for it on this machine.
Workers of another's scheduler are that cluster's business.
"""

import socket
import sys
from collections.abc import Iterator
from contextlib import suppress
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

_METADATA = {
    ip_address(text) for text in ("fd00:ec2::254", "fd20:ce::254", "100.100.100.200", "192.0.0.192", "168.63.129.16")
}
"""Addresses beside the link-local ones at which clouds hand out credentials to their machines."""
_NAMES = {"metadata", "metadata.google.internal", "metadata.goog", "instance-data", "instance-data.ec2.internal"}
"""Names that such addresses have."""
_TRANSLATED = {0, 0x64FF9B << 64}  # first 96 bits of ::a.b.c.d, and of 64:ff9b::a.b.c.d, which gateways translate
_TRANSLATED_LOCALLY = 0x64FF9B0001  # first 48 bits of 64:ff9b:1::, the same inside of a network


def is_forbidden(host: Any) -> bool:
    """Return whether ``host`` is an address that is never connected to, or an IPv6 one that leads to such a one."""
    try:
        address = ip_address(str(host).partition("%")[0])
    except ValueError:
        return False
    return any(found.is_link_local or found in _METADATA or not int(found) for found in (address, *_inside(address)))


def _inside(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address]:
    """Yield the IPv4 addresses to which an IPv6 one is translated or tunnelled."""
    if isinstance(address, IPv4Address):
        return
    yield from filter(None, (address.ipv4_mapped, address.sixtofour, *(address.teredo or ())))
    if int(address) >> 32 in _TRANSLATED or int(address) >> 80 == _TRANSLATED_LOCALLY:
        yield IPv4Address(int(address) & 0xFFFFFFFF)


def is_forbidden_server(host: str) -> bool:
    """Return whether a URL's ``host``, with its port, names what is never connected to, however it is written."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    with suppress(OSError, ValueError):  # 2852039166, 0xa9fea9fe and 169.254.43518, as resolvers read them
        name = socket.inet_ntoa(socket.inet_aton(name))
    return is_forbidden(name) or name.rstrip(".").lower() in _NAMES


_installed: list[bool] = []


def forbid_addresses() -> None:
    """Let this process connect to no forbidden address, whatever name, redirect or server led it there; for its life.

    So do the workers that Dask starts for it.
    """
    if _installed:
        return
    _installed.append(True)

    def refuse(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple) and is_forbidden(arguments[1][0]):
            raise PermissionError(f"{arguments[1][0]} is an address that is never read")

    sys.addaudithook(refuse)
    _forbid_in_workers()


def are_forbidden() -> bool:
    """Return whether the rule holds in this process."""
    return bool(_installed)


def _forbid_in_workers() -> None:
    import dask

    name = "distributed.worker.preload"  # modules with which each worker begins
    dask.config.set({name: [*dask.config.get(name, []), __name__]})


def dask_setup(_worker: Any) -> None:
    """Install the rule in a worker; Dask calls a function of this name."""
    forbid_addresses()
