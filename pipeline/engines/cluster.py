"""A connection to Ray: to the cluster at an address, or to one that is started here for as long as it is needed.

Ray is imported here and nowhere else, when a cluster is asked for.
"""

import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Any

from pipeline.engines.places import Node
from pipeline.errors import MissingExtraError, UserError
from pipeline.runtime import cpu_cores

_OBJECTS = 80 * 2**20
"""Bytes of a local Ray's object store: features go to the disk, only small messages pass through Ray."""
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}

_SLOW = "timed out during startup"
"""What Ray says if a node needs more than 30 s to start, as on a machine that is busy; the next try is quicker."""


def load_ray() -> Any:
    """Return the module `ray`.

    Raises:
        MissingExtraError: It is not installed.
    """
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingExtraError("ray", "pip install 'fewpairs[ray]'", "--engine ray") from error


class Cluster:
    """A connected Ray.

    Args:
        address: `host:port` of a cluster's head, `auto` for the one that this machine belongs to; nothing means
            RAY_ADDRESS, or else a Ray of this machine's own, which ends with the connection.

    Raises:
        MissingExtraError: Ray is not installed.
        UserError: There is no cluster at the address.
    """

    def __init__(self, address: str | None = None) -> None:
        self.ray = load_ray()
        _hush()
        found = address or os.environ.get("RAY_ADDRESS")
        options = {"address": found} if found else _own()
        try:
            self._init(options)
        except Exception as error:  # Ray raises nothing more special
            raise _no_cluster(found, error) from error

    def _init(self, options: Mapping[str, Any]) -> None:
        for last in (False, False, True):
            try:
                self.ray.init(**options, logging_level=logging.CRITICAL, log_to_driver=False)
            except Exception as error:
                if last or _SLOW not in str(error):
                    raise
                self.ray.shutdown()
            else:
                return

    def nodes(self) -> list[Node]:
        """Return the nodes that are alive."""
        return [
            Node(name=node["NodeID"], cpus=int(offered.get("CPU", 0)), gpus=int(offered.get("GPU", 0)))
            for node in self.ray.nodes()
            if node["Alive"] and (offered := node["Resources"]) is not None
        ]

    def close(self) -> None:
        """Leave the cluster: workers of this connection end, and so does a Ray that was started for it."""
        self.ray.shutdown()


def _own() -> dict[str, Any]:
    """Return the options of a Ray on this machine alone."""
    return {"address": "local", "num_cpus": cpu_cores(), "object_store_memory": _OBJECTS, "include_dashboard": False}


def _hush() -> None:
    """Keep Ray's notes on dead workers off standard output, where results go; there is no option for that (2.60)."""
    with suppress(ImportError):
        worker: Any = import_module("ray._private.worker")
        worker.print_to_stdstream = lambda data, ignore_prefix: None


def _no_cluster(address: str | None, error: Exception) -> UserError:
    said = [str(error), str(error.__cause__ or "")]
    token = any("token" in text.lower() for text in said)
    if not address:
        found, remedy = " ".join(said[0].split()), "start one with `ray start --head` and give --address auto"
        return UserError(expected="a Ray that starts on this machine", found=found, where="--engine ray", remedy=remedy)
    remedy = "start one with `ray start --head`, or leave --address out to work on this machine"
    if token:
        remedy = "export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN as `ray get-auth-token` says it on the head"
    found = "one that wants another token" if token else "none that answers"
    return UserError(expected="a Ray cluster", found=found, where=f"--address {address}", remedy=remedy)
