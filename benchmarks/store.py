"""How fast the feature store is, against raw file bytes in the same run. Trust ratios and CPU seconds.

Writing: a shard is committed; the same bytes go into a raw file with fsync; and the same with a sha256 of them, one
after the other, which is the least that "with checksum and fsync" can mean. The three take turns, each after files of
the same size were written and removed, so that all find memory that the kernel has at hand: in a virtual machine the
first touch of memory that the host took back costs several times as much as the write itself. "At best" is the least
disturbed of all.

Run as `python -m benchmarks.store [--rows 524288] [--width 768] [--layers 13] [--shard-rows 65536] [--folder DIR]`.
Writes a few GB under the folder (a temp folder unless said) and removes them.
"""

import argparse
import hashlib
import os
import resource
import shutil
import statistics
import tempfile
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from benchmarks.alternate import Work, alternate, timed
from pipeline.store.key import FeatureKey, Features
from pipeline.store.manifest import Header
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import Samples
from pipeline.store.writer import StoreWriter

REPEATS = 5
BATCH = 32768


@dataclass(frozen=True)
class Sizes:
    """Rows N, width D, layers L of the read test, rows of a shard."""

    rows: int
    width: int
    layers: int
    shard_rows: int


def main() -> None:
    """Measure both formats and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--rows", type=int, default=524288)
    parser.add_argument("--width", type=int, default=768)
    parser.add_argument("--layers", type=int, default=13)
    parser.add_argument("--shard-rows", type=int, default=65536)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    sizes = Sizes(options.rows, options.width, options.layers, options.shard_rows)
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(dir=options.folder))
    try:
        measure(folder, sizes)
    finally:
        shutil.rmtree(folder)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MB, {os.cpu_count()} cores")


def measure(folder: Path, sizes: Sizes) -> None:
    """Print a row for each format and kind of work."""
    values = np.random.default_rng(0).normal(size=(sizes.shard_rows, sizes.width)).astype(np.float16)
    print(f"{sizes.rows} rows x {sizes.width} float16, medians of all shards or of {REPEATS} reads")
    print(f"{'format':8} {'work':34} {'ours':>12} {'raw':>12} {'ours/raw':>9}")
    for file_format in ("hdf5", "parquet"):
        write(folder / file_format, file_format, sizes, values)
        read(folder / f"{file_format}-layers", file_format, sizes, values)
        batches(folder / file_format, file_format, sizes)


def write(root: Path, file_format: str, sizes: Sizes, values: Features) -> None:
    """Commit shards of one layer, in turn with raw files of the same bytes, and print what each took."""
    writer = StoreWriter(root, header(file_format, sizes, 1))
    taken: dict[str, list[tuple[float, float]]] = {"write, checksums and fsync": [], "raw and sha256": [], "raw": []}
    for shard in writer.work(["layer-0"]):
        part = values[: shard.stop - shard.start]
        ids = names(shard.start, shard.stop)
        tasks: list[Work] = [
            partial(writer.commit, shard, ids, {"layer-0": part}),
            partial(hashed_write, root.with_suffix(".hashed"), part),
            partial(raw_write, root.with_suffix(".raw"), part),
        ]
        turns = list(zip(taken, tasks, strict=True))
        for work, task in turns[shard.index % 3 :] + turns[: shard.index % 3]:
            refill(root, part)
            seconds = timed(task)
            taken[work].append((seconds.wall / len(part), seconds.cpu / len(part)))
            root.with_suffix(".hashed").unlink(missing_ok=True)
            root.with_suffix(".raw").unlink(missing_ok=True)
    fastest = statistics.median(wall for wall, _ in taken["raw"])
    for work, each in taken.items():
        wall = statistics.median(wall for wall, _ in each)
        row(file_format, work, 1 / wall, 1 / fastest, "rows/s")
        busy = statistics.median(cpu for _, cpu in each)
        print(f"{'':8} {'':34} {1 / min(each)[0]:9,.0f} rows/s at best; {1 / busy:,.0f} rows a CPU second")
    finishing = timed(lambda: writer.finish(samples(sizes.rows), {})).wall
    row(file_format, "finish (digests, samples, manifest)", sizes.rows / finishing, 0, "rows/s")


def refill(root: Path, values: Features) -> None:
    """Have the kernel hold free memory for a file of this size."""
    paths = [root.with_suffix(f".spare-{number}") for number in range(2)]
    for path in paths:
        raw_write(path, values)
    for path in paths:
        path.unlink()


def read(root: Path, file_format: str, sizes: Sizes, values: Features) -> None:
    """Read one layer of many, verified, against reading a raw file of that layer into memory."""
    part = Sizes(min(sizes.rows, sizes.shard_rows * 2), sizes.width, sizes.layers, sizes.shard_rows // 2)
    writer = StoreWriter(root, header(file_format, part, sizes.layers))
    layers = writer.header.layer_names
    for shard in writer.work(layers):
        rows = values[: shard.stop - shard.start]
        writer.commit(shard, names(shard.start, shard.stop), dict.fromkeys(layers, rows))
    writer.finish(samples(part.rows), {})
    store = FeatureStore.open(root)
    layer = layers[len(layers) // 2]
    raw_path = root.with_suffix(".raw")
    raw_write(raw_path, store.numpy(layer))
    size = store.rows * sizes.width * 2 / 1e6
    tasks: dict[str, Work] = {"ours": lambda: store.numpy(layer), "raw": lambda: np.fromfile(raw_path, np.float16)}
    ours, raw = (each.wall for each in alternate(tasks, REPEATS).values())
    row(file_format, f"read 1 layer of {sizes.layers}, verified", size / ours, size / raw, "MB/s")
    shutil.rmtree(root)


def batches(root: Path, file_format: str, sizes: Sizes) -> None:
    """Take random batches: staged in memory, against a raw memory-mapped file."""
    store = FeatureStore.open(root)
    raw_path = root.with_suffix(".raw")
    raw_write(raw_path, store.numpy("layer-0"))
    mapped = np.memmap(raw_path, np.float16, "r", shape=(store.rows, sizes.width))
    order = np.random.default_rng(0).permutation(store.rows)[:BATCH]
    first = timed(lambda: next(store.batches("layer-0", BATCH, shuffle=True))).wall
    tasks: dict[str, Work] = {"ours": lambda: store.gather("layer-0", order), "raw": lambda: mapped[order]}
    ours, raw = (each.wall for each in alternate(tasks, REPEATS).values())
    row(file_format, "random 32k-row batch, staged", 1 / ours, 1 / raw, "/s")
    print(f"{file_format:8} a batch takes {ours * 1e3:.0f} ms; the first, with staging, {first * 1e3:.0f} ms")


def header(file_format: str, sizes: Sizes, layers: int) -> Header:
    """Return the header of a benchmark's store."""
    key = FeatureKey(
        modality="image",
        dataset_digest="benchmark",
        encoder={"family": "benchmark"},
        preprocessing={},
        pooling="none",
        compute_dtype="fp32",
        storage_dtype="float16",
    )
    order = tuple(f"layer-{number}" for number in range(layers))
    return Header(key=key, items=sizes.rows, shard_rows=sizes.shard_rows, file_format=file_format, layer_names=order)


def names(start: int, stop: int) -> list[str]:
    """Return sample ids."""
    return [f"images/{item:09d}.jpg" for item in range(start, stop)]


def samples(rows: int) -> Samples:
    """Return samples for N rows."""
    ids = names(0, rows)
    return Samples(ids, ids, ["train"] * rows, [""] * rows, ids)


def raw_write(path: Path, values: Features) -> None:
    """Write an array's bytes and wait for the disk."""
    with path.open("wb") as file:
        file.write(values.data)
        file.flush()
        os.fsync(file.fileno())


def hashed_write(path: Path, values: Features) -> str:
    """Write an array's bytes, wait for the disk and digest them."""
    raw_write(path, values)
    return hashlib.sha256(values.data).hexdigest()


def row(file_format: str, work: str, ours: float, raw: float, unit: str) -> None:
    """Print a row of the table: rates, and ours as a fraction of raw."""
    compared = f"{raw:9,.0f} {unit[:6]:6} {ours / raw:6.2f}" if raw else ""
    print(f"{file_format:8} {work:34} {ours:9,.0f} {unit:6} {compared}")


if __name__ == "__main__":
    main()
