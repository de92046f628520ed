"""A worker of a cluster: an actor that does one item at a time and, asked, tells how far it is. Knows nothing of Ray.

What happens to an item comes back as `Done` or `Failed`, never as an exception: whatever is raised by a call to a
worker is the cluster's failure, and only that is tried again.
"""

import os
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pipeline
from pipeline.errors import PipelineError
from pipeline.progress import Update


class Done(NamedTuple):
    """An item's result."""

    result: Any
    news: list[Update]
    """What was not told before."""


class Failed(NamedTuple):
    """What stopped an item."""

    error: PipelineError | OSError


@dataclass(frozen=True, kw_only=True)
class Setup:
    """What a worker takes over from the process that started it."""

    folder: str
    """Its working folder, where the node has it: relative paths and classes of one's own are found from there."""
    python_path: tuple[str, ...]
    """Folders of its PYTHONPATH."""
    threads: int
    """Threads that decode."""
    environment: Mapping[str, str]
    """Variables that say with how many threads to compute."""


@dataclass(frozen=True)
class Seat:
    """What a piece of work gets beside its item."""

    threads: int
    """Threads that may decode."""
    tell: Callable[[Update], None]
    """Takes news for whoever waits."""


Work = Callable[[Any, Seat], Any]


class News:
    """What is to be told: every sentence, and of each count the newest, however seldom anybody asks."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._sentences: list[Update] = []
        self._counts: dict[str, Update] = {}

    def put(self, update: Update) -> None:
        """Keep an update."""
        with self._lock:
            if update.message:
                self._sentences.append(update)
            else:
                self._counts[update.what] = update

    def take(self) -> list[Update]:
        """Return what came since the last time."""
        with self._lock:
            found = [*self._sentences, *self._counts.values()]
            self._sentences.clear()
            self._counts.clear()
        return found


class Worker:
    """Does items. Several threads call it: for `news`, and for `run`, which a decoder is asked for many times at once.

    Args:
        setup: What it takes over.
    """

    def __init__(self, setup: Setup) -> None:
        os.environ.update(setup.environment)  # before torch is loaded, which reads it then
        if Path(setup.folder).is_dir():
            os.chdir(setup.folder)
        sys.path += [path for path in setup.python_path if path not in sys.path]
        self._news = News()
        self._seat = Seat(setup.threads, self._news.put)

    def ready(self) -> str:
        """Return the version of this package that it runs."""
        return pipeline.__version__

    def run(self, work: Work, item: Any) -> Done | Failed:
        """Do one item."""
        try:
            return Done(work(item, self._seat), self._news.take())
        except (PipelineError, OSError) as error:
            return Failed(error)
        except Exception as error:
            found = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return Failed(
                PipelineError(expected="work that ends", found=found, where=f"worker on {os.uname().nodename}")
            )

    def news(self) -> list[Update]:
        """Return what came since the last time."""
        return self._news.take()
