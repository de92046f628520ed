"""Time pieces of work in turn, A B C A B C ..., so that a busy machine slows all of them alike; used by benchmarks."""

import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

T = TypeVar("T")
Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """How long some work took."""

    wall: float
    """Seconds on the clock."""
    cpu: float
    """Seconds of all threads of this process, and of the processes that it started and that have ended."""


def alternate(tasks: Mapping[str, Work], repeat: int) -> dict[str, Seconds]:
    """Do each of the tasks in turn, `repeat` times; return the median of each."""
    return {name: median(runs) for name, runs in rounds(tasks, repeat).items()}


def rounds(tasks: Mapping[str, Work], repeat: int) -> dict[str, list[Seconds]]:
    """Do each of the tasks in turn, `repeat` times; return the seconds of each in each round."""
    taken: dict[str, list[Seconds]] = {name: [] for name in tasks}
    for _ in range(repeat):
        for name, work in tasks.items():
            taken[name].append(timed(work))
    return taken


def median(runs: Sequence[Seconds]) -> Seconds:
    """Return the median of the clock's seconds and that of the CPU's."""
    return Seconds(wall=statistics.median(run.wall for run in runs), cpu=statistics.median(run.cpu for run in runs))


def timed(work: Work) -> Seconds:
    """Return how long some work takes, a GPU's part included."""
    return measured(work)[1]


def measured(work: Callable[[], T]) -> tuple[T, Seconds]:
    """Return what some work gives and how long it takes, a GPU's part included."""
    wall, cpu = time.perf_counter(), _cpu()
    given = work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return given, Seconds(wall=time.perf_counter() - wall, cpu=_cpu() - cpu)


def _cpu() -> float:
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + ended.ru_utime + ended.ru_stime


def in_own_process(module: str, flags: Mapping[str, object]) -> dict[str, Any]:
    """Run `python -m MODULE --flag value ...`; return the JSON object of its last line.

    Raises:
        RuntimeError: It failed; says the last line of its errors.
    """
    words = [word for name, value in flags.items() for word in (f"--{name}", str(value))]
    done = subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{module}: {done.stderr.strip().splitlines()[-1]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def show(title: str, rows: int, found: Mapping[str, Seconds]) -> None:
    """Print a table: seconds, rows a second, and ratios to the first of the tasks."""
    print(f"\n{title}")
    print(f"  {'':34} {'wall s':>8} {'CPU s':>8} {'rows/s':>9} {'wall ×':>7} {'CPU ×':>7}")
    first = next(iter(found.values()))
    for name, took in found.items():
        ratios = f"{took.wall / first.wall:7.2f} {took.cpu / max(first.cpu, 1e-9):7.2f}"
        print(f"  {name:34} {took.wall:8.2f} {took.cpu:8.2f} {rows / took.wall:9.1f} {ratios}")
