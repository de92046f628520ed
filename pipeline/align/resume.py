"""What makes a finished seed still valid: a digest of all that it depends on, kept beside its projectors.

`seed-<s>/seed.json` is written last; a folder without one was interrupted and is done anew.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.align.config import AlignConfig
from pipeline.align.layer_choice import LayerScores
from pipeline.align.loggers.base import LoggedSeed
from pipeline.align.train import Trained
from pipeline.files import spaced_json_digest, write_atomically
from pipeline.projectors.table import read_json, save_projector
from pipeline.store.side import LayerRef, Side

REVISION = 3
"""Raised whenever the same settings would give other projectors: finished seeds of older code are then redone."""

LAYER_FILE = "layer_pairs.json"


@dataclass(frozen=True)
class SeedResult:
    """A finished seed."""

    record: dict[str, Any]
    """Its entry in run.json."""
    dim: int
    """Width of its shared space."""


def layers_digest(image: Side, text: Side, config: AlignConfig) -> str:
    """Return the digest of what the scores of all layers depend on."""
    sides = [side_digest(side, side.layers()) for side in (image, text)]
    return spaced_json_digest([REVISION, sides, config.layer_metric, *_drawn(config, config.seeds[0])])


def seed_digest(
    image: Side, text: Side, layers: tuple[Sequence[LayerRef], Sequence[LayerRef]], config: AlignConfig, seed: int
) -> str:
    """Return the digest of what a seed's projectors depend on."""
    sides = [side_digest(side, chosen) for side, chosen in zip((image, text), layers, strict=True)]
    recipe = dataclasses.asdict(config.recipe())
    return spaced_json_digest([REVISION, sides, recipe, *_drawn(config, seed)])


def _drawn(config: AlignConfig, seed: int) -> list[Any]:
    captions = [] if config.captions_per_image is None else [config.captions_per_image]
    return [config.pairs, seed, config.train_split, config.validation_split, *captions]


def side_digest(side: Side, layers: Sequence[LayerRef]) -> list[Any]:
    """Return, as plain data, the keys, rows and layers' digests of a side's stores: what its features are."""
    stores = [[store.key.digest(), store.manifest.ids, store.manifest.samples] for store in side.stores]
    return [stores, [[*layer, side.stores[layer.store].layer(layer.name).digest] for layer in layers]]


def finished_seed(out: Path, seed: int, digest: str) -> SeedResult | None:
    """Return a seed that an earlier run finished with the same settings and features, or None."""
    path = out / folder_of(seed) / "seed.json"
    if not path.is_file():
        return None
    data = read_json(path, "a finished seed")
    names = ("image.safetensors", "image.json", "text.safetensors", "text.json")
    if data.get("digest") != digest or not all((path.parent / name).is_file() for name in names):
        return None
    return SeedResult(data["record"], data["dim"])


def save_seed(out: Path, seed: int, digest: str, trained: Trained) -> SeedResult:
    """Write a seed's projectors and history, and last of all its seed.json."""
    folder = out / folder_of(seed)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "seed.json").unlink(missing_ok=True)
    save_projector(folder, "image", trained.image)
    save_projector(folder, "text", trained.text)
    lines = [json.dumps(row) + "\n" for row in trained.history]
    write_atomically(folder / "history.jsonl", "".join(lines).encode())
    record = {
        "seed": seed,
        "folder": folder_of(seed),
        "validation": trained.validation,
        "steps": trained.steps,
        "seconds": round(trained.seconds, 3),
        "temperature": trained.temperature,
        "temperature_source": trained.temperature_source,
        "learning_rate": trained.learning_rate,
    }
    result = SeedResult(record, trained.image.d)
    about = {"digest": digest, "dim": result.dim, "record": record}
    write_atomically(folder / "seed.json", (json.dumps(about, indent=2) + "\n").encode())
    return result


def logged_seed(config: AlignConfig, seed: int) -> LoggedSeed:
    """Return a finished seed as loggers take it, all of it read from its folder."""
    folder = config.out / folder_of(seed)
    about = read_json(folder / "seed.json", "a finished seed")
    lines = (folder / "history.jsonl").read_text(encoding="utf-8").splitlines()
    return LoggedSeed(
        run=config.out.resolve().name,
        seed=seed,
        digest=about["digest"],
        settings=config.to_json(),
        history=tuple(json.loads(line) for line in lines),
        record=about["record"],
    )


def folder_of(seed: int) -> str:
    """Return the name of a seed's folder."""
    return f"seed-{seed}"


def known_scores(out: Path, digest: str) -> LayerScores | None:
    """Return the layer scores that an earlier run wrote for the same features and pairs, or None."""
    path = out / LAYER_FILE
    if not path.is_file():
        return None
    data = read_json(path, "scores of layers")
    return LayerScores.from_json(data) if data.get("digest") == digest else None


def save_scores(out: Path, digest: str, scores: LayerScores) -> None:
    """Write layer_pairs.json."""
    out.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**scores.to_json(), "digest": digest}, indent=1) + "\n"
    write_atomically(out / LAYER_FILE, text.encode())
