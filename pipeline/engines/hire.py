"""Start a worker on a Ray cluster: in its owner's folder, with its owner's modules, on the CPUs that it was given."""

import os
from pathlib import Path
from typing import Any

from pipeline.engines.places import Place
from pipeline.engines.worker import Setup, Worker


def hire(ray: Any, place: Place, *, threads: int | None = None, calls: int = 2, returns: bool = False) -> Any:
    """Return the actor of a new worker.

    Args:
        ray: The module.
        place: Where it is to be.
        threads: Threads that it computes with; nothing means as many as its CPUs.
        calls: How many calls it takes at once.
        returns: Whether Ray starts it again each time that it is lost: for one that holds no item.
    """
    options: dict[str, Any] = {"num_cpus": place.cpus, "num_gpus": place.gpus, "max_concurrency": calls}
    if place.node:
        strategies = ray.util.scheduling_strategies
        options["scheduling_strategy"] = strategies.NodeAffinitySchedulingStrategy(place.node, soft=True)
    if returns:
        options["max_restarts"] = -1
    return ray.remote(**options)(Worker).remote(_setup(place, threads))


def _setup(place: Place, threads: int | None) -> Setup:
    from pipeline.align.parallel import THREADS

    usual = threads or place.cpus
    own = {} if threads else os.environ
    return Setup(
        folder=str(Path.cwd()),
        python_path=tuple(filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))),
        threads=place.cpus,
        environment={name: own.get(name, str(usual)) for name in THREADS},
    )
