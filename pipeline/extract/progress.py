"""How long work tells how far it is: one callable that gets an `Update`; the command line draws it, tests ignore it.

with progress_bar() as report:
    extract(config, report)
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Update:
    """Where the work stands."""

    what: str
    """What is being worked on, such as "features" or "images"."""
    done: int = 0
    """Rows done, the ones of earlier runs and of other workers included."""
    total: int = 0
    """Rows in all; 0 where nobody knows."""
    rate: float = 0.0
    """Rows a second of this run, others' left out; 0 before the first is done."""
    others: int = 0
    """Rows that other workers did while this run worked."""
    eta: float | None = None
    """Seconds still to go for all workers together, or None where that cannot be said."""
    message: str = ""
    """A sentence for the user, such as the cost of the work; empty for a mere count."""


Report = Callable[[Update], None]


def silent(update: Update) -> None:
    """Ignore an update."""


class Meter:
    """Counts rows and tells a `Report` about them, at most ten times a second; may be used from several threads.

    Args:
        report: Who is told.
        what: What is counted.
        total: Rows in all; 0 where nobody knows.
        done: Rows that earlier runs did; they do not count for the rate.
    """

    def __init__(self, report: Report, what: str, total: int, done: int = 0) -> None:
        self._report, self._what, self._total, self._done, self._first = report, what, total, done, done
        self._others = 0
        self._guard = threading.Lock()  # what is counted later is told later
        self._start = self._told = time.perf_counter()
        self._tell()

    def begin(self, missing: int) -> None:
        """Say how many rows are missing now, where others may have done some since this was made."""
        with self._guard:
            if self._total - missing != self._done:
                self._done = self._first = self._total - missing
                self._tell()

    def advance(self, rows: int = 1) -> None:
        """Count rows as done."""
        with self._guard:
            self._done += rows
            if time.perf_counter() - self._told > 0.1 or self._done + self._others == self._total:
                self._tell()

    def elsewhere(self, rows: int) -> None:
        """Say how many rows other workers have done since this run began."""
        with self._guard:
            if rows != self._others:
                self._others = rows
                self._tell()

    def _tell(self) -> None:
        self._told = time.perf_counter()
        took = max(self._told - self._start, 1e-9)
        own = self._done - self._first
        done = self._done + self._others
        done = min(done, self._total) if self._total else done
        together = (own + self._others) / took
        eta = (self._total - done) / together if together and self._total else None
        update = Update(what=self._what, done=done, total=self._total, rate=own / took, others=self._others, eta=eta)
        self._report(update)


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Report]:
    """Yield a `Report` that draws one bar a kind of work on standard error; nothing at all where `quiet`."""
    if quiet:
        yield silent
        return
    from tqdm import tqdm

    bars: dict[str, Any] = {}

    def report(update: Update) -> None:
        if update.message:
            tqdm.write(update.message, file=_stderr())
            return
        if update.what not in bars:
            bars[update.what] = tqdm(
                total=update.total or None, initial=update.done, desc=update.what, unit=" rows", dynamic_ncols=True
            )
        if update.others:
            bars[update.what].set_postfix_str(f"{update.rate:.1f} rows/s here", refresh=False)
        bars[update.what].update(update.done - bars[update.what].n)

    try:
        yield report
    finally:
        for bar in bars.values():
            bar.close()


def _stderr() -> Any:
    import sys

    return sys.stderr
