"""Recall both ways, 5k images × 25k captions: ours against CLIP_benchmark's scorer, time and peak memory in one run.

Run: `python -m benchmarks.retrieval [--images 5000] [--captions 5] [--width 512]`. Each contender works in a process of
its own on the same embeddings, so that its peak memory is its own. Ours counts all cut-offs at once; the other is timed
for one cut-off and for all.
"""

import argparse
import json
import resource
from typing import Any

from benchmarks.alternate import in_own_process, measured

KS = (1, 5, 10)


def make(images: int, captions: int, width: int) -> tuple["object", "object", "object"]:
    """Return unit image and caption embeddings and the image of each caption."""
    import torch

    generator = torch.Generator().manual_seed(0)
    image = torch.nn.functional.normalize(torch.randn(images, width, generator=generator), dim=1)
    owner = torch.arange(images).repeat_interleave(captions)
    noise = torch.randn(len(owner), width, generator=generator) / width**0.5
    return image, torch.nn.functional.normalize(0.15 * image[owner] + noise, dim=1), owner


def ours(image: "object", caption: "object", owner: "object", ks: tuple[int, ...]) -> dict[str, float]:
    """Score with this package."""
    import torch

    from pipeline.metrics.retrieval import retrieval_metrics

    tensors = [torch.as_tensor(x) for x in (image, caption, owner)]
    return retrieval_metrics(tensors[0], tensors[1], tensors[2], ks).metrics


def theirs(image: "object", caption: "object", owner: "object", ks: tuple[int, ...]) -> dict[str, float]:
    """Score as CLIP_benchmark's `evaluate` does after encoding, with its own functions."""
    import torch
    from clip_benchmark.metrics.zeroshot_retrieval import batchify, recall_at_k

    images, captions, owners = (torch.as_tensor(x) for x in (image, caption, owner))
    scores = captions @ images.t()
    positive = torch.zeros_like(scores, dtype=torch.bool)
    positive[torch.arange(len(scores)), owners] = True
    found: dict[str, float] = {}
    for k in ks:
        for name, s, p in (("image", scores, positive), ("text", scores.T, positive.T)):
            hits = batchify(recall_at_k, s, p, 64, "cpu", k=k) > 0
            found[f"{name}_retrieval_recall@{k}"] = hits.float().mean().item()
    return found


CONTENDERS = {"ours": ours, "clip_benchmark": theirs}


def contend(name: str, ks: tuple[int, ...], sizes: tuple[int, int, int]) -> dict[str, object]:
    """Time one contender in this process and say how far memory rose above what the embeddings and imports take."""
    import torch

    data = make(*sizes)
    torch.ones(2, 2) @ torch.ones(2, 2)
    CONTENDERS[name](*make(20, 2, 8), ks=(1,))  # imports
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    metrics, seconds = measured(lambda: CONTENDERS[name](*data, ks=ks))
    peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    times = {"seconds": round(seconds.wall, 2), "cpu_seconds": round(seconds.cpu, 2)}
    return {"name": name, "ks": ks, **times, "peak_mb": round(peak), "metrics": metrics}


def main() -> None:
    """Run every contender in its own process and print seconds, megabytes and ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--captions", type=int, default=5)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--contender", choices=CONTENDERS)
    parser.add_argument("--ks", default="1,5,10")
    arguments = parser.parse_args()
    sizes = (arguments.images, arguments.captions, arguments.width)
    if arguments.contender:
        ks = tuple(int(k) for k in arguments.ks.split(","))
        print(json.dumps(contend(arguments.contender, ks, sizes)))
        return
    results = [_run(name, ks, sizes) for name, ks in (("ours", KS), ("clip_benchmark", (5,)), ("clip_benchmark", KS))]
    base = results[0]
    for result in filter(None, results):
        print(f"{result['name']:>15} k={result['ks']}: {result['seconds']} s, {result['cpu_seconds']} s CPU, ", end="")
        wall, cpu, memory = (result[key] / base[key] for key in ("seconds", "cpu_seconds", "peak_mb"))
        print(f"{result['peak_mb']} MB  ({wall:.1f} × the time, {cpu:.1f} × the CPU, {memory:.1f} × the memory)")
    if results[2]:
        differences = [abs(results[2]["metrics"][name] - base["metrics"][name]) for name in results[2]["metrics"]]
        print(f"largest difference between the recalls: {max(differences):.2e}")


def _run(name: str, ks: tuple[int, ...], sizes: tuple[int, int, int]) -> dict[str, Any]:
    flags = dict(zip(("images", "captions", "width"), sizes, strict=True))
    try:
        return in_own_process("benchmarks.retrieval", {"contender": name, "ks": ",".join(map(str, ks)), **flags})
    except RuntimeError as error:
        print(f"{name}: not measured ({error})")
        return {}


if __name__ == "__main__":
    main()
