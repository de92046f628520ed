"""Processes that write a toy store and are killed, run out of room, or work beside each other; a script, not a test.

Run as `python -m tests.store.processes MODE ROOT FORMAT [NUMBER]`; prints JSON lines. A killed writer is a forked
child, so that hundreds of deaths cost one start of Python.
"""

import functools
import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py  # noqa: F401  imported before the forks
import pyarrow.parquet  # noqa: F401

from pipeline import files
from pipeline.errors import PipelineError
from pipeline.storage import local
from pipeline.storage.local import open_storage
from pipeline.store import commit, writer
from pipeline.store.commit import committed
from pipeline.store.manifest import HEADER, MANIFEST
from pipeline.store.reader import FeatureStore
from tests.store.building import LAYERS, computed, fill, header, samples

STEPS: list[tuple[Any, str]] = [
    (commit, "retire"),
    (commit, "write_shard"),
    (commit, "verify_shard"),
    (local, "temp_file"),
    (local, "link_new"),
    (files, "write_bytes"),
    (files, "sync_file"),
    (files, "publish"),
    (files, "sync_folder"),
    (writer, "put_if_changed"),
    (writer, "finish"),
]
TORN = {"write_shard": 1, "write_bytes": 0}
"""Steps that may also die half-way: which argument is the file that is then cut."""


def say(line: dict[str, Any]) -> None:
    """Print a JSON line."""
    sys.stdout.write(json.dumps(line) + "\n")


class Death:
    """Kills this process at the n-th step; counts the steps if n is none."""

    def __init__(self, number: int | None, torn: bool) -> None:
        self.number, self.torn, self.count = number, torn, 0
        self.names: list[str] = []

    def at(self, name: str, step: Callable[..., Any]) -> Callable[..., Any]:
        """Return a step that dies before it begins, or half-way, if it is its turn."""

        @functools.wraps(step)
        def dying(*args: Any, **kwargs: Any) -> Any:
            turn = self.count == self.number
            self.count += 1
            self.names.append(name)
            if turn and self.torn and name in TORN:
                step(*args, **kwargs)
                path = args[TORN[name]]
                os.truncate(path, path.stat().st_size // 2)
            if turn:
                os.kill(os.getpid(), signal.SIGKILL)
            return step(*args, **kwargs)

        return dying

    def install(self) -> None:
        """Put itself before every step."""
        for module, name in STEPS:
            setattr(module, name, self.at(name, getattr(module, name)))


def in_child(work: Callable[[], Any]) -> Any:
    """Run in a forked child; return what it returned, or the signal that ended it."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        code = 1
        try:
            os.write(writing, json.dumps(work()).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    return json.loads(text) if os.WIFEXITED(status) and text else -os.waitstatus_to_exitcode(status)


def run(root: Path, file_format: str, rows: int, number: int | None = None, torn: bool = False) -> list[str]:
    """Write a store in two runs, first one layer and then all, dying at a step; return the steps' names."""
    death = Death(number, torn)
    death.install()
    fill(root, header(file_format, shard_rows=rows), LAYERS[:1])
    fill(root, header(file_format, shard_rows=rows))
    return death.names


def recover(root: Path, file_format: str, rows: int) -> dict[str, Any]:
    """Finish what a killed run left, and say what was done before and what had to be done."""
    head = header(file_format, shard_rows=rows)
    before = committed(open_storage(root), head) if root.exists() else {}
    done = sorted((index, layer.name) for index, files in before.items() for file in files for layer in file.layers)
    redone: list[tuple[int, str]] = []
    store_writer = writer.StoreWriter(root, head)
    for shard in store_writer.work(LAYERS):
        redone += [(shard.index, name) for name in shard.layers]
        store_writer.commit(shard, *computed(shard))
    store_writer.finish(samples(), {"spec": "toy"})
    store = FeatureStore.open(root)
    digests = [store.numpy(name).tobytes().hex() for name in LAYERS]
    left = sorted(path.name for path in root.iterdir() if path.name.startswith("."))
    return {"done": done, "redone": sorted(redone), "digest": store.content_digest, "values": digests, "left": left}


def every_step(root: Path, file_format: str, rows: int) -> None:
    """Die at every step, before it and half-way, and recover each time."""
    names = in_child(lambda: run(root, file_format, rows))
    shutil.rmtree(root)
    turns = [(n, False) for n in range(len(names))] + [(n, True) for n, name in enumerate(names) if name in TORN]
    for number, torn in turns:
        ended = in_child(functools.partial(run, root, file_format, rows, number, torn))
        result = in_child(lambda: recover(root, file_format, rows))
        say({"step": names[number], "torn": torn, "ended": ended, "result": result})
        shutil.rmtree(root)


def random_moments(root: Path, file_format: str, times: int) -> None:
    """Kill a writer so many times in the middle, again and again on one store until it is whole, then begin anew.

    What comes too late makes the next moments earlier, what comes too early later, however quick the machine is.
    """
    chance, longest, killed = random.Random(0), 0.12, 0
    while killed < times:
        child = os.fork()
        if child == 0:
            try:
                fill(root, header(file_format, shard_rows=4))
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
        time.sleep(chance.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        whole = (root / MANIFEST).exists()
        if os.WIFEXITED(status):
            assert os.waitstatus_to_exitcode(status) == 0, "a writer failed"
            assert whole
        if whole:
            shutil.rmtree(root)
        killed += (root / HEADER).exists()
        longest *= 0.8 if whole else 1.1
    say({"killed": killed})
    digest = in_child(lambda: fill(root, header(file_format, shard_rows=4)).content_digest)
    say({"digest": digest, "left": [path.name for path in root.glob(".*")]})


def out_of_room(root: Path, file_format: str) -> None:
    """Write with a limit on the size of files; say what was raised and what is left."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    store_writer = writer.StoreWriter(root, header(file_format, items=20_000, shard_rows=10_000))
    shard = store_writer.pending(LAYERS)[1]
    work = computed(shard, items=20_000)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    try:
        store_writer.commit(shard, *work)
    except PipelineError as error:
        say({"sentence": error.sentence(), "code": error.exit_code})
    say({"left": sorted(path.name for path in root.iterdir())})


def work_beside(root: Path, file_format: str) -> None:
    """Write a store beside other processes; say which shards this one committed and what it ended with."""
    store_writer = writer.StoreWriter(root, header(file_format, shard_rows=2))
    mine = []
    for shard in store_writer.work(LAYERS, poll=0.02):
        time.sleep(0.02)
        store_writer.commit(shard, *computed(shard))
        mine.append(shard.index)
    manifest = store_writer.finish(samples(), {"spec": "toy"})
    say({"mine": mine, "digest": manifest.content_digest})


def main(mode: str, root: Path, file_format: str, number: int = 0) -> None:
    """Run one mode."""
    modes: dict[str, Callable[[], None]] = {
        "steps": lambda: every_step(root, file_format, number),
        "moments": lambda: random_moments(root, file_format, number),
        "room": lambda: out_of_room(root, file_format),
        "beside": lambda: work_beside(root, file_format),
    }
    modes[mode]()


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:]))
