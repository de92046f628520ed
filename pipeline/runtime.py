"""The machine that work runs on: device, cores, disk and memory, installed versions, and the names of number formats.

Importing it loads no torch.
"""

import ctypes
import os
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.errors import UserError

if TYPE_CHECKING:
    import torch

DTYPE_NAMES = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}
"""The short names that options take → the names that torch and the store use."""

_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_MOST = 2**31 - 1


def resolve_device(name: str, where: str = "--device") -> "torch.device":
    """Return a device of this machine by name; `auto` is the current CUDA device, or else the CPU.

    Args:
        name: `auto`, or a name that torch knows.
        where: The option that it came from, for the error.

    Raises:
        UserError: torch does not know the name, or this machine has no such device.
    """
    import torch

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UserError(expected="a device such as cpu, cuda or cuda:1", found=repr(name), where=where) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise UserError(expected="a CUDA device", found="none", where=where, remedy="use --device cpu")
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as error:
        found = f"{name!r} ({' '.join(str(error).split())[:120]})"
        raise UserError(expected="a device of this machine: auto, cpu or cuda", found=found, where=where) from error


def torch_dtype(name: str) -> "torch.dtype":
    """Return torch's number format of a name, short (`fp16`) or long (`float16`).

    Raises:
        ValueError: It is no number format.
    """
    import torch

    found = getattr(torch, DTYPE_NAMES.get(name, name), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name!r} is no number format")
    return found


@cache
def installed_version(distribution: str) -> str | None:
    """Return the version of an installed distribution, or None; what is loaded does not change under a process."""
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None


def installed_versions(distributions: Iterable[str]) -> dict[str, str]:
    """Return name → version of those distributions that are installed."""
    found = {name: installed_version(name) for name in distributions}
    return {name: number for name, number in found.items() if number}


def cpu_cores() -> int:
    """Return the number of CPU cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def free_disk(path: Path) -> int:
    """Return the free bytes of the disk that a path is on, or will be.

    Raises:
        OSError: The file system does not say.
    """
    folder = path.absolute()
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    return shutil.disk_usage(folder).free


def keep_freed_memory() -> bool:
    """Ask the C library to reuse freed blocks; for the whole process, at no cost but that it keeps its peak.

    By default glibc gives every large block back to the system when it is freed, and the kernel clears it page by page
    when the next layer asks for it again: with the activations of a convolutional network that is more than half of
    all CPU time (EfficientNet-Lite0, batches of 32: 16 images a CPU second before, 44 after).

    Returns:
        Whether it could be asked: glibc alone has these switches.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_MAX, 0)) and bool(mallopt(_M_TRIM_THRESHOLD, _MOST))


# ---- one of several workers ------------------------------------------------------------------------------------------

_LAUNCHERS = (
    ("SLURM_PROCID", "SLURM_NTASKS", ""),
    ("RANK", "WORLD_SIZE", ""),
    ("SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT", "SLURM_ARRAY_TASK_MIN"),
)
"""(this worker's number, how many there are, the first number) as srun, torchrun and job arrays of SLURM say them."""


@dataclass(frozen=True, kw_only=True)
class Share:
    """One worker's part of a store."""

    index: int = 0
    """Which of the workers this is, from 0."""
    count: int = 1
    """How many workers there are."""
    source: str = ""
    """What in the environment said so; empty where the flags did, or nothing."""


def share_of(index: int | None, count: int | None, environment: Mapping[str, str]) -> Share:
    """Return a worker's share: what the flags say, else the first launcher of several workers in the environment.

    A launcher that starts one process, or that does not say how many it starts, is no launcher of several workers.

    Args:
        index: `--worker-index`, None where nothing was said.
        count: `--num-workers`, None where nothing was said.
        environment: Environment variables.

    Raises:
        UserError: One flag without the other, or numbers that do not fit each other.
    """
    if count == 1 and index is None:
        return Share()
    if index is not None and count is not None:
        return _checked(index, count, "--worker-index", "--num-workers")
    if index is not None or count is not None:
        found = "only --num-workers" if index is None else "only --worker-index"
        raise UserError(expected="--worker-index and --num-workers together", found=found)
    for number, total, first in _LAUNCHERS:
        if environment.get(total, "1") == "1" or number not in environment:
            continue
        begin = _whole(environment, first) if environment.get(first) else 0
        share = _checked(_whole(environment, number) - begin, _whole(environment, total), number, total)
        return Share(index=share.index, count=share.count, source=f"{number}={environment[number]}")
    return Share()


def _checked(index: int, count: int, number: str, total: str) -> Share:
    if count < 1:
        raise UserError(expected="1 or more", found=str(count), where=total)
    if not 0 <= index < count:
        raise UserError(expected=f"0 to {count - 1}, as {total} says", found=str(index), where=number)
    return Share(index=index, count=count)


def _whole(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    try:
        return int(text)
    except ValueError as error:
        remedy = "correct it, or give --worker-index and --num-workers"
        raise UserError(expected="a whole number", found=repr(text), where=name, remedy=remedy) from error
