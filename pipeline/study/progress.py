"""How far a sweep is: a bar with the time that is left, weighted by what cells cost; plain sentences in a log.

with CellMeter(costs, jobs) as meter: meter.done(cost, seconds, "cca n=1000")
"""

import sys
import time
from types import TracebackType
from typing import Any

from pipeline.words import duration

EVERY = 30.0  # seconds between two sentences in a log


class CellMeter:
    """Counts cells by their expected cost.

    Args:
        left: Expected core-seconds of the cells that are left to do.
        jobs: Worker processes.
        finished: Cells that earlier runs did.
        quiet: Say nothing.
    """

    def __init__(self, left: list[float], jobs: int, *, finished: int = 0, quiet: bool = False) -> None:
        self._left, self._jobs, self._quiet = sum(left), jobs, quiet
        self._cells, self._total = finished, finished + len(left)
        self._expected = 0.0
        self._start = self._told = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> "CellMeter":
        if not self._quiet and sys.stderr.isatty():
            from tqdm import tqdm

            shape = "{desc} {percentage:3.0f}%|{bar}| {elapsed}, {postfix}"
            self._bar = tqdm(total=self._left or 1.0, bar_format=shape, desc="cells", dynamic_ncols=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    @property
    def eta(self) -> float:
        """Seconds that are left: the expected cost of the rest, scaled by how long the expected cost took so far."""
        rest = max(self._left - self._expected, 0.0)
        if not self._expected:
            return rest / self._jobs
        return rest * (time.monotonic() - self._start) / self._expected

    def done(self, expected: float, what: str) -> None:
        """Count a cell."""
        self._cells += 1
        self._expected += expected
        if self._quiet:
            return
        text = f"{duration(self.eta)} left, {what}"
        if self._bar is not None:
            self._bar.set_description_str(f"cells {self._cells}/{self._total}", refresh=False)
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(expected)
        elif time.monotonic() - self._told > EVERY:
            self._told = time.monotonic()
            sys.stderr.write(f"{self._cells} of {self._total} cells, {text}\n")
            sys.stderr.flush()
