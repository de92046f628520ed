"""Latency and throughput of `pipeline serve` on 100k images, beside what the text encoder and a matrix product take.

Run: `python -m benchmarks.serve [--images 100000] [--width 256] [--encoder package:all-minilm-l6-v2]`. Embeddings are
random, the encoder is real: its text store is made of a few captions. The server listens in a process of its own, as
users run it; 1, 10 and 50 clients in this process ask it one question after another. Beside them, in turn: the encoder
and the projector alone on one text, and a raw matrix product with top-k over all images. Milliseconds of CPU say what
a question costs however busy the machine is (Linux only); OMP_NUM_THREADS=1 keeps threads from waiting for others.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http.client import HTTPConnection
from pathlib import Path

import numpy as np
import torch

from benchmarks.alternate import measured
from pipeline.apps.dual_encoder import DualEncoder
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
from pipeline.projectors.base import LinearProjector
from pipeline.projectors.run_record import AlignedRun, save_projector
from pipeline.store.key import FeatureKey
from pipeline.store.manifest import Header
from pipeline.store.reader import FeatureStore
from pipeline.store.samples import Samples
from pipeline.store.writer import StoreWriter

CLIENTS = (1, 10, 50)
WORDS = ("red", "old", "small", "dog", "house", "boat", "on", "under", "near", "street", "tree", "child")


def main() -> None:
    """Make the stores, start the server, and print milliseconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--encoder", default="package:all-minilm-l6-v2")
    parser.add_argument("--questions", type=int, default=300)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        run = make_run(Path(folder), arguments.images, arguments.width, arguments.encoder)
        model = DualEncoder.open(run)
        gallery = torch.nn.functional.normalize(torch.randn(arguments.images, arguments.width), dim=1)
        alone: dict[str, list[float]] = {name: [] for name in ("encoder", "matmul", "encoder cpu", "matmul cpu")}
        found = {}
        with served(run) as (port, process):
            for place, count in enumerate(CLIENTS):
                measure_alone(model, gallery, texts(arguments.questions // 3, 1000 + place), alone)
                found[count] = measure_clients(port, process, count, arguments.questions)
    report(alone, found)


def make_run(folder: Path, images: int, width: int, encoder: str) -> Path:
    """Write a store of random images, a text store by the real encoder, and a run over both."""
    data = folder / "data"
    data.mkdir()
    (data / "dataset.json").write_text(json.dumps({"format": 1, "name": "random", "images": 0, "captions": 4}))
    (data / "images.csv").write_text("image_id,file,split,label\n")
    (data / "captions.csv").write_text("caption_id,image_id,caption\n" + "".join(f"{n},,a {n}\n" for n in range(4)))
    extract(ExtractConfig(dataset=data, encoder=encoder, out=folder / "text", layers="last", device="cpu"))
    key = FeatureKey(
        modality="image", dataset_digest="d", encoder={"name": "random"}, preprocessing={}, pooling="auto",
        compute_dtype="float32", storage_dtype="float32",
    )  # fmt: skip
    names = [str(place) for place in range(images)]
    empty = [""] * images
    writer = StoreWriter(folder / "image", Header(key=key, items=images, layer_names=("output",)))
    generator = np.random.default_rng(0)
    for shard in writer.pending(["output"]):
        rows = generator.standard_normal((shard.stop - shard.start, width), dtype=np.float32)
        writer.commit(shard, names[shard.start : shard.stop], {"output": rows}, [])
    writer.finish(Samples(names, names, empty, empty, [f"{name}.png" for name in names]), {"dataset": str(data)})
    records, widths = {}, {}
    for side, spec in (("image", ""), ("text", encoder)):
        store = FeatureStore.open(folder / side)
        widths[side] = store.layers[0].width
        entry = {"key_digest": store.key.digest(), "content_digest": store.content_digest}
        records[side] = [{**entry, "key": store.key.to_json(), "spec": spec, "path": str(store.root)}]
        save_projector(folder / "run" / "seed-1", side, LinearProjector(widths[side], width))
    record = {
        "method": "random", "config": {}, "layers": {"image": ["output"], "text": ["output"]}, "stores": records,
        "dim": width, "seeds": [{"seed": 1, "folder": "seed-1"}],
    }  # fmt: skip
    AlignedRun.write(folder / "run", record)
    return folder / "run"


def texts(count: int, seed: int) -> list[str]:
    """Return sentences that no cache has seen."""
    generator = np.random.default_rng(seed)
    return [" ".join(generator.choice(WORDS, 8)) + f" {seed} {place}" for place in range(count)]


def measure_alone(model: DualEncoder, gallery: torch.Tensor, asked: list[str], spent: dict[str, list[float]]) -> None:
    """Time the encoder with projector on single texts, and a matrix product with top-k, in turn; adds milliseconds."""
    model.encode_text(["warm"])
    for text in asked:
        vector = noted(partial(model.encode_text, [text]), "encoder", spent)
        noted(partial(nearest, vector, gallery), "matmul", spent)


def nearest(vector: torch.Tensor, gallery: torch.Tensor) -> torch.Tensor:
    """Return the twelve best scores by a plain matrix product."""
    return torch.topk(vector @ gallery.T, 12).values


def noted(work: Callable[[], torch.Tensor], name: str, spent: dict[str, list[float]]) -> torch.Tensor:
    """Do some work, and note its milliseconds on the clock and of CPU."""
    result, seconds = measured(work)
    spent[f"{name} cpu"].append(1e3 * seconds.cpu)
    spent[name].append(1e3 * seconds.wall)
    return result


def cpu_seconds(process: int) -> float:
    """Return the CPU time that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def served(run: Path) -> Iterator[tuple[int, int]]:
    """Run the command in a process of its own; yield its port and its id."""
    words = [sys.executable, "-m", "pipeline.cli", "serve", str(run), "--port", "0"]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=os.environ) as process:
        for line in process.stderr or ():
            if line.startswith("Serving"):
                yield int(line.split(" at ")[1].split()[0].rsplit(":", 1)[1]), process.pid
                break
        process.terminate()


def measure_clients(port: int, process: int, clients: int, questions: int) -> dict[str, float]:
    """Let clients ask one question after another; return milliseconds, what the search took, and questions a second."""
    total = max(questions, 10 * clients)
    asked = iter(texts(total, clients))
    lock, spent, search, failed = threading.Lock(), list[float](), list[float](), list[int]()

    def client() -> None:
        link = HTTPConnection("127.0.0.1", port, timeout=60)
        while True:
            with lock:
                text = next(asked, None)
            if text is None:
                return
            start = time.perf_counter()
            link.request("POST", "/api/search", json.dumps({"text": text}), {"Content-Type": "application/json"})
            answer = link.getresponse()
            body = answer.read()
            spent.append(1e3 * (time.perf_counter() - start))
            if answer.status == 200:
                search.append(json.loads(body)["milliseconds"]["search"])
            else:
                failed.append(answer.status)

    start, cpu = time.perf_counter(), cpu_seconds(process)
    threads = [threading.Thread(target=client) for _ in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds, used = time.perf_counter() - start, cpu_seconds(process) - cpu
    ordered = sorted(spent)
    return {
        "p50": statistics.median(ordered),
        "p99": ordered[int(0.99 * (len(ordered) - 1))],
        "search": statistics.median(search),
        "rate": len(search) / seconds,
        "cpu": 1e3 * used / total,
        "lost": total - len(search),
    }


def report(alone: dict[str, list[float]], found: dict[int, dict[str, float]]) -> None:
    """Print what was found, with ratios to the encoder and the matrix product on their own."""
    encoder, product, encoder_cpu, product_cpu = (statistics.median(times) for times in alone.values())
    base = encoder + product
    print(f"alone, one text after another: encoder {encoder:.1f} ms, matrix product and top-k {product:.1f} ms")
    print(f"of CPU: encoder {encoder_cpu:.1f} ms, matrix product and top-k {product_cpu:.1f} ms")
    columns = "clients", "p50 ms", "p99 ms", "p50 ×", "p99 ×", "search ms", "a second", "CPU ms", "CPU ×", "lost"
    print("  ".join(f"{column:>10}" for column in columns))
    for count, each in found.items():
        p50, p99, rate = each["p50"], each["p99"], each["rate"]
        cells = [count, p50, p99, p50 / base, p99 / base, each["search"], rate, each["cpu"]]
        cells += [each["cpu"] / (encoder_cpu + product_cpu), each["lost"]]
        print("  ".join(f"{cell:10.4g}" for cell in cells))
    print("× is the ratio to encoder + matrix product alone; search ms is for all questions of a batch together")
    first = found[CLIENTS[0]]
    beside, of_cpu = first["p50"] - encoder, first["cpu"] - encoder_cpu
    print(f"one client: {beside:.1f} ms ({of_cpu:.1f} ms of CPU) beside the encoder's own time")


if __name__ == "__main__":
    main()
