"""Every JSON document that a command prints or leaves behind, by its keys and the types of its values."""

import json
import os
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import numpy as np

from tests.commands.running import done, pipeline
from tests.contract.making import CCA, DATA, IMAGE, REPORT, TEXT, TRAINED, make_timm_folder

STORES = ("--image", IMAGE, "--text", TEXT)
INSTALLED = ("libraries", "versions")
"""Objects whose keys are what happens to be installed."""


def shape(value: Any) -> Any:
    """Return the shape of a JSON value: types in place of values, the union of its items for a list.

    Keys that are places on this machine are one key, `<path>`.
    """
    if isinstance(value, dict):
        named = {("<path>" if os.sep in name else name): name for name in value}
        return {
            key: {"<package>": "str"} if key in INSTALLED else shape(value[name]) for key, name in sorted(named.items())
        }
    if isinstance(value, list):
        return [_union([shape(item) for item in value])] if value else []
    return {bool: "bool", int: "int", float: "float", str: "str", type(None): "null"}[type(value)]


def _union(shapes: list[Any]) -> Any:
    """Return what any of the shapes allows; a key that some lack ends with a question mark."""
    if all(isinstance(each, dict) for each in shapes):
        names = sorted({name for each in shapes for name in each})
        return {
            name if all(name in each for each in shapes) else f"{name}?": _union(
                [each[name] for each in shapes if name in each]
            )
            for name in names
        }
    if all(isinstance(each, list) for each in shapes):
        inner = [item for each in shapes for item in each]
        return [_union(inner)] if inner else []
    texts = sorted({each if isinstance(each, str) else json.dumps(each, sort_keys=True) for each in shapes})
    whole = {json.dumps(each, sort_keys=True) for each in shapes}
    return shapes[0] if len(whole) == 1 else " or ".join(texts)


def documents(project: Path) -> dict[str, Any]:
    """Return name → shape of every document of a copy of the project that may be changed."""
    with chdir(project):
        return {name: shape(value) for name, value in (*_printed().items(), *_written().items())}


def _printed() -> dict[str, Any]:
    """Run every command that prints JSON; the order matters, some use what others made."""
    folder = make_timm_folder(Path("model").absolute())
    np.save("v.npy", np.eye(3, dtype=np.float32))
    Path("ids.csv").write_text("sample_id,split,content\na,train,a.png\nb,test,b.png\nc,test,c.png\n", "utf-8")
    known = ("--dataset", DATA, "--encoder", f"timm:{folder}", "--out", "known", "--texts", "all", "--quiet", "--json")
    words: dict[str, tuple[object, ...]] = {
        "data import": ("data", "import", "shapes.csv", "--out", "again", "--json", "--quiet"),
        "extract": ("extract", *known[:6], "--device", "cpu", "--quiet", "--json"),
        "extract, nothing to do": ("extract", *known[:6], "--device", "cpu", "--quiet", "--json"),
        "extract, by params.yaml": ("extract", "--quiet", "--json"),
        "extract --dry-run": ("extract", *known[:4], "--out", "never", "--dry-run", "--quiet", "--json"),
        "layers": ("layers", IMAGE, TEXT, "--json"),
        "layers --metric cka": ("layers", IMAGE, TEXT, "--metric", "cka", "--json"),
        "layers --check": ("layers", IMAGE, TEXT, "--check", "--check-pairs", 12, "--json"),
        "align": ("align", "--method", "cca", "--method", "info_nce", "--quiet", "--json"),
        "evaluate, one run": ("evaluate", CCA, *STORES, "--out", "one", "--quiet", "--json"),
        "evaluate, several runs": ("evaluate", CCA, TRAINED, *STORES, "--out", "two", "--quiet", "--json"),
        "compare": ("compare", "one", "two", "--json"),
        "search": ("search", CCA, "a red circle", "--top", 2, "--json"),
        "search --captions": ("search", CCA, "a red circle", "--top", 2, "--captions", "--json"),
        "index": ("index", CCA, "--out", "index", "--kind", "hnsw", "--json"),
        "index --parts, a worker": (
            *("index", CCA, "--out", "parts", "--kind", "ivf", "--parts", 2, "--json"),
            *("--worker-index", 0, "--num-workers", 1),
        ),
        "index --parts": ("index", CCA, "--out", "parts", "--kind", "ivf", "--parts", 2, "--json"),
        "export": ("export", CCA, "--to", "model-folder", "--report", "two", "--json"),
        "doctor": ("doctor", "--json"),
        "sweep": ("sweep", "--quiet", "--json"),
        "store ls": ("store", "ls", TEXT, "--json"),
        "store verify": ("store", "verify", IMAGE, "--json"),
        "store diff": ("store", "diff", IMAGE, TEXT, "--json"),
        "store du": ("store", "du", IMAGE, "--json"),
        "store gc": ("store", "gc", IMAGE, "--json"),
        "store status": ("store", "status", IMAGE, "--json"),
        "store status --summary": ("store", "status", IMAGE, "--json", "--summary"),
        "store ingest": (
            *("store", "ingest", "v.npy", "--modality", "image", "--out", "taken", "--ids", "ids.csv", "--json"),
        ),
    }
    (Path(IMAGE) / ".00000-00000000.h5.0123456789abcdef.tmp").write_bytes(b"of a killed writer")
    found = {name: pipeline(*command) for name, command in words.items()}
    bad = {name: f"{each.code} {each.err}" for name, each in found.items() if not each.out}
    assert not bad, bad
    printed = {name: each.json() for name, each in found.items()}
    lines = done("store", "events", IMAGE).out.splitlines()
    return printed | {"store events, a line": [json.loads(line) for line in lines], **_damaged()}


def _damaged() -> dict[str, Any]:
    """Flip a byte of a copy and return what `store verify` says of it."""
    copy = Path("damaged")
    shutil.copytree(IMAGE, copy)
    path = min(copy.glob("*.h5"))
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = pipeline("store", "verify", copy, "--deep", "--json")
    assert result.code == 1
    return {"store verify, damaged": result.json()}


def _written() -> dict[str, Any]:
    """Return the documents that the commands above left in files."""
    files = {
        "dataset.json": f"{DATA}/dataset.json",
        "classes.json": f"{DATA}/classes.json",
        "store.json": f"{IMAGE}/store.json",
        "manifest.json": f"{IMAGE}/manifest.json",
        "manifest.json of class prompts": f"{TEXT}/classes/manifest.json",
        "receipt.json": "known/receipt.json",
        "run.json, a closed form": f"{CCA}/run.json",
        "run.json, a training": f"{TRAINED}/run.json",
        "layer_pairs.json": f"{CCA}/layer_pairs.json",
        "metrics.json, one run": "one/metrics.json",
        "metrics.json, several runs": f"{REPORT}/metrics.json",
        "metrics/<run>.json": f"{REPORT}/metrics/cca.json",
        "index.json": "index/index.json",
        "sweep: results.json": "data/4_study/sweep/results.json",
    }
    cell = min(Path("data/4_study/sweep/cells").glob("*/*.json"))
    record = min(Path(IMAGE).glob("0*.json"))
    projector = min(Path(TRAINED).glob("seed-*/image.json"))
    files |= {"commit record": str(record), "projector": str(projector), "sweep: a cell": str(cell)}
    files |= {f"export: {path.name}": str(path) for path in Path("model-folder").glob("*.json")}
    return {name: json.loads(Path(path).read_text(encoding="utf-8")) for name, path in files.items()}
