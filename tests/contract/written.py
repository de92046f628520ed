"""Files of an older version, `written.zip`, and what they must still say when they are opened."""

import hashlib
import json
import zipfile
from contextlib import chdir
from pathlib import Path
from typing import Any

import torch

from pipeline.projectors.run_record import AlignedRun
from pipeline.store.inspect import verify
from pipeline.store.reader import FeatureStore
from tests.commands.running import done
from tests.contract.making import CCA, DATA, IMAGE, TEXT

ARCHIVE = Path(__file__).with_name("written.zip")
HALF = "data/1_features/shapes/half"
STORES = {"hdf5, float32": IMAGE, "parquet, bfloat16": HALF, "captions": TEXT, "class prompts": f"{TEXT}/classes"}
RUNS = ["cca", "procrustes", "ridge", "asif", "pls", "fewpairs", "info_nce", "combined"]
INDEXES = {"flat": "indexes/flat", "ivf on the disk": "indexes/parts"}
KEPT = ("data", "indexes", "params.yaml", "shapes.csv")


def pack(project: Path) -> None:
    """Make the remaining files of the project by commands and write the archive and what it says."""
    with chdir(project):
        words = ("--dataset", DATA, "--encoder", "tests.contract.tiny:Pixels", "--out", HALF, "--device", "cpu")
        done("extract", *words, "--storage-dtype", "bf16", "--format", "parquet", "--shard-rows", 32, "--quiet")
        done("index", CCA, "--out", INDEXES["flat"], "--kind", "flat")
        done("index", CCA, "--out", INDEXES["ivf on the disk"], "--kind", "ivf", "--parts", 2)
    with zipfile.ZipFile(ARCHIVE, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for path in sorted(path for path in project.rglob("*") if path.is_file()):
            name = path.relative_to(project)
            if name.parts[0] in KEPT and "3_report" not in name.parts and ".events" not in name.parts:
                archive.write(path, name)
    from tests.contract.record import save

    save("written", {"exact": exact(project), "close": close(project)})


def unpack(folder: Path) -> Path:
    """Lay the files of the older version into a folder."""
    with zipfile.ZipFile(ARCHIVE) as archive:
        archive.extractall(folder)
    return folder


def exact(project: Path) -> dict[str, Any]:
    """Return what must be the same everywhere: digests, ids, values of the stores."""
    with chdir(project):
        return {name: _store(Path(path)) for name, path in STORES.items()}


def _store(path: Path) -> dict[str, Any]:
    store = FeatureStore.open(path)
    found = json.loads(done("store", "ls", path, "--json").out)
    return {
        "content_digest": found["content_digest"],
        "key_digest": found["key_digest"],
        "key": found["key"],
        "rows": found["rows"],
        "splits": found["splits"],
        "ids": hashlib.sha256("\n".join(store.ids).encode()).hexdigest(),
        "layers": {layer["name"]: _values(store.read(layer["name"])) for layer in found["layers"]},
        "problems": [problem.sentence for problem in verify(path, deep=True)],
    }


def _values(features: torch.Tensor) -> dict[str, Any]:
    data = features.contiguous().view(torch.uint8).numpy().tobytes()
    return {
        "dtype": str(features.dtype),
        "sha256": hashlib.sha256(data).hexdigest(),
        "first": features[0, :4].double().tolist(),
    }


def close(project: Path) -> dict[str, Any]:
    """Return what may differ in the last digits on another machine: embeddings and scores of the runs."""
    with chdir(project):
        embedded = {name: _embeddings(Path(f"data/2_projectors/{name}")) for name in RUNS}
        indexed = {name: _found("--index", path) for name, path in INDEXES.items()}
        return {"embeddings": embedded, "search": {"exact": _found(), **indexed}}


def _embeddings(path: Path) -> dict[str, Any]:
    run = AlignedRun.open(path)
    stores = {"image": FeatureStore.open(Path(IMAGE)), "text": FeatureStore.open(Path(TEXT))}
    found: dict[str, Any] = {}
    for side, store in stores.items():
        features = torch.cat([store.read(layer)[:2].float() for layer in run.layers[side]], dim=1)
        for seed in run.seeds:
            found[f"{side}, seed {seed}"] = run.encode(side, features, seed)[:, :3].double().tolist()
    return found


def _found(*words: object) -> list[Any]:
    hits = json.loads(done("search", CCA, "a large red circle", "--top", 3, "--json", *words).out)
    return [[hit["image_id"], hit["score"]] for hit in hits]
