"""Processes that write a toy store at a URL and are killed, or work beside each other; a script, not a test.

Run as `python -m tests.storage.processes MODE URL`; prints JSON lines. A killed writer is a forked child with a cache
of its own, so that many deaths cost one start of Python.
"""

import functools
import itertools
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import h5py  # noqa: F401  imported before the forks
import pyarrow.parquet  # noqa: F401
import s3fs  # noqa: F401

from pipeline.storage import leases
from pipeline.storage.requests import Requests
from pipeline.store.reader import FeatureStore
from pipeline.store.writer import StoreWriter
from tests.store.building import ITEMS, LAYERS, computed, fill, header, samples
from tests.store.processes import Death, in_child, say

SENDING = ("create", "upload", "write", "replace", "remove")
HEADER = header(shard_rows=ITEMS)


def write(url: str, number: int | None = None, after: bool = False) -> list[str]:
    """Write a store on a machine of its own, dying before or after it sends something; return what it sent."""
    os.environ["FEWPAIRS_CACHE"] = tempfile.mkdtemp()
    death = Death(number, torn=False)
    for name in SENDING:
        step = getattr(Requests, name)
        setattr(Requests, name, dying_after(death, step) if after else death.at(name, step))
    fill(url, HEADER)
    return death.names


def dying_after(death: Death, step: Callable[..., Any]) -> Callable[..., Any]:
    """Return a step that dies when it is done, if it is its turn."""

    @functools.wraps(step)
    def dying(*args: Any, **kwargs: Any) -> Any:
        result = step(*args, **kwargs)
        death.at(step.__name__, lambda: None)()
        return result

    return dying


def recover(url: str) -> dict[str, Any]:
    """Look at what a killed writer left, on another machine, and finish it."""
    wait_for_no_lease()
    os.environ["FEWPAIRS_CACHE"] = tempfile.mkdtemp()
    try:
        FeatureStore.open(url)
        before = "whole"
    except Exception as error:  # what it is called is what is asked
        before = type(error).__name__
    digest = fill(url, HEADER).content_digest
    store = FeatureStore.open(url)
    return {"before": before, "digest": digest, "values": [store.numpy(name).tobytes().hex() for name in LAYERS]}


def every_step(url: str, turns: list[tuple[int, bool]]) -> None:
    """Die before or after requests that change something (all if none is named); recover on another machine."""
    names = in_child(lambda: write(f"{url}/counted"))
    say({"names": names})
    for number, after in turns or itertools.product(range(len(names)), (False, True)):
        place = f"{url}/{number}-{after}"
        ended = in_child(functools.partial(write, place, number, after))
        result = in_child(functools.partial(recover, place))
        say({"step": names[number], "after": after, "ended": ended, "result": result})


def wait_for_no_lease() -> None:
    """Let much time pass between two looks at a lease: its holder is known to be dead here."""
    moments = itertools.count(0, 1000)
    setattr(leases, "time", SimpleNamespace(monotonic=lambda: float(next(moments))))  # noqa: B010


def work_beside(url: str) -> None:
    """Write a store beside other machines; say which shards this one committed and what it ended with."""
    store_writer = StoreWriter(url, header(shard_rows=6))
    mine = []
    for shard in store_writer.work(LAYERS, poll=0.1):
        time.sleep(0.5)
        store_writer.commit(shard, *computed(shard))
        mine.append(shard.index)
    manifest = store_writer.finish(samples(), {"spec": "toy"})
    say({"mine": mine, "digest": manifest.content_digest})


def hang(url: str) -> None:
    """Claim a shard and never commit it."""
    store_writer = StoreWriter(url, header(shard_rows=6))
    for shard in store_writer.work(LAYERS):
        say({"claimed": shard.index})
        sys.stdout.flush()
        signal.pause()


if __name__ == "__main__":
    modes: dict[str, Callable[[str], None]] = {
        "some": lambda url: every_step(url, [(2, True), (3, True), (7, False), (7, True)]),
        "all": lambda url: every_step(url, []),
        "beside": work_beside,
        "hang": hang,
    }
    modes[sys.argv[1]](sys.argv[2])
