"""What a second worker gains. Run: `python -m benchmarks.workers [--encoder SPEC] [--rows N] [--repeat K]`.

One worker on one core against two on a core each (one thread of arithmetic, one that prepares), on the same made-up
data set, in turn, each a forked process that is bound to its core. Counted from a store's first event to its last
commit, so that starting Python and loading the first encoder are left out. Two ratios, medians over the repeats:

    wall   seconds of one worker over seconds of two; means something on an idle machine alone
    CPU    CPU seconds of the one over those of the busier of the two: what the wall would say were both cores free
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.raw import make_raw
from pipeline.encoders.libraries import import_library
from pipeline.extract.compute import Computation
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.store.events import read_events, seconds_of

BAR = 1.7
"""What two workers should reach on two cores."""


def work(config: ExtractConfig, core: int) -> dict[str, object]:
    """Extract on one core; return the CPU seconds of the computation, the shards and the digest."""
    os.sched_setaffinity(0, {core})
    torch.set_num_threads(1)
    run, took = Computation.run, list[float]()

    def timed(self: Computation) -> None:
        start = time.process_time()
        run(self)
        took.append(time.process_time() - start)

    Computation.run = timed  # type: ignore[method-assign]
    result = extract(config)
    return {"cpu": sum(took), "shards": result.computed_shards, "digest": result.content_digest}


def forked(config: ExtractConfig, core: int, answer: Path) -> int:
    """Begin a worker that leaves what it says in a file; return its process id."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        answer.write_text(json.dumps(work(config, core)))
        code = 0
    finally:
        os._exit(code)


def together(config: ExtractConfig, count: int) -> tuple[float, list[dict[str, object]]]:
    """Run some workers at once; return the seconds from the first event to the last commit, and what each said."""
    cores = sorted(os.sched_getaffinity(0))
    answers = [Path(str(config.out)).with_suffix(f".{index}.json") for index in range(count)]
    children = [
        forked(replace(config, worker_index=index, num_workers=count), cores[index % len(cores)], answer)
        for index, answer in enumerate(answers)
    ]
    if any(os.waitpid(child, 0)[1] for child in children):
        sys.exit("a worker failed")
    events = read_events(config.out)
    last = max(seconds_of(event) for event in events if event["event"] == "committed")
    return last - seconds_of(events[0]), [json.loads(answer.read_text()) for answer in answers]


def compare(arguments: argparse.Namespace) -> None:
    """Print what one and two workers took, and the ratios."""
    walls: list[float] = []
    cpus: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        make_raw(raw, arguments.rows, 320, 240)
        config = ExtractConfig(
            dataset=raw,
            encoder=arguments.encoder,
            out=Path(folder),
            device="cpu",
            workers=1,
            shard_rows=arguments.shard_rows,
        )
        for turn in range(arguments.repeat):
            load = os.getloadavg()[0]
            taken = {}
            for count in (1, 2):
                wall, said = together(replace(config, out=Path(folder) / f"{turn}-{count}"), count)
                taken[count] = (wall, max(float(str(each["cpu"])) for each in said), {each["digest"] for each in said})
                shards = " + ".join(str(each["shards"]) for each in said)
                total = sum(float(str(each["cpu"])) for each in said)
                print(f"{count} worker(s): {wall:7.2f} s wall, {total:7.2f} s CPU, shards {shards}, load {load:.1f}")
            walls.append(taken[1][0] / taken[2][0])
            cpus.append(taken[1][1] / taken[2][1])
            print(f"same content: {taken[1][2] == taken[2][2]}")
    print(f"ratio: wall {statistics.median(walls):.2f}, CPU {statistics.median(cpus):.2f}; wanted: {BAR}")


def main() -> None:
    """Compare one worker with two."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoder", default="package:all-minilm-l6-v2")
    parser.add_argument("--rows", type=int, default=2048)
    parser.add_argument("--shard-rows", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=1)
    for library in ("sentence_transformers", "timm"):
        import_library(library)  # once, before the forks
    compare(parser.parse_args())


if __name__ == "__main__":
    main()
