"""Which workers fit on a cluster: one encoder a GPU, else one a slot of CPUs, decoders on other CPUs.

Small runs: one a GPU or a CPU.

Plain arithmetic on what the nodes offer; Ray is not asked here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pipeline.errors import UserError

_THREADS = 32
"""Decoding threads of an encoder, at most, as without a cluster."""


@dataclass(frozen=True, kw_only=True)
class Node:
    """A live node of a cluster."""

    name: str
    """Ray's id of it."""
    cpus: int
    """CPUs that it offers."""
    gpus: int = 0
    """GPUs that it offers."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Room for one worker."""

    cpus: int
    """CPUs that it takes: threads that decode, and that compute if it is an encoder's and there is no GPU."""
    gpus: int = 0
    """GPUs that it takes, 0 or 1."""
    node: str = ""
    """Node that it is meant for; empty means any."""


def extraction_places(
    nodes: Sequence[Node], device: str, workers: int | None, decode_cpus: int | None
) -> tuple[list[Place], list[Place]]:
    """Return places for encoders, and for workers that only decode.

    Args:
        nodes: The nodes.
        device: See `encoder_places`.
        workers: See `encoder_places`.
        decode_cpus: CPUs that only decode, of nodes without a GPU first; nothing means all of those nodes' where
            encoders have GPUs, else none.

    Raises:
        UserError: As `encoder_places`, or so many CPUs cannot be spared.
    """
    if decode_cpus is None:
        encoders = encoder_places(nodes, device, workers)
        idle = [node for node in nodes if not node.gpus] if encoders[0].gpus else []
        return encoders, [place for node in idle for place in _decoders(node.name, node.cpus)]
    on_gpus = device != "cpu" and any(node.gpus for node in nodes)
    spare = [max(node.cpus - node.gpus, 0) if on_gpus else node.cpus for node in nodes]
    limit = sum(spare) - (not on_gpus)
    if decode_cpus > max(limit, 0):
        remedy = "the others are for the encoders"
        raise UserError(
            expected=f"{max(limit, 0)} or fewer", found=str(decode_cpus), where="--decode-cpus", remedy=remedy
        )
    left, decoders, wanted = [], [], decode_cpus
    for node, most in sorted(zip(nodes, spare, strict=True), key=lambda pair: pair[0].gpus > 0):
        taken = min(wanted, most)
        wanted -= taken
        left.append(replace(node, cpus=node.cpus - taken))
        decoders += _decoders(node.name, taken)
    return encoder_places(left, device, workers), decoders


def encoder_places(nodes: Sequence[Node], device: str, workers: int | None) -> list[Place]:
    """Return a place for each encoder.

    Args:
        nodes: The nodes.
        device: auto (GPUs where there are any), cpu or cuda.
        workers: CPUs of a place; nothing means a fair share of the node's beside a GPU, else all of the node's.

    Raises:
        UserError: There is no room, or no GPU where one is asked for.
    """
    if device not in ("auto", "cpu", "cuda"):
        remedy = "use --device cuda: Ray gives each worker a GPU of its own"
        raise UserError(expected="auto, cpu or cuda with an engine", found=device, where="--device", remedy=remedy)
    if device != "cpu" and any(node.gpus for node in nodes):
        places = [place for node in nodes for place in _beside_gpus(node, workers)]
    elif device == "cuda":
        raise UserError(expected="a cluster with a GPU", found="none", where="--device cuda")
    else:
        places = [place for node in nodes for place in _on_cpus(node, workers)]
    return _some(places)


def cell_places(nodes: Sequence[Node], device: str) -> list[Place]:
    """Return a place for each small run that fits: one a GPU where there are any and `device` allows, else one a CPU.

    Raises:
        UserError: There is no room.
    """
    gpus = sum(min(node.gpus, node.cpus) for node in nodes) if device != "cpu" else 0
    if gpus:
        return [Place(cpus=1, gpus=1)] * gpus
    return _some([Place(cpus=1)] * sum(node.cpus for node in nodes))


def _decoders(node: str, cpus: int) -> list[Place]:
    return [Place(cpus=min(_THREADS, cpus - start), node=node) for start in range(0, cpus, _THREADS)]


def _beside_gpus(node: Node, workers: int | None) -> list[Place]:
    count = min(node.gpus, node.cpus)
    share = node.cpus // count if count else 0
    return [Place(cpus=min(workers or _THREADS, share), gpus=1, node=node.name)] * count


def _on_cpus(node: Node, workers: int | None) -> list[Place]:
    size = min(workers or node.cpus, node.cpus)
    return [Place(cpus=size, node=node.name)] * (node.cpus // size if size else 0)


def _some(places: list[Place]) -> list[Place]:
    if not places:
        remedy = "wait until nodes have joined (`ray status`), or start some: `ray start --address HEAD:PORT`"
        raise UserError(expected="a cluster with CPUs for workers", found="none", where="--engine ray", remedy=remedy)
    return places
