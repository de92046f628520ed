"""A connection to Ray, what the nodes of a cluster have room for, and how work is called there.

Ray is imported here and nowhere else, when a cluster is asked for.
"""

import logging
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.errors import MissingExtraError, PipelineError, UserError
from pipeline.parallel import THREADS
from pipeline.runtime import cpu_cores

_SETTINGS = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_task_oom_retries": "3",  # else without end
}
_OBJECTS = 80 * 2**20
"""Bytes of a local Ray's object store: features go to the disk, only small messages pass through Ray."""
_SLOW = "timed out during startup"
"""What Ray says if a node needs more than 30 s to start, as on a busy machine; the next try is quicker."""
_THREADS = 32
"""Decoding threads of one worker, at most, as without a cluster."""


def load_ray() -> Any:
    """Return the module `ray`.

    Raises:
        MissingExtraError: It is not installed.
    """
    for name, value in _SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        return import_module("ray")
    except ImportError as error:
        raise MissingExtraError("ray", "pip install 'fewpairs[ray]'", "--engine ray") from error


def connect(address: str | None = None) -> Any:
    """Connect to a cluster and return the module `ray`; its `shutdown` ends the connection and all that works for it.

    Args:
        address: `host:port` of the head, or `auto` for the cluster that this machine belongs to. None means
            RAY_ADDRESS, or else a Ray on this machine alone, which ends with the connection.

    Raises:
        MissingExtraError: Ray is not installed.
        UserError: There is no cluster at the address.
    """
    ray = load_ray()
    _hush()
    found = address or os.environ.get("RAY_ADDRESS")
    alone = {"address": "local", "num_cpus": cpu_cores(), "object_store_memory": _OBJECTS, "include_dashboard": False}
    for tries_left in (2, 1, 0):
        try:
            ray.init(**({"address": found} if found else alone), logging_level=logging.CRITICAL, log_to_driver=False)
            break
        except Exception as error:  # Ray raises nothing more special
            if not tries_left or _SLOW not in str(error):
                raise _no_cluster(found, error) from error
            ray.shutdown()
    return ray


def _hush() -> None:
    """Keep Ray's notes on dead workers off standard output, where results go; there is no option for that (2.60)."""
    with suppress(ImportError):
        worker: Any = import_module("ray._private.worker")
        worker.print_to_stdstream = lambda data, ignore_prefix: None


def _no_cluster(address: str | None, error: Exception) -> UserError:
    if not address:
        found, remedy = " ".join(str(error).split()), "start one with `ray start --head` and give --address auto"
        return UserError(expected="a Ray that starts on this machine", found=found, where="--engine ray", remedy=remedy)
    found, remedy = "none that answers", "start one with `ray start --head`, or leave --address out"
    if "token" in f"{error} {error.__cause__}".lower():
        found = "one that wants another token"
        remedy = "export RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN as `ray get-auth-token` prints it on the head"
    return UserError(expected="a Ray cluster", found=found, where=f"--address {address}", remedy=remedy)


class Bundle(NamedTuple):
    """What a node offers, or a worker takes: in Ray's word, a bundle of resources."""

    cpus: int
    """Of a worker: threads that decode, and compute where there is no GPU."""
    gpus: int = 0
    node: str = ""
    """Id of the node; once it is gone, a worker that was meant for it takes any other."""


def live_nodes(ray: Any) -> list[Bundle]:
    """Return what the nodes offer that are alive."""
    alive = [(node["NodeID"], node["Resources"] or {}) for node in ray.nodes() if node["Alive"]]
    return [Bundle(int(offers.get("CPU", 0)), int(offers.get("GPU", 0)), name) for name, offers in alive]


def extraction_bundles(
    nodes: Sequence[Bundle], device: str, workers: int | None, decode_cpus: int | None
) -> tuple[list[Bundle], list[Bundle]]:
    """Return the resources of encoders, and of workers that only decode.

    Args:
        nodes: What the nodes offer.
        device: auto (GPUs where there are any), cpu or cuda.
        workers: CPUs of an encoder; None means a fair share of the node's beside a GPU, else all of the node's.
        decode_cpus: CPUs that only decode, those of nodes without a GPU first; None means all of those nodes' where
            encoders have GPUs, else none.

    Raises:
        UserError: There is no room, no GPU where one is asked for, or so many CPUs cannot be spared.
    """
    if device not in ("auto", "cpu", "cuda"):
        remedy = "use --device cuda: Ray gives each worker a GPU of its own"
        raise UserError(expected="auto, cpu or cuda with an engine", found=device, where="--device", remedy=remedy)
    on_gpus = device != "cpu" and any(node.gpus for node in nodes)
    if device == "cuda" and not on_gpus:
        raise UserError(expected="a cluster with a GPU", found="none", where="--device cuda")
    spare = [max(node.cpus - node.gpus, 0) if on_gpus else node.cpus for node in nodes]
    most = max(sum(spare) - (not on_gpus), 0)  # without GPUs, encoders keep a CPU
    if decode_cpus is None:
        decode_cpus = sum(node.cpus for node in nodes if on_gpus and not node.gpus)
    elif decode_cpus > most:
        where, remedy = "--decode-cpus", "the others are for the encoders"
        raise UserError(expected=f"{most} or fewer", found=str(decode_cpus), where=where, remedy=remedy)
    encoders: list[Bundle] = []
    decoders: list[Bundle] = []
    for (cpus, gpus, node), limit in sorted(zip(nodes, spare, strict=True), key=lambda pair: pair[0].gpus > 0):
        taken = min(decode_cpus, limit)
        decode_cpus -= taken
        decoders += [Bundle(min(_THREADS, taken - start), node=node) for start in range(0, taken, _THREADS)]
        left = cpus - taken
        if on_gpus:
            count = min(gpus, left)
            size = min(workers or _THREADS, left // max(count, 1))
        else:
            size = min(workers or left, left)
            count = left // max(size, 1)
        encoders += [Bundle(size, int(on_gpus), node)] * count
    return _some(encoders), decoders


def run_bundles(nodes: Sequence[Bundle], device: str) -> list[Bundle]:
    """Return the resources of each small run that fits: one a GPU where `device` allows and there are any, else a CPU.

    Raises:
        UserError: There is no room.
    """
    gpus = sum(min(node.gpus, node.cpus) for node in nodes) if device != "cpu" else 0
    return [Bundle(1, 1)] * gpus or _some([Bundle(1)] * sum(node.cpus for node in nodes))


def _some(bundles: list[Bundle]) -> list[Bundle]:
    if not bundles:
        remedy = "wait until nodes have joined (`ray status`), or start some: `ray start --address HEAD:PORT`"
        raise UserError(expected="a cluster with CPUs for workers", found="none", where="--engine ray", remedy=remedy)
    return bundles


# ---- calls -----------------------------------------------------------------------------------------------------------


def options_of(ray: Any, bundle: Bundle, *, soft: bool = True) -> dict[str, Any]:
    """Return Ray's options for a task or an actor with these resources; not `soft`: on the bundle's node or nowhere."""
    options: dict[str, Any] = {"num_cpus": bundle.cpus, "num_gpus": bundle.gpus}
    if bundle.node:
        affinity = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
        options["scheduling_strategy"] = affinity(bundle.node, soft=soft)
    return options


def queue_here(ray: Any) -> Any:
    """Return a queue of Ray (`ray.util.queue.Queue`) on this process's node."""
    here = Bundle(0, node=ray.get_runtime_context().get_node_id())
    return import_module("ray.util.queue").Queue(actor_options=options_of(ray, here, soft=False))


def origin_here(cpus: int, threads: int | None = None) -> tuple[str, dict[str, str]]:
    """Return what a worker takes over from this process: the working folder, and variables of the environment.

    PYTHONPATH is one of them; the others say with how many threads to compute: `threads`, or as many as they say here,
    else one a CPU of the worker.
    """
    own = {} if threads else os.environ
    counts = {name: own.get(name, str(threads or cpus)) for name in THREADS}
    return str(Path.cwd()), {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), **counts}


def adopt(folder: str, environment: dict[str, str]) -> None:
    """Take over in a worker what `origin_here` gave; before torch is loaded, which reads the environment then."""
    os.environ.update(environment)
    if Path(folder).is_dir():
        os.chdir(folder)
    sys.path += [path for path in environment["PYTHONPATH"].split(os.pathsep) if path and path not in sys.path]


def result_of(ray: Any, call: Any, timeout: float | None = None) -> Any:
    """Return what a call to a worker gave.

    Raises:
        PipelineError: As the work raised it, or the work failed with an error that nobody foresaw.
        OSError: As the work raised it.
        RayError: The worker is lost, or it does not answer in time [seconds].
    """
    try:
        return ray.get(call, timeout=timeout)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, PipelineError | OSError):
            raise error.cause from None
        found = f"{type(error.cause).__name__}: {' '.join(str(error.cause).split())}"
        node = re.search(r"ip=([^,)]+)", str(error))
        where = f"worker on {node[1]}" if node else "--engine ray"
        raise PipelineError(expected="work that ends", found=found, where=where) from error
