"""Where a local Ray listens: on the loopback interface, unless RAYBREW_NODE_IP says otherwise."""

from __future__ import annotations

import contextlib
import ipaddress
import os
from collections.abc import Iterator

from raybrew.errors import ClusterError

__all__ = ["LOOPBACK", "loopback_only", "node_ip_of"]

LOOPBACK = "127.0.0.1"
#: Ray's switch between clusters and this machine alone; its default is off on macOS and Windows.
_CLUSTER_SWITCH = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def node_ip_of(purpose: str) -> str | None:
    """Where a local Ray listens: the loopback interface, or what RAYBREW_NODE_IP says; None is Ray's own choice."""
    given = os.environ.get("RAYBREW_NODE_IP") or LOOPBACK
    if given == "auto":
        return None
    try:
        address = ipaddress.ip_address(given)
        return LOOPBACK if address.is_loopback else str(address)
    except ValueError as error:
        raise ClusterError(
            f"{purpose}: RAYBREW_NODE_IP: given {given!r}; allowed: an IP address of this machine, or auto"
        ) from error


@contextlib.contextmanager
def loopback_only(wanted: bool) -> Iterator[None]:
    """Start Ray as on macOS, where all its processes use the loopback interface.

    Elsewhere Ray takes a loopback address for a mistake, and uses another one of the machine. Its processes read the
    switch from the environment that they start with; this process read it when ray was imported.
    """
    if not wanted:
        yield
        return
    from ray._private import ray_constants

    before, imported = os.environ.get(_CLUSTER_SWITCH), ray_constants.ENABLE_RAY_CLUSTER
    os.environ[_CLUSTER_SWITCH], ray_constants.ENABLE_RAY_CLUSTER = "0", False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = imported
        if before is None:
            del os.environ[_CLUSTER_SWITCH]
        else:
            os.environ[_CLUSTER_SWITCH] = before
