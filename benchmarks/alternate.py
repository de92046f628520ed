"""Time pieces of work in turn, A B C A B C ..., so that a busy machine slows all of them alike; used by benchmarks."""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

Work = Callable[[], object]


@dataclass(frozen=True, kw_only=True)
class Seconds:
    """How long some work took."""

    wall: float
    """Seconds on the clock."""
    cpu: float
    """Seconds of all threads of this process; other processes do not count."""


def alternate(tasks: Mapping[str, Work], repeat: int) -> dict[str, Seconds]:
    """Do each of the tasks in turn, `repeat` times; return the median of each."""
    taken: dict[str, list[Seconds]] = {name: [] for name in tasks}
    for _ in range(repeat):
        for name, work in tasks.items():
            taken[name].append(timed(work))
    return {name: _median(runs) for name, runs in taken.items()}


def timed(work: Work) -> Seconds:
    """Return how long some work takes, a GPU's part included."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Seconds(wall=time.perf_counter() - wall, cpu=time.process_time() - cpu)


def show(title: str, rows: int, found: Mapping[str, Seconds]) -> None:
    """Print a table: seconds, rows a second, and ratios to the first of the tasks."""
    print(f"\n{title}")
    print(f"  {'':34} {'wall s':>8} {'CPU s':>8} {'rows/s':>9} {'wall ×':>7} {'CPU ×':>7}")
    first = next(iter(found.values()))
    for name, took in found.items():
        ratios = f"{took.wall / first.wall:7.2f} {took.cpu / max(first.cpu, 1e-9):7.2f}"
        print(f"  {name:34} {took.wall:8.2f} {took.cpu:8.2f} {rows / took.wall:9.1f} {ratios}")


def _median(runs: Sequence[Seconds]) -> Seconds:
    return Seconds(wall=statistics.median(run.wall for run in runs), cpu=statistics.median(run.cpu for run in runs))
