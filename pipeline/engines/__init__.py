"""Engines: where work that can be shared out runs: on this machine, or on a Ray cluster.

with open_engine("ray", "auto") as engine:
    engine.extract(config)
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from importlib import import_module
from typing import TypeVar

from pipeline.errors import UnknownNameError, UserError
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import ExtractResult, extract
from pipeline.parallel import run_side_by_side
from pipeline.progress import Progress, silent

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine:
    """Works on this machine: one process extracts, worker processes do small runs."""

    def jobs(self, asked: int | None) -> int:
        """Return how many small runs to do at once: the number asked for, else what suits the engine."""
        return asked or 1

    def extract(self, config: ExtractConfig, progress: Progress = silent) -> ExtractResult:
        """Bring one store up to date, as `pipeline.extract.run.extract` does, with the same bytes and errors."""
        return extract(config, progress)

    def side_by_side(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        jobs: int,
        on_done: Callable[[int, Result], None] = lambda position, result: None,
    ) -> list[Result]:
        """Return `work` of each item, as `run_side_by_side` does, with the same digits."""
        return run_side_by_side(work, items, jobs=jobs, on_done=on_done)


@contextmanager
def open_engine(name: str, address: str | None = None, device: str = "cpu") -> Iterator[Engine]:
    """Yield an engine.

    Args:
        name: `local` or `ray`.
        address: Where the cluster is; see `pipeline.engines.cluster.connect`.
        device: What small runs compute on.

    Raises:
        UnknownNameError: There is no such engine.
        UserError: An address for an engine that needs none.
        MissingExtraError: Ray is not installed.
    """
    if name == "ray":
        with closing(import_module("pipeline.engines.ray_engine").RayEngine(address, device)) as engine:
            yield engine
    elif name != "local":
        raise UnknownNameError("engine", name, ("local", "ray"), "--engine")
    elif address is not None:
        raise UserError(expected="--engine ray beside it", found="none", where=f"--address {address}")
    else:
        yield Engine()
