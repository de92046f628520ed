"""A run with its stores, opened for use: whatever search, serve, export and indexes read of them, they open here.

    run = open_run("data/2_projectors/combined")         # a run, or what `pipeline export` made of one
    opened = OpenedRun(run)
    opened.images, opened.texts                          # its stores, wherever they lie now
    opened.embed(opened.images, rows, seed)              # unit vectors [n, d]

A record holds paths as they were typed, mostly relative to a project's folder. They are looked for from the folders
above the run first, so that a run can be used from anywhere.
"""

import os
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from pipeline.errors import UserError
from pipeline.files import read_signed
from pipeline.projectors.base import Projector
from pipeline.projectors.run_record import FORMAT as RUN_FORMAT
from pipeline.projectors.run_record import AlignedRun, check_record, pack_projector, unpack_projector
from pipeline.storage.contract import Place, Storage
from pipeline.storage.local import is_url, open_recorded, open_storage
from pipeline.store.views import Rows, Side

FORMAT = 1
KIND = "fewpairs model"
MODEL = "model.json"
FOLDER = "folder"
_REMEDY = "run `pipeline export` again"


class OpenedRun:
    """A run, its image stores and, when they are first asked for, its text stores.

    Args:
        run: The run.
        image: Image stores (default: those of the training).
        text: Text stores (default: those of the training, if they are still there).

    Raises:
        KeyMismatchError: A store holds features of another key than the run was trained on.
        UserError: A store is missing or holds features of the other side.
    """

    def __init__(self, run: AlignedRun, image: Sequence[Place] = (), text: Sequence[Place] = ()) -> None:
        self.run, self._text = run, text
        images = self._open("image", image, "give the store of the images with --store")
        if images is None:
            raise UserError(
                expected="the image store that the run was trained on",
                found="no such folder",
                where=", ".join(str(Path(record.path)) for record in run.stores["image"]),
                remedy="say where it lies with --store",
            )
        self.images = images

    @cached_property
    def texts(self) -> Side | None:
        """The text stores; None where those of the training are gone, or the images are of another data set.

        Equal ids would give such images the captions of other pictures.
        """
        trained = [record.key.get("dataset_digest") for record in self.run.stores["image"]]
        if not self._text and [store.key.dataset_digest for store in self.images.stores] != trained:
            return None
        return self._open("text", self._text, "give the store of the captions with --text-store")

    @cached_property
    def pictures(self) -> Storage | None:
        """The folder that the images' files are relative to; None where the store does not say or it is gone."""
        store = self.images.stores[0]
        return locate(str(store.manifest.provenance.get("dataset") or ""), store.root)

    def image_rows(self, split: str | None) -> Rows:
        """Return the positions [N] of the images in a split, of all where it is None.

        Raises:
            UserError: There are none.
        """
        splits = self.images.samples.split
        rows = [row for row, name in enumerate(splits) if split in (None, name)]
        if not rows:
            remedy = f"its splits are {', '.join(sorted({name or '(none)' for name in splits}))}"
            where = self.images.where
            raise UserError(expected=f"images in split {split}", found="none", where=where, remedy=remedy)
        return np.array(rows, dtype=np.int64)

    def embed(self, side: Side, rows: Rows, seed: int) -> Tensor:
        """Return the unit vectors [n, d] of some samples of a side."""
        features = side.read(self.run.refs(side.modality), rows, constant_allowed=True)
        return self.run.encode(side.modality, features, seed)

    def identity(self, seed: int, split: str | None) -> dict[str, Any]:
        """Return what decides the rows and vectors of an index over the images of a split."""
        features = [
            {"key_digest": each.key.digest(), "content_digest": each.content_digest} for each in self.images.stores
        ]
        return {
            "features": features,
            "layers": list(self.run.layers["image"]),
            "projector": pack_projector(self.run.projector("image", seed), "image")[0]["sha256"],
            "split": split,
        }

    def _open(self, name: str, given: Sequence[Place], remedy: str) -> Side | None:
        """Return the stores that were given, else those of the training; None where one of these is gone."""
        trained = (locate(record.path, self.run.root) for record in self.run.stores[name])
        places: Sequence[Place | None] = given or list(trained)
        found = [place for place in places if place is not None]
        if len(found) < len(places):
            return None
        side = Side.open(name, found, remedy=remedy)
        self.run.check(name, side.keys, side.where, offered=side.offered)
        return side


def locate(recorded: str, near: Storage) -> Storage | None:
    """Return the folder that a recorded path means, looked for from the folders above `near`; None where it is gone.

    Whether anything is at a recorded URL shows when it is opened.
    """
    if not recorded:
        return None
    if is_url(recorded):
        return open_recorded(recorded)
    bases = dict.fromkeys([*near.here.parents, Path(), *near.here.resolve().parents])
    folders = (base / recorded for base in bases)
    return next((open_storage(folder) for folder in folders if os.path.isdir(folder)), None)  # noqa: PTH112 - any text


class ExportedRun(AlignedRun):
    """An export, opened as a run with one seed whose projectors lie beside `model.json`."""

    def __init__(self, root: Storage, model: Mapping[str, Any]) -> None:
        self.model = dict(model)
        super().__init__(root, _as_run(model))

    @classmethod
    def open(cls, place: Place) -> "ExportedRun":
        """Open an export's folder and check `model.json`.

        Raises:
            UserError: It is missing, damaged, of another version, or the folder is of a form that others load.
        """
        root = open_storage(place)
        where = root.here / MODEL
        model = read_model(where)
        if model.get("export") == "sentence-transformers":
            remedy = f'load it with SentenceTransformer("{root}"), or export again without --format'
            found = "one for sentence-transformers, which holds the text side alone"
            raise UserError(expected="a model of both sides", found=found, where=str(root), remedy=remedy)
        try:
            check_record(_as_run(model), str(where))
            return cls(root, model)
        except UserError as error:
            raise UserError(expected=error.expected, found=error.found, where=str(where), remedy=_REMEDY) from error

    def _load(self, side: str, seed: int) -> Projector:
        if seed not in self.seeds:
            expected = f"the seed {self.seeds[0]}, which was exported"
            raise UserError(expected=expected, found=str(seed), where=str(self.root))
        projectors = self.model.get("projectors")
        about = projectors.get(side) if isinstance(projectors, Mapping) else None
        if not isinstance(about, Mapping):
            raise UserError(expected=f"a projector of the {side} side", found="none", where=str(self.root / MODEL))
        projector = unpack_projector(about, str(self.root / MODEL), self.folder / f"{side}.safetensors")
        if projector.d != self.dim:
            expected, found = f"a projector to {self.dim} dimensions", str(projector.d)
            raise UserError(expected=expected, found=found, where=str(self.root / MODEL), remedy=_REMEDY)
        return projector


def open_run(place: Place) -> AlignedRun:
    """Open the folder of a run, or of what `pipeline export` made of one.

    Raises:
        UserError: It holds neither, or is damaged.
    """
    root = open_storage(place)
    return (ExportedRun if (root.here / MODEL).is_file() else AlignedRun).open(root)


def read_model(path: Path) -> dict[str, Any]:
    """Read a `model.json`.

    Raises:
        UserError: It is missing, no JSON object, or not of this kind and format.
    """
    model = read_signed(path, "an exported model", remedy=_REMEDY)
    found = {"format": model.get("format"), "kind": model.get("kind")}
    if found != {"format": FORMAT, "kind": KIND}:
        raise UserError(
            expected=f"format {FORMAT} and kind {KIND!r}",
            found=f"format {found['format']!r} and kind {found['kind']!r}",
            where=str(path),
            remedy=_REMEDY,
        )
    return model


def _as_run(model: Mapping[str, Any]) -> dict[str, Any]:
    training = model.get("training")
    about: Mapping[str, Any] = training if isinstance(training, Mapping) else {}
    return {
        "format": RUN_FORMAT,
        "method": model.get("method"),
        "config": about.get("config", {}),
        "layers": model.get("layers"),
        "stores": model.get("encoders"),
        "dim": model.get("dim"),
        "temperature": model.get("temperature"),
        "temperature_source": model.get("temperature_source"),
        "seeds": [{"seed": model.get("seed"), "folder": FOLDER, "validation": about.get("validation") or {}}],
        "pairs": about.get("pairs"),
        "created": about.get("created"),
    }
