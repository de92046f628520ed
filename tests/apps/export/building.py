"""Runs of any shape, made without training: random projectors behind encoders that are there."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from pipeline.encoders.load import load_encoder
from pipeline.projectors.run_record import AlignedRun, build_projector, save_projector

COLOURS, WORDS = "tests.apps.tiny:Colours", "tests.apps.tiny:Words"
SEED = 7


def store_record(side: str, spec: str, **options: Any) -> dict[str, Any]:
    """Return what run.json says of a store that this encoder would have filled."""
    key = load_encoder(spec, modality="image" if side == "image" else "text", **options).key()
    whole = {
        "format": 1,
        "modality": side,
        "dataset_digest": "d",
        "encoder": key.encoder,
        "preprocessing": key.preprocessing,
        "pooling": key.pooling,
        "compute_dtype": "float32",
        "storage_dtype": "float32",
    }
    return {"key_digest": "k", "content_digest": "c", "key": whole, "spec": spec, "path": ""}


def make_run(
    path: Path,
    *,
    specs: Mapping[str, Sequence[str]] | None = None,
    layers: Mapping[str, Sequence[str]] | None = None,
    projectors: Mapping[str, str] | None = None,
    settings: Mapping[str, Mapping[str, Any]] | None = None,
    dim: int = 3,
    records: Mapping[str, Sequence[Mapping[str, Any]]] | None = None,
) -> Path:
    """Write a run whose projectors are random, input statistics too."""
    specs = {"image": [COLOURS], "text": [WORDS], **(specs or {})}
    layers = {"image": ["output"], "text": ["output"], **(layers or {})}
    for number, side in enumerate(("image", "text")):
        torch.manual_seed(number)
        kind, own = (projectors or {}).get(side, "linear"), (settings or {}).get(side, {})
        projector = build_projector(kind, own if kind == "csls" else {"d_in": 3, "d": dim, **own})
        for name, value in projector.state_dict().items():
            if name not in ("anchors", "bank"):
                value.copy_(torch.rand(value.shape) + 0.1)
            else:
                value.copy_(torch.nn.functional.normalize(torch.randn(value.shape), dim=1))
        save_projector(path / f"seed-{SEED}", side, projector)
    stores = {
        side: list((records or {}).get(side) or [store_record(side, spec) for spec in specs[side]]) for side in specs
    }
    AlignedRun.write(
        path,
        {
            "method": "made_up",
            "config": {"image": ["/secret/path"], "layers": "auto"},
            "layers": layers,
            "stores": stores,
            "dim": dim,
            "temperature": 0.05,
            "temperature_source": "validation",
            "seeds": [{"seed": SEED, "folder": f"seed-{SEED}", "validation": {"image_retrieval_recall@1": 0.5}}],
            "pairs": {"training_images": 4, "validation_images": 2},
        },
    )
    return path
