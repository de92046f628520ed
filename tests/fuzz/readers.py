"""Small valid files of every kind that is read, and what reads each: the ground that the fuzz tests damage.

A reader takes the folder that `make` filled and reads one file of it to the end. What comes of a damaged file is
success or `UserError`; anything else is a fault of the reader.
"""

import csv
import io
import json
import tarfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pipeline.align.config import align_config
from pipeline.align.layer_scores import LayerScores
from pipeline.align.run import finished_seed, known_scores, logged_seed, save_scores
from pipeline.apps.export.run import export
from pipeline.apps.opening import OpenedRun, locate, open_run
from pipeline.config import load_params, names
from pipeline.errors import MissingExtraError
from pipeline.evaluate.config import evaluate_config
from pipeline.evaluate.single import read_history, read_layer_pairs
from pipeline.extract.config import extract_config, named_stores
from pipeline.extract.datasets.importers import import_dataset
from pipeline.extract.datasets.layout import open_dataset
from pipeline.files import dump_signed, write_atomically
from pipeline.indexes.index import build_index
from pipeline.indexes.stored import read_index, write_index
from pipeline.projectors.base import LinearProjector
from pipeline.projectors.run_record import AlignedRun, load_projector, save_projector
from pipeline.store.inspect import ls, verify
from pipeline.store.reader import FeatureStore
from pipeline.sweep.config import sweep_config
from tests.apps.colours import COLOURS, make_run
from tests.commands.project import PARAMS

OF = {"split": None, "layers": ["output"]}
RECORD = {"seed": 7, "folder": "seed-7", "validation": {"recall@1": 0.5}, "steps": 3}
SCORES = LayerScores(
    k=2,
    rows=4,
    image_layers=["output"],
    text_layers=["output"],
    score=[[0.5]],
    calibrated=[[0.4]],
    p_value=[[0.01]],
    chosen=(0, 0),
    chosen_p_value=0.01,
)
KARPATHY = {
    "images": [
        {"filename": f"{name}.png", "filepath": "", "split": "train", "imgid": number, "sentences": [{"raw": name}]}
        for number, name in enumerate(COLOURS)
    ]
}
PROJECT = {
    **PARAMS,
    "sweep": {"pairs": [2, 4], "seeds": [1, 2], "methods": {"cca": {"method": "cca"}}, "zero_shot": ["shapes"]},
}


def make(folder: Path) -> None:
    """Fill a folder with four pictures, stores, a run, an export, and data sets of every kind."""
    folder.mkdir()
    run = make_run(folder)
    seed = run / "seed-7"
    write_atomically(seed / "seed.json", dump_signed({"digest": "d", "dim": 3, "record": RECORD}))
    (seed / "history.jsonl").write_text('{"step": 1, "loss": 2.5}\n{"step": 2, "loss": 2.0}\n')
    save_scores(run, "d", SCORES)
    record = AlignedRun.open(run).record
    AlignedRun.write(run, {**record, "layer_scores": "layer_pairs.json"})
    export(run, folder / "model")
    (folder / "linear").mkdir()
    save_projector(folder / "linear", "image", LinearProjector(3, 2))
    (folder / "params.yaml").write_text(yaml.safe_dump(PROJECT), encoding="utf-8")
    rows = [(f"{name}.png", f"something {name}", name, "train") for name in COLOURS]
    header = ("filepath", "caption", "label", "split")
    for name, comma in (("table.csv", ","), ("table.tsv", "\t")):
        with (folder / name).open("w", newline="", encoding="utf-8") as file:
            csv.writer(file, delimiter=comma).writerows([header, *rows])
    objects = [dict(zip(header, row, strict=True)) for row in rows]
    (folder / "table.jsonl").write_text("".join(json.dumps(each) + "\n" for each in objects))
    (folder / "karpathy.json").write_text(json.dumps(KARPATHY))
    _index(folder)
    _parquet(folder, objects)
    _tar(folder)
    for kind in ("table.csv", "shards/000.tar"):
        import_dataset(folder / kind, folder / "raw" / Path(kind).stem)


def _index(folder: Path) -> None:
    """Write an index, where faiss is there."""
    import torch

    vectors = torch.nn.functional.normalize(torch.arange(60.0).reshape(20, 3).cos())
    (folder / "index").mkdir()
    with suppress(MissingExtraError):
        write_index(folder / "index", build_index(vectors, "hnsw"), OF, {"recall": {"k": 10, "reached": 1.0}})


def _parquet(folder: Path, objects: list[dict[str, str]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(objects), folder / "table.parquet")
    held = [{"image": {"bytes": (folder / each["filepath"]).read_bytes()}, "text": each["caption"]} for each in objects]
    (folder / "parquet").mkdir()
    pq.write_table(pa.Table.from_pylist(held), folder / "parquet" / "train-00000.parquet")
    saved = folder / "saved"
    saved.mkdir()
    table = pa.Table.from_pylist(held)
    name = "data-00000-of-00001.arrow"
    with pa.OSFile(str(saved / name), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as out:
        out.write_table(table)
    (saved / "state.json").write_text(json.dumps({"_data_files": [{"filename": name}]}))
    features = {"image": {"_type": "Image"}, "text": {"_type": "Value", "dtype": "string"}}
    (saved / "dataset_info.json").write_text(json.dumps({"features": features}))


def _tar(folder: Path) -> None:
    (folder / "shards").mkdir()
    for name, mode in (("000.tar", "w"), ("packed.tar.gz", "w:gz")):
        place = folder / ("shards" if mode == "w" else ".") / name
        with tarfile.open(place, mode) as tar:  # type: ignore[call-overload]
            for colour in COLOURS:
                picture = (folder / f"{colour}.png").read_bytes()
                about = json.dumps({"caption": colour, "label": colour}).encode()
                for member, data in ((f"{colour}.png", picture), (f"{colour}.json", about)):
                    info = tarfile.TarInfo(member)
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))


# ---- readers ---------------------------------------------------------------------------------------------------------


def store(folder: Path) -> None:
    """Open a store and the run's view of it; read samples and every value; say what it holds and verify it."""
    ls(folder / "image")
    held = FeatureStore.open(folder / "image")
    assert len(held.samples) == held.rows
    for layer in held.layers:
        held.read(layer.name)
    repr(held)
    verify(folder / "image", deep=True)
    opened = OpenedRun(AlignedRun.open(folder / "run"))
    assert opened.pictures is None or opened.pictures.here.is_dir()


def run(folder: Path) -> None:
    """Open a run, use its projectors, find its stores."""
    used(open_run(folder / "run"), folder)
    opened = AlignedRun.open(folder / "run")
    read_layer_pairs(opened)
    assert OpenedRun(opened, (folder / "image",)).run is opened
    for stores in opened.stores.values():
        for record in stores:
            locate(record.path, opened.root)


def used(opened: AlignedRun, folder: Path) -> None:
    """Use all that a run is made of."""
    repr(opened)
    for side in ("image", "text"):
        opened.refs(side)
        opened.projector(side)
    for seed in opened.seeds:
        opened.temperature(seed)
    images = OpenedRun(opened, (folder / "image",), (folder / "text",))
    images.embed(images.images, images.image_rows(None), opened.seeds[0])
    images.identity(opened.seeds[0], None)
    assert images.texts is not None


def exported(folder: Path) -> None:
    """Open an export."""
    used(open_run(folder / "model"), folder)


def seeds(folder: Path) -> None:
    """Read what an interrupted `align` goes on from, and what is logged and reported of a finished one."""
    from pipeline.storage.local import open_storage

    finished_seed(folder / "run", 7, "d")
    known_scores(folder / "run", "d")
    config = align_config({**PARAMS, "align": {"dataset": "shapes"}}, "cca")
    logged_seed(config, open_storage(folder / "run"), 7)
    read_history(folder / "run" / "seed-7")


def params(folder: Path) -> None:
    """Make the settings of every command of params.yaml."""
    values = load_params(folder / "params.yaml")
    for dataset, encoder in named_stores(values):
        extract_config(values, dataset, encoder)
    for method in names(values, "methods"):
        align_config(values, method).recipe()
    evaluate_config(values)
    sweep_config(values)


def importer(name: str) -> Callable[[Path], None]:
    """Return what imports a source of the folder."""

    def read(folder: Path) -> None:
        made = import_dataset(folder / name, folder / "imported" / "new")
        open_dataset(made.path)

    return read


class Reader(NamedTuple):
    """A kind of file."""

    file: str
    """Where it lies in the folder."""
    read: Callable[[Path], Any]
    """What reads it."""


READERS: dict[str, Reader] = {
    "manifest": Reader("image/manifest.json", store),
    "header": Reader("image/store.json", store),
    "run": Reader("run/run.json", run),
    "layer pairs": Reader("run/layer_pairs.json", run),
    "layer scores": Reader("run/layer_pairs.json", seeds),
    "projector": Reader("linear/image.json", lambda folder: load_projector(folder / "linear", "image")),
    "tensors": Reader("linear/image.safetensors", lambda folder: load_projector(folder / "linear", "image")),
    "seed": Reader("run/seed-7/seed.json", seeds),
    "history": Reader("run/seed-7/history.jsonl", seeds),
    "export": Reader("model/model.json", exported),
    "index": Reader("index/index.json", lambda folder: read_index(folder / "index", OF)),
    "faiss": Reader("index/index.faiss", lambda folder: read_index(folder / "index", OF)),
    "params": Reader("params.yaml", params),
    "classes": Reader("raw/table/classes.json", lambda folder: open_dataset(folder / "raw" / "table")),
    "data set": Reader("raw/table/dataset.json", lambda folder: open_dataset(folder / "raw" / "table")),
    "images": Reader("raw/table/images.csv", lambda folder: open_dataset(folder / "raw" / "table")),
    "captions": Reader("raw/table/captions.csv", lambda folder: open_dataset(folder / "raw" / "table")),
    "csv": Reader("table.csv", importer("table.csv")),
    "tsv": Reader("table.tsv", importer("table.tsv")),
    "jsonl": Reader("table.jsonl", importer("table.jsonl")),
    "parquet": Reader("table.parquet", importer("table.parquet")),
    "karpathy": Reader("karpathy.json", importer("karpathy.json")),
    "image parquet": Reader("parquet/train-00000.parquet", importer("parquet")),
    "arrow": Reader("saved/data-00000-of-00001.arrow", importer("saved")),
    "state": Reader("saved/state.json", importer("saved")),
    "features": Reader("saved/dataset_info.json", importer("saved")),
    "tar": Reader("shards/000.tar", importer("shards/000.tar")),
    "packed tar": Reader("packed.tar.gz", importer("packed.tar.gz")),
}
