"""Several workers on one store, in forked processes: `python -m tests.extract.workers MODE RAW OUT FORMAT NUMBER`.

together: NUMBER workers at once, which wait for each other once. killed: the first is killed in the middle of its third
shard, then the others begin. elsewhere: the same, but each is of another machine, whose locks reach nobody. status: two
workers stop in the middle of their third shards, and what `store status` says meanwhile.
Prints JSON lines. One process imports everything, and forks before any thread is started.
"""

import json
import os
import signal
import sys
import time
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

from pipeline.extract import run
from pipeline.extract.config import ExtractConfig
from pipeline.storage.leases import Leases, this_process
from pipeline.store.events import read_events, status, summary
from tests.extract.beside import IMAGE, Filling, in_child, meet

ROWS = 4
"""Rows of a shard."""
LEASE = 1.0
"""Seconds of a lease where a machine dies."""


def work(config: ExtractConfig, machine: str | None = None) -> dict[str, Any]:
    """Extract, on another machine if one is named; say which shards it committed, in this order."""
    if machine is not None:
        holder = replace(this_process(), kernel=machine, host=machine)
        mock.patch.object(run, "this_process", return_value=holder).start()

        mock.patch.object(run, "Leases", partial(Leases, kernel=False)).start()
    result = run.extract(config)
    own = [event for event in read_events(config.out) if event["pid"] == os.getpid()]
    shards = [event["shard"] for event in own if event["event"] == "committed"]
    return {"index": config.worker_index, "shards": shards, "digest": result.content_digest}


def at_work(out: Path, pid: int) -> bool:
    """Say whether a run has claimed a shard that it has not committed, and committed two before and let them go."""
    own = [event for event in read_events(out) if event["pid"] == pid]
    claimed, done = ([event["shard"] for event in own if event["event"] == name] for name in ("claimed", "committed"))
    return len(claimed) > len(done) == 2 == sum(shard.state == "done" for shard in status(out) if shard.index in done)


def stop(out: Path) -> None:
    """Stop this process as soon as it has written all that it has encoded: two shards."""
    end = time.monotonic() + 300
    while not at_work(out, os.getpid()) and time.monotonic() < end:
        time.sleep(0.005)
    os.kill(os.getpid(), signal.SIGSTOP)


def stopping(config: ExtractConfig, machine: str | None = None) -> int:
    """Fork a run that stops in the middle of its third shard; wait until it does, and return its id."""

    def run() -> dict[str, Any]:
        Filling.before[2 * ROWS] = partial(stop, Path(str(config.out)))
        return work(config, machine)

    child = in_child(run)
    _, status = os.waitpid(child, os.WUNTRACED)
    assert os.WIFSTOPPED(status), status
    return child


def kill(out: Path, child: int) -> None:
    """Kill a run in the middle of a shard."""
    found = at_work(out, child)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    for path in out.glob(".*.lease"):  # renewed just now, however long the kill took
        os.utime(path, times=(time.time() + 1000, time.time() + 1000))
    held = [shard.index for shard in status(out) if shard.state == "leased"]
    say({"killed": found, "leases": sorted(path.name for path in out.glob(".*.lease")), "held": held})


def say(line: dict[str, Any]) -> None:
    """Print a JSON line at once: children print as well."""
    os.write(sys.stdout.fileno(), (json.dumps(line) + "\n").encode())


def main() -> None:
    mode, raw, out, kind, number = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5])
    config = ExtractConfig(
        dataset=raw, encoder=IMAGE, out=out, shard_rows=ROWS, batch_size=2, workers=1, format=kind, lease_seconds=LEASE
    )
    machines = [f"machine-{index}" if mode == "elsewhere" else None for index in range(number)]
    configs = [replace(config, worker_index=index, num_workers=number) for index in range(number)]
    if mode in ("killed", "elsewhere"):
        kill(out, stopping(configs[0], machines[0]))
        configs, machines = configs[1:], machines[1:]
    if mode == "together":
        Filling.before[0] = partial(meet, out.with_name("meeting"), number)
    if mode == "status":
        children = [stopping(own) for own in configs]
        look(out, children)
    else:
        children = [in_child(partial(work, *each)) for each in zip(configs, machines, strict=True)]
    sys.exit(max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children))


def look(out: Path, children: list[int]) -> None:
    """Say what a store says of itself while two work on it, which stand still for so long."""
    try:
        found = [at_work(out, child) for child in children]
        say({"working": found, "shards": [asdict(shard) for shard in status(out)], "summary": asdict(summary(out))})
    finally:
        for child in children:
            os.kill(child, signal.SIGCONT)


if __name__ == "__main__":
    main()
