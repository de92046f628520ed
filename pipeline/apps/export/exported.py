"""An exported model on the disk: `model.json` beside one safetensors file a side. No pickle.

`record_of` says what `model.json` holds, `ExportedRun.open` opens the folder as a run of one seed, so that everything
that takes a run takes an export too.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pipeline import __version__
from pipeline.errors import UserError
from pipeline.evaluate.data import run_temperature
from pipeline.projectors.base import Projector
from pipeline.projectors.run_record import FORMAT as RUN_FORMAT
from pipeline.projectors.run_record import SIDES, AlignedRun, check_record
from pipeline.projectors.table import pack_projector, read_json, unpack_projector

FORMAT = 1
KIND = "fewpairs model"
MODEL = "model.json"
FOLDER = "folder"
_REMEDY = "run `pipeline export` again"
_TRAINING = ("settings", "recipe", "layers", "layer_metric", "pairs", "train_split", "validation_split")
"""What of a run's config goes along: no paths of the machine that it was trained on."""


class ExportedRun(AlignedRun):
    """An export, opened as a run with one seed whose projectors lie beside `model.json`."""

    def __init__(self, path: Path, model: Mapping[str, Any]) -> None:
        self.model = dict(model)
        super().__init__(path, _as_run(model))

    @classmethod
    def open(cls, path: Path) -> "ExportedRun":
        """Open an export's folder and check `model.json`.

        Raises:
            UserError: It is missing, damaged, of another version, or the folder is of a form that others load.
        """
        where = path / MODEL
        model = read_model(where)
        if model.get("export") == "sentence-transformers":
            remedy = f'load it with SentenceTransformer("{path}"), or export again without --format'
            found = "one for sentence-transformers, which holds the text side alone"
            raise UserError(expected="a model of both sides", found=found, where=str(path), remedy=remedy)
        try:
            check_record(_as_run(model), str(where))
            return cls(path, model)
        except UserError as error:
            raise UserError(expected=error.expected, found=error.found, where=str(where), remedy=_REMEDY) from error

    def _load(self, side: str, seed: int) -> Projector:
        if seed not in self.seeds:
            expected = f"the seed {self.seeds[0]}, which was exported"
            raise UserError(expected=expected, found=str(seed), where=str(self.path))
        about = self.model.get("projectors", {}).get(side)
        if not isinstance(about, Mapping):
            raise UserError(expected=f"a projector of the {side} side", found="none", where=str(self.path / MODEL))
        projector = unpack_projector(about, str(self.path / MODEL), self.path / f"{side}.safetensors")
        if projector.d != self.dim:
            expected, found = f"a projector to {self.dim} dimensions", str(projector.d)
            raise UserError(expected=expected, found=found, where=str(self.path / MODEL), remedy=_REMEDY)
        return projector


def open_run(path: Path) -> AlignedRun:
    """Open the folder of a run, or of what `pipeline export` made of one.

    Raises:
        UserError: It holds neither, or is damaged.
    """
    return (ExportedRun if (path / MODEL).is_file() else AlignedRun).open(path)


def read_model(path: Path) -> dict[str, Any]:
    """Read a `model.json`.

    Raises:
        UserError: It is missing, no JSON object, or not of this kind and format.
    """
    model = read_json(path, "an exported model")
    found = {"format": model.get("format"), "kind": model.get("kind")}
    if found != {"format": FORMAT, "kind": KIND}:
        raise UserError(
            expected=f"format {FORMAT} and kind {KIND!r}",
            found=f"format {found['format']!r} and kind {found['kind']!r}",
            where=str(path),
            remedy=_REMEDY,
        )
    return model


def record_of(run: AlignedRun, seed: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return what `model.json` says of a run's seed, and the bytes of its `<side>.safetensors`.

    Raises:
        UserError: There is no such seed, or its projectors are damaged.
    """
    packed = {side: pack_projector(run.projector(side, seed), side) for side in SIDES}
    temperature, source = run_temperature(run.record, seed)
    training = next(entry for entry in run.record["seeds"] if entry.get("seed") == seed)
    config = {name: run.config[name] for name in _TRAINING if name in run.config}
    model = {
        "format": FORMAT,
        "kind": KIND,
        "export": FOLDER,
        "method": run.method,
        "seed": seed,
        "dim": run.dim,
        "temperature": temperature,
        "temperature_source": source,
        "layers": {side: list(run.layers[side]) for side in SIDES},
        "encoders": {
            side: [
                {
                    "spec": store.spec,
                    "key_digest": store.key_digest,
                    "content_digest": store.content_digest,
                    "key": store.key,
                }
                for store in run.stores[side]
            ]
            for side in SIDES
        },
        "projectors": {side: about for side, (about, _) in packed.items()},
        "training": {
            "config": config,
            "pairs": run.record.get("pairs"),
            "validation": training.get("validation", {}),
            "created": run.record.get("created"),
            "versions": run.record.get("versions", {}),
        },
        "versions": {"fewpairs": __version__},
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    return model, {f"{side}.safetensors": data for side, (_, data) in packed.items()}


def to_bytes(model: Mapping[str, Any]) -> bytes:
    """Return the bytes of a `model.json`."""
    return (json.dumps(model, indent=2, ensure_ascii=False, allow_nan=False) + "\n").encode()


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
