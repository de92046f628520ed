"""Engines by name; adding one is one file and one line here."""

import importlib

from pipeline.engines.base import Engine
from pipeline.errors import UnknownNameError, UserError

ENGINES = {"local": "pipeline.engines.local:LocalEngine", "ray": "pipeline.engines.ray_engine:RayEngine"}


def open_engine(name: str, address: str | None = None, device: str = "cpu") -> Engine:
    """Return an engine, to be used in a `with`.

    Args:
        name: `local` or `ray`.
        address: Where the cluster is; see `pipeline.engines.cluster.Cluster`.
        device: What small runs compute on.

    Raises:
        UnknownNameError: There is no such engine.
        UserError: An address for an engine that needs none.
        MissingExtraError: What the engine is made of is not installed.
    """
    if name not in ENGINES:
        raise UnknownNameError("engine", name, ENGINES, "--engine")
    if name == "local" and address is not None:
        raise UserError(expected="--engine ray beside it", found="none", where=f"--address {address}")
    module, _, kind = ENGINES[name].partition(":")
    arguments = () if name == "local" else (address, device)
    engine: Engine = getattr(importlib.import_module(module), kind)(*arguments)
    return engine
