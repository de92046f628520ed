"""What an engine does for the commands: extract one store, and do small runs side by side."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TypeVar

from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import ExtractResult
from pipeline.progress import Progress, silent

Item = TypeVar("Item")
Result = TypeVar("Result")


class Engine(ABC):
    """A place to work; closed at the end of a `with`."""

    def __enter__(self) -> "Engine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:  # noqa: B027 - an engine in this process has nothing to let go
        """Let go of what the engine holds."""

    @abstractmethod
    def jobs(self, said: int | None) -> int:
        """Return how many small runs to do at once: what was said, else what suits the engine."""

    @abstractmethod
    def extract(self, config: ExtractConfig, progress: Progress = silent) -> ExtractResult:
        """Bring one store up to date, as `pipeline.extract.run.extract` does, with the same bytes and errors."""

    @abstractmethod
    def side_by_side(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        jobs: int,
        on_done: Callable[[int, Result], None] = lambda position, result: None,
    ) -> list[Result]:
        """Return `work` of each item, as `pipeline.align.parallel.run_side_by_side` does, with the same digits."""
