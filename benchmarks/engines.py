"""What Ray adds to plain workers. Run: `python -m benchmarks.engines [--seconds S] [--shards N] [--workers W]`.

In turns, the same extraction by W plain processes (`--worker-index`) and by W workers of a local Ray (`--engine ray`),
with an encoder that sleeps S seconds a shard: sleeping takes no core, so workers do not wait for each other. The times
at which shards are committed tell what is fixed from what every shard costs:

    start      from the command to the first commit, S left out: imports, Ray's start, reading the data set
    a shard    from a commit to the next one of the same worker: that W commits later
    end        from the last commit to the end of the command

From these follows the time of a long run: start + end + rounds × a shard. Trust ratios; a busy machine starts slowly.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL.Image import Image
from torch import Tensor

from benchmarks.raw import make_raw
from pipeline.encoders.base import Encoder, EncoderKey, Layer, LoadOptions

ROWS = 4
"""Rows of a shard, all of them one batch."""
SLEEP = "SECONDS_A_SHARD"


class Sleeping(Encoder):
    """Sleeps instead of computing."""

    def __init__(self, options: LoadOptions) -> None:
        super().__init__("benchmarks.engines:Sleeping", "image", [Layer(name="output", width=4)])

    def key(self) -> EncoderKey:
        """Return a key like any other."""
        return EncoderKey(encoder={"family": "custom", "name": "Sleeping"}, preprocessing={}, pooling="auto")

    def prepare(self, sample: Image | str) -> Tensor:
        """Return nothing of interest."""
        return torch.zeros(3, 1, 1)

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        """Return zeros, later."""
        time.sleep(float(os.environ[SLEEP]))
        return {name: torch.zeros(len(prepared), 4) for name in layers}


@dataclass(frozen=True, kw_only=True)
class Course:
    """Seconds of one run."""

    start: float
    a_shard: float
    end: float
    wall: float


def run(engine: str, raw: Path, out: Path, arguments: argparse.Namespace) -> Course:
    """Extract in processes of their own."""
    words = [sys.executable, "-m", "pipeline.cli", "extract", "--dataset", str(raw), "--out", str(out), "--quiet"]
    words += ["--encoder", "benchmarks.engines:Sleeping", "--shard-rows", str(ROWS), "--batch-size", str(ROWS)]
    words += ["--workers", "1"]
    count = arguments.workers
    more = [["--worker-index", str(index), "--num-workers", str(count)] for index in range(count)]
    environment = {**os.environ, SLEEP: str(arguments.seconds)}
    begin = time.time()
    processes = [
        subprocess.Popen([*words, *own], env=environment, stdout=subprocess.DEVNULL)
        for own in (more if engine == "plain" else [["--engine", "ray"]])
    ]
    codes = [process.wait() for process in processes]
    wall = time.time() - begin
    if any(codes):
        raise SystemExit(f"{engine} failed")
    commits = sorted(path.stat().st_mtime for path in out.glob("0*.json"))
    steps = [later - sooner for sooner, later in zip(commits, commits[count:], strict=False)]
    return Course(
        start=commits[0] - begin - arguments.seconds,
        a_shard=statistics.mean(steps),
        end=begin + wall - commits[-1],
        wall=wall,
    )


def median(runs: Sequence[Course]) -> Course:
    """Return the median of each part."""
    names = ("start", "a_shard", "end", "wall")
    return Course(**{name: statistics.median(getattr(each, name) for each in runs) for name in names})


def show(found: dict[str, Course], arguments: argparse.Namespace) -> None:
    """Print the parts, and what a long run would take."""
    said = f"{arguments.shards} shards, {arguments.workers} workers, {arguments.seconds:g} s a shard"
    print(f"{said}; load {os.getloadavg()[0]:.1f}")
    print(f"  {'':8} {'start s':>9} {'a shard s':>10} {'end s':>7} {'wall s':>8}")
    for name, course in found.items():
        print(f"  {name:8} {course.start:9.2f} {course.a_shard:10.3f} {course.end:7.2f} {course.wall:8.2f}")
    plain, ray = found["plain"], found["ray"]
    print(f"  ray / plain, a shard: {ray.a_shard / plain.a_shard:.4f}")
    print(f"  ray / plain, wall:    {ray.wall / plain.wall:.4f}")
    for rounds in (10, 100):
        walls = [each.start + each.end + rounds * each.a_shard for each in (ray, plain)]
        print(f"  ray / plain, {rounds} shards a worker (from the parts): {walls[0] / walls[1]:.4f}")


def main() -> None:
    """Read the flags and measure both in turns."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--shards", type=int, default=6)
    parser.add_argument("--workers", type=int, default=2, help="as many as there are cores: Ray takes one a core")
    parser.add_argument("--repeat", type=int, default=1)
    arguments = parser.parse_args()
    runs: dict[str, list[Course]] = {"plain": [], "ray": []}
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        make_raw(raw, arguments.shards * ROWS, 32, 32)
        for number in range(arguments.repeat):
            for engine, courses in runs.items():
                courses.append(run(engine, raw, Path(folder) / f"{engine}{number}", arguments))
    show({engine: median(courses) for engine, courses in runs.items()}, arguments)


if __name__ == "__main__":
    main()
