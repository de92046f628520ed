"""A trained run on the disk: `run.json` beside one folder of projectors per seed.

`AlignedRun.write` makes one, `AlignedRun.open` opens it; then `run.check("image", [key], where)` refuses features of
another key and `run.encode("image", features, seed)` embeds them. What `run.json` says is checked here as well.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import PurePosixPath
from typing import Any, TypeVar

import torch
from torch import Tensor

from pipeline.config import build
from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.files import write_atomically
from pipeline.layers import LayerRef, parse_label
from pipeline.projectors.base import Projector
from pipeline.projectors.table import load_projector, read_json
from pipeline.storage.contract import Place, Storage
from pipeline.storage.open import open_storage
from pipeline.words import count

FORMAT = 1
SIDES = ("image", "text")
REMEDY = "run `pipeline align` again to make a whole run"
T = TypeVar("T")
DEFAULT_TEMPERATURE = 0.07
"""Divides the scores of runs of older versions, which recorded none."""
DEFAULT, OWN = "default", "own"
RUN_FILES = ("run.json", "layer_pairs.json", "seed-*/*")
"""What a run's folder is made of, as patterns."""
# The data set is what a run is applied to; every other field of a key says what the features are.
OTHER_DATA = ("dataset_digest",)


@dataclass(frozen=True, kw_only=True)
class StoreRecord:
    """One feature store that a run was trained on."""

    key_digest: str
    """Digest of the store's key."""
    content_digest: str
    """Digest of its ids and values."""
    key: dict[str, Any]
    """The key itself, as JSON."""
    spec: str = ""
    """The encoder as the user typed it."""
    path: str = ""
    """Where the store lay."""


@dataclass(frozen=True, kw_only=True)
class SeedRecord:
    """One seed's training."""

    seed: int
    """The seed."""
    folder: str
    """Folder of its projectors, inside the run's."""
    validation: dict[str, Any] = field(default_factory=dict)
    """Metrics on the validation split, as fractions."""
    steps: int = 0
    """Optimiser steps; 0 for a closed form."""
    seconds: float = 0.0
    """Wall time."""

    def __post_init__(self) -> None:
        """Refuse a folder outside the run's."""
        path = PurePosixPath(self.folder)
        if path.is_absolute() or ".." in path.parts or "\\" in self.folder or not path.parts:
            raise UserError(expected="a folder inside the run's", found=repr(self.folder))


class AlignedRun:
    """A run opened for use.

    Attributes:
        root: Where it lies.
        folder: The folder on this machine that its files are read from.
        record: All of `run.json`, as plain data.
        method: Name of the method.
        config: The settings that it was trained with.
        layers: Side → names of the layers whose features are concatenated.
        stores: Side → the stores that it was trained on.
        trainings: One record a seed, in the order of training.
        seeds: Their seeds.
        dim: Width d of the shared space.
    """

    def __init__(self, root: Storage, record: Mapping[str, Any]) -> None:
        where = str(root / "run.json")
        check_record(record, where)
        self.root = root
        self.folder = root.here
        self.record: dict[str, Any] = dict(record)
        self.method: str = record["method"]
        self.config: dict[str, Any] = record["config"]
        self.dim: int = record["dim"]
        self.layers: dict[str, tuple[str, ...]] = {side: tuple(record["layers"][side]) for side in SIDES}
        self.stores: dict[str, tuple[StoreRecord, ...]] = {
            side: tuple(fill(StoreRecord, entry, f"{where}: stores.{side}") for entry in record["stores"][side])
            for side in SIDES
        }
        self.trainings = tuple(fill(SeedRecord, entry, f"{where}: seeds") for entry in record["seeds"])
        self.seeds: tuple[int, ...] = tuple(entry.seed for entry in self.trainings)
        self._loaded: dict[tuple[str, int], Projector] = {}

    def __repr__(self) -> str:
        seeds = count(len(self.seeds), "seed")
        return f"<{type(self).__name__} {self.method}: {seeds}, {self.dim} dimensions; {self.root}>"

    @classmethod
    def open(cls, place: Place) -> "AlignedRun":
        """Open a run's folder and check `run.json`.

        Raises:
            UserError: The file is missing or damaged, or a field is missing or of the wrong kind.
        """
        root = open_storage(place)
        file = root.pull(RUN_FILES) / "run.json"
        if not file.is_file():
            found = root.absent() or "no run.json in it"
            remedy = "make one with `pipeline align`"
            raise UserError(expected="a finished run's folder", found=found, where=str(root), remedy=remedy)
        return cls(root, read_json(file, "a run", str(root / "run.json")))

    @classmethod
    def write(cls, place: Place, record: Mapping[str, Any]) -> "AlignedRun":
        """Check a record (its `format` is added), write it atomically as `run.json`, and open the run.

        To be called last of all: a folder with a `run.json` is a whole run.

        Raises:
            UserError: A field is missing, of the wrong kind, or no JSON value.
        """
        root = open_storage(place)
        run = cls(root, {"format": FORMAT, **record})
        try:
            text = json.dumps(run.record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        except (TypeError, ValueError) as error:
            raise UserError(expected="JSON values (NaN is none)", found=str(error), where=str(root)) from error
        root.make()
        write_atomically(root.here / "run.json", text.encode())
        root.push(RUN_FILES, last="run.json")
        return run

    def temperature(self, seed: int) -> tuple[float, str]:
        """Return what a seed's cosines are divided by and where that comes from.

        That is learned, fixed, validation, own or default. It is looked up in the seed's entry of run.json, then in the
        run's.
        """
        entries = [each for each in self.record["seeds"] if isinstance(each, dict) and each.get("seed") == seed]
        for place in (*entries, self.record):
            value = place.get("temperature")
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
                return float(value), str(place.get("temperature_source", OWN))
        return DEFAULT_TEMPERATURE, DEFAULT

    def projector(self, side: str, seed: int | None = None) -> Projector:
        """Return the trained projector of a side, loaded once; the first seed's where none is named.

        Raises:
            UserError: No such side or seed, or the files are damaged.
        """
        _check_side(side)
        chosen = self.seeds[0] if seed is None else seed
        if (side, chosen) not in self._loaded:
            self._loaded[side, chosen] = self._load(side, chosen)
        return self._loaded[side, chosen]

    def encode(
        self, side: str, features: Tensor, seed: int | None = None, *, rows: int = 8192, device: str = "cpu"
    ) -> Tensor:
        """Embed raw features [N, D] in blocks of rows: unit-length float32 [N, d], on the CPU.

        Raises:
            UserError: The width is not the projector's, or a value is not finite.
        """
        projector = self.projector(side, seed).to(device).eval()
        projector.check_width(features)
        result = torch.empty(len(features), projector.d)
        with torch.no_grad():
            for start in range(0, len(features), rows):
                block = projector(features[start : start + rows].to(device))
                if not torch.isfinite(block).all():
                    found = f"NaN or infinity in the {side} features, in or after row {start}"
                    raise UserError(expected="finite features", found=found, where=str(self.root))
                result[start : start + rows] = block
        return result

    def refs(self, side: str) -> list[LayerRef]:
        """Return the layers that the run concatenates, in its order.

        Raises:
            UserError: A layer names no store of the run.
        """
        stores, found = len(self.stores[side]), []
        for name in self.layers[side]:
            layer = parse_label(name, stores)
            if layer is None:
                expected = f"layers such as 0/{name} (store/layer, {stores} stores)"
                raise UserError(expected=expected, found=repr(name), where=str(self.root / "run.json"))
            found.append(layer)
        return found

    def check(
        self,
        side: str,
        keys: Sequence[Mapping[str, Any]],
        where: str = "",
        *,
        offered: Sequence[Mapping[str, int]] = (),
        ignore: Sequence[str] = OTHER_DATA,
    ) -> None:
        """Refuse features of another key than the run was trained on, and stores without the layers that it takes.

        Args:
            side: `image` or `text`.
            keys: The keys of the features' stores, as JSON, in the order of training.
            where: The store that is offered, for the error.
            offered: Of each store the widths of its layers; not looked at where nothing is given.
            ignore: Fields that may differ (dotted paths): the data set, unless said otherwise.

        Raises:
            KeyMismatchError: Names each field that differs, what the run has and what was offered.
            UserError: Another number of stores, a layer that a store does not hold, or one of another width.
        """
        _check_side(side)
        known = self.stores[side]
        if len(keys) != len(known):
            expected = f"{len(known)} {side} store(s), as in training"
            raise UserError(expected=expected, found=str(len(keys)), where=where or str(self.root))
        differences = [
            (f"{side}[{index}].{name}" if len(known) > 1 else name, trained, offered)
            for index, (store, key) in enumerate(zip(known, keys, strict=True))
            for name, trained, offered in key_differences(store.key, key)
            if not _is_under(name, ignore)
        ]
        if differences:
            remedy = f"extract the {side} features as the run {self.root.name!r} had them, or align these anew"
            raise KeyMismatchError(differences, where or str(self.root), remedy)
        if offered:
            self._check_layers(side, offered, where)

    def _check_layers(self, side: str, offered: Sequence[Mapping[str, int]], where: str) -> None:
        layers = self.refs(side)
        for index, name in layers:
            if name not in offered[index]:
                raise UnknownNameError("stored layer", name, list(offered[index]), where)
        width, found = self.projector(side).d_in, sum(offered[index][name] for index, name in layers)
        if found != width:
            expected = f"{side} features of width {width}, as the run {self.root.name!r} takes them"
            raise UserError(expected=expected, found=f"width {found}", where=where)

    def _load(self, side: str, seed: int) -> Projector:
        folders = {entry.seed: entry.folder for entry in self.trainings}
        if seed not in folders:
            expected = f"one of the seeds {', '.join(map(str, self.seeds))}"
            raise UserError(expected=expected, found=str(seed), where=str(self.root))
        folder = folders[seed]
        projector = load_projector(self.folder / folder, side, str(self.root / folder))
        if projector.d != self.dim:
            expected, where = f"a projector to {self.dim} dimensions", str(self.root / folder / f"{side}.json")
            raise UserError(expected=expected, found=str(projector.d), where=where, remedy=REMEDY)
        return projector


def check_record(record: Mapping[str, Any], where: str) -> None:
    """Check the outline of a record, all mistakes at once.

    Raises:
        UserError: Lists each field that is missing or of the wrong kind.
    """
    problems = list(_problems(record))
    if problems:
        raise UserError(expected="the record of a run", found="; ".join(problems), where=where, remedy=REMEDY)


def fill(cls: type[T], entry: Any, where: str) -> T:
    """Make a record from one JSON object; fields that this version does not know are passed over.

    Raises:
        UserError: A field is missing or of the wrong kind.
    """
    if not isinstance(entry, Mapping):
        raise UserError(expected="a JSON object", found=repr(entry)[:100], where=where, remedy=REMEDY)
    names = {spec.name for spec in fields(cls)}  # type: ignore[arg-type]
    return build(cls, {name: value for name, value in entry.items() if name in names}, where=where)


def key_differences(expected: Any, found: Any, path: str = "") -> list[tuple[str, str, str]]:
    """Return (dotted field, expected, found) wherever two keys, as JSON, differ."""
    if isinstance(expected, Mapping) and isinstance(found, Mapping):
        prefix = f"{path}." if path else ""
        return [
            entry
            for name in sorted({*expected, *found})
            for entry in key_differences(expected.get(name, "nothing"), found.get(name, "nothing"), f"{prefix}{name}")
        ]
    if isinstance(expected, (list, tuple)) and isinstance(found, (list, tuple)):
        expected, found = list(expected), list(found)
    return [] if expected == found else [(path, str(expected), str(found))]


def _problems(record: Mapping[str, Any]) -> Iterator[str]:
    kinds = {"method": str, "config": dict, "layers": dict, "stores": dict, "dim": int, "seeds": list}
    if record.get("format") != FORMAT:
        yield f"format should be {FORMAT}, not {record.get('format')!r}"
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            yield f"{name} should be {kind.__name__}, not {record.get(name)!r}"
    if record.get("seeds") == []:
        yield "seeds is empty"
    yield from _side_problems("layers", record.get("layers"), str)
    yield from _side_problems("stores", record.get("stores"), dict)


def _side_problems(name: str, sides: Any, kind: type) -> Iterator[str]:
    for side in SIDES if isinstance(sides, Mapping) else ():
        entries: Any = sides.get(side)
        if not isinstance(entries, Sequence) or isinstance(entries, str) or not entries:
            yield f"{name}.{side} should be a list that is not empty"
        elif not all(isinstance(entry, kind) for entry in entries):
            yield f"{name}.{side} should hold {kind.__name__} entries only"


def _check_side(side: str) -> None:
    if side not in SIDES:
        raise UserError(expected="the side image or text", found=repr(side))


def _is_under(name: str, fields: Sequence[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in fields)
