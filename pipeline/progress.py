"""How long work tells how far it is: one callable that gets an `Update`; the command line draws it, tests collect it.

with progress_bar() as progress:
    extract(config, progress)

`str(update)` is a sentence, so `print` is a `Progress` too.
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipeline.words import duration, on_stderr


@dataclass(frozen=True, kw_only=True)
class Update:
    """Where the work stands, or a sentence about it."""

    what: str = ""
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

    def __str__(self) -> str:
        """Return it as a sentence."""
        return self.message or f"{self.what}: {self.done:,}{f' of {self.total:,}' if self.total else ''}"


Progress = Callable[[Update], None]


def silent(update: Update) -> None:
    """Ignore an update."""


def say(progress: Progress, sentence: str) -> None:
    """Tell a `Progress` one sentence."""
    progress(Update(message=sentence))


class Meter:
    """Counts rows and tells a `Progress` about them, at most ten times a second; may be used from several threads.

    Args:
        progress: Who is told.
        what: What is counted.
        total: Rows in all; 0 where nobody knows.
        done: Rows that earlier runs did; they do not count for the rate.
    """

    def __init__(self, progress: Progress, what: str, total: int, done: int = 0) -> None:
        self._progress, self._what, self._total, self._done, self._first = progress, what, total, done, done
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
        self._progress(update)


@contextmanager
def progress_bar(*, quiet: bool = False) -> Iterator[Progress]:
    """Yield a `Progress` that draws sentences, and a bar a kind of work, on standard error; none where `quiet`."""
    if quiet:
        yield silent
        return
    bars: dict[str, Any] = {}

    def progress(update: Update) -> None:
        if not update.message:
            _draw(bars, update)
        elif bars:
            next(iter(bars.values())).write(update.message, file=sys.stderr)
        else:
            on_stderr(update.message)

    try:
        yield progress
    finally:
        for bar in bars.values():
            bar.close()


def _draw(bars: dict[str, Any], update: Update) -> None:
    from tqdm import tqdm

    name = f"{update.what} {update.total}"
    if name not in bars and not (update.done or update.total):
        return  # nothing to show yet: a bar of nothing says "0 rows [00:00, ? rows/s]"
    if name not in bars:
        bars[name] = tqdm(
            total=update.total or None, initial=update.done, desc=update.what, unit=" rows", dynamic_ncols=True
        )
    bar = bars[name]
    if update.others:
        bar.set_postfix_str(f"{update.rate:.1f} rows/s here", refresh=False)
    elif update.eta is not None and not update.rate:
        bar.set_postfix_str(f"{duration(update.eta)} left", refresh=False)
    bar.update(update.done - bar.n)
