"""Projectors on the disk: each as two files, and a trained run, `run.json` beside one folder of projectors per seed.

    projector = build_projector("linear", {"d_in": 384, "d": 512})
    save_projector(folder, "image", projector); projector = load_projector(folder, "image")

A projector is `<side>.safetensors` with the tensors and `<side>.json` with what they mean: a name of the table and its
settings. No pickle. `AlignedRun.write` makes a run, `AlignedRun.open` opens it; then `run.check("image", [key], where)`
refuses features of another key and `run.encode("image", features, seed)` embeds them.
"""

import hashlib
import inspect
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import torch
from safetensors.torch import load, save
from torch import Tensor

from pipeline.config import build
from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.files import dump_signed, json_differences, one_line, read_file, read_signed, write_atomically
from pipeline.layers import LayerRef, parse_label
from pipeline.projectors import base as maps
from pipeline.projectors.asif import AsifProjector
from pipeline.projectors.base import Inputs, Projector, Task, embed_blocks
from pipeline.projectors.csls import CslsProjector
from pipeline.storage.contract import Place, Storage
from pipeline.storage.local import open_storage
from pipeline.words import count

T = TypeVar("T")

PROJECTORS: dict[str, type[Projector]] = {
    "linear": maps.LinearProjector,
    "residual_mlp": maps.ResidualMLPProjector,
    "residual_low_rank": maps.ResidualLowRankProjector,
    "identity": maps.IdentityProjector,
    "affine": maps.AffineProjector,
    "asif": AsifProjector,
}
WRAPPERS: dict[str, type[Projector]] = {"csls": CslsProjector}
"""Projectors around another one: their setting `base` is {"projector": name, "settings": {...}}."""
FORMAT = 1
"""Of a projector's JSON and of run.json."""
REMEDY = "run `pipeline align` again, or restore all files of the run"
SIDES = ("image", "text")
DEFAULT_TEMPERATURE = 0.07
"""Divides the scores of runs of older versions, which recorded none."""
DEFAULT, OWN = "default", "own"
RUN_FILES = ("run.json", "layer_pairs.json", "seed-*/*")
"""What a run's folder is made of, as patterns."""
# The data set is what a run is applied to; every other field of a key says what the features are.
OTHER_DATA = ("dataset_digest",)


def build_projector(name: str, settings: Mapping[str, Any], *, where: str = "") -> Projector:
    """Make the projector of that name from its settings.

    Raises:
        UnknownNameError: No such projector, or a setting that it does not have.
        UserError: A setting is missing or has an impossible value.
    """
    table = {**PROJECTORS, **WRAPPERS}
    if name not in table:
        raise UnknownNameError("projector", name, PROJECTORS, where)
    parameters = {**inspect.signature(table[name]).parameters}
    known = [*parameters, *(Inputs.__annotations__ if parameters.pop("inputs", None) else ())]
    for setting in settings:
        if setting not in known:
            raise UnknownNameError(f"setting of the {name} projector", setting, known, where)
    missing = [each for each, spec in parameters.items() if spec.default is spec.empty and each not in settings]
    if missing:
        raise UserError(expected=f"the settings {', '.join(missing)}", found="none", where=where or f"{name} projector")
    if name in WRAPPERS:
        settings = {**settings, "base": _base(settings["base"], name, where)}
    try:
        return table[name](**settings)
    except (TypeError, RuntimeError, OverflowError, UserError) as error:  # another type, or a size that no tensor has
        expected = f"settings of a {name} projector"
        raise UserError(expected=expected, found=one_line(error), where=where) from error


def _base(about: object, name: str, where: str) -> Projector:
    """Make the projector that another one wraps."""
    if not isinstance(about, Mapping) or set(about) != {"projector", "settings"} or about["projector"] in WRAPPERS:
        expected = f"the projector that {name} wraps, as its name and settings"
        raise UserError(expected=expected, found=str(about)[:120], where=where)
    return build_projector(str(about["projector"]), about["settings"], where=where)


def save_projector(folder: Path, side: str, projector: Projector) -> None:
    """Write a projector as `<side>.safetensors` and `<side>.json`, each put in place by rename, the JSON last.

    The JSON carries the sha256 of the tensors, so a mixture of two runs is noticed, and its own digest.

    Raises:
        UserError: A weight is NaN or infinite: the training diverged.
    """
    about, data = pack_projector(projector, side)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{side}.safetensors", data)
    write_atomically(folder / f"{side}.json", dump_signed({"format": FORMAT, **about}))


def load_projector(folder: Path, side: str, where: str = "") -> Projector:
    """Read a projector back, in evaluation mode, on the CPU.

    Args:
        folder: Where its files lie.
        side: Which of the folder's projectors.
        where: What errors call the folder; its path if unsaid.

    Raises:
        UserError: A file is missing, damaged, of another format, or the two do not belong together.
        UnknownNameError: The JSON names a projector or a setting that does not exist.
    """
    where = f"{where or folder}/{side}.json"
    about = read_signed(folder / f"{side}.json", "a projector", where, remedy=REMEDY)
    if about.get("format") != FORMAT:
        raise _damaged(where, f"format {FORMAT}", repr(about.get("format")))
    return unpack_projector(about, where, folder / f"{side}.safetensors")


def pack_projector(projector: Projector, side: str) -> tuple[dict[str, Any], bytes]:
    """Return what describes a projector, as JSON values, and its tensors as the bytes of a safetensors file.

    Raises:
        UserError: A weight is NaN or infinite: the training diverged.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in projector.state_dict().items()}
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            remedy = "lower the learning rate or look for non-finite features"
            raise UserError(expected="finite weights", found=f"NaN or infinity in {name}", where=side, remedy=remedy)
    data: bytes = save(tensors)
    about = {
        "projector": projector.name,
        "settings": projector.settings(),
        "d_in": projector.d_in,
        "d": projector.d,
        "sha256": hashlib.sha256(data).hexdigest(),
    }
    return about, data


def unpack_projector(about: Mapping[str, Any], where: str, tensors_path: Path) -> Projector:
    """Build a projector from what describes it and its safetensors file, in evaluation mode, on the CPU.

    Args:
        about: What `pack_projector` gave.
        where: Where that was read, for errors.
        tensors_path: The file.

    Raises:
        UserError: The file is missing or damaged, or does not belong to the description.
        UnknownNameError: There is no such projector or setting.
    """
    kinds: dict[str, type] = {"projector": str, "settings": dict, "d_in": int, "d": int, "sha256": str}
    for name, kind in kinds.items():
        if not isinstance(about.get(name), kind):
            raise _damaged(where, f"the field {name} ({kind.__name__})", repr(about.get(name)))
    data = read_file(tensors_path, REMEDY)
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise _damaged(tensors_path, f"the sha256 {about['sha256']}", "other bytes")
    with torch.device("meta"):  # no memory and no random numbers are spent before the tensors are known to fit
        projector = build_projector(about["projector"], about["settings"], where=where)
    if (projector.d_in, projector.d) != (about["d_in"], about["d"]):
        raise _damaged(where, f"d_in {about['d_in']} and d {about['d']}", f"{projector.d_in} and {projector.d}")
    try:
        projector.load_state_dict(load(data), strict=True, assign=True)
    except Exception as error:
        raise _damaged(tensors_path, f"the tensors of a {projector.name} projector", one_line(error)) from error
    return projector.eval()


def _damaged(path: Path | str, expected: str, found: str) -> UserError:
    return UserError(expected=expected, found=found, where=str(path), remedy=REMEDY)


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
        return cls(root, read_signed(file, "a run", str(root / "run.json"), remedy=REMEDY))

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
            data = dump_signed(run.record)
        except (TypeError, ValueError) as error:
            raise UserError(expected="JSON values (NaN is none)", found=str(error), where=str(root)) from error
        root.make()
        write_atomically(root.here / "run.json", data)
        root.push(RUN_FILES, last="run.json")
        return run

    def temperature(self, seed: int, task: Task = "retrieval") -> tuple[float, str]:
        """Return what a task's cosines are divided by, and where that comes from, by a seed's entry or the run's.

        That is learned, fixed, validation, own or default.
        """
        scale = 1.0 if task == "retrieval" else self.projector("image", seed).cosine_scale(task)
        entries = [each for each in self.record["seeds"] if isinstance(each, dict) and each.get("seed") == seed]
        for place in (*entries, self.record):
            value = place.get("temperature")
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0:
                return scale * float(value), str(place.get("temperature_source", OWN))
        return scale * DEFAULT_TEMPERATURE, DEFAULT

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
        self, side: str, features: Tensor, seed: int | None = None, *, task: Task = "retrieval", device: str = "cpu"
    ) -> Tensor:
        """Embed raw features [N, D]: unit-length float32 [N, d], on the CPU; both sides want the same task.

        Raises:
            UserError: The width is not the projector's, a value is not finite, or there is no such task.
        """
        projector = self.projector(side, seed).to(device).eval()
        return embed_blocks(projector, features, task=task, where=f"{self.root}, {side} side")

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
            for name, trained, offered in json_differences(store.key, key)
            if not any(f"{name}.".startswith(f"{field}.") for field in ignore)
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


def _problems(record: Mapping[str, Any]) -> Iterator[str]:
    kinds = {"method": str, "config": dict, "layers": dict, "stores": dict, "dim": int, "seeds": list}
    if record.get("format") != FORMAT:
        yield f"format should be {FORMAT}, not {record.get('format')!r}"
    for name, kind in kinds.items():
        if not isinstance(record.get(name), kind):
            yield f"{name} should be {kind.__name__}, not {record.get(name)!r}"
    if record.get("seeds") == []:
        yield "seeds is empty"
    for name, kind in (("layers", str), ("stores", dict)):
        for side in SIDES if isinstance(record.get(name), dict) else ():
            entries = record[name].get(side)
            if not isinstance(entries, list) or not entries:
                yield f"{name}.{side} should be a list that is not empty"
            elif not all(isinstance(entry, kind) for entry in entries):
                yield f"{name}.{side} should hold {kind.__name__} entries only"


def fill(cls: type[T], entry: Any, where: str) -> T:
    """Make a record from one JSON object; fields that this version does not know are passed over.

    Raises:
        UserError: A field is missing or of the wrong kind.
    """
    if not isinstance(entry, Mapping):
        raise UserError(expected="a JSON object", found=repr(entry)[:100], where=where, remedy=REMEDY)
    names = {spec.name for spec in fields(cls)}  # type: ignore[arg-type]
    return build(cls, {name: value for name, value in entry.items() if name in names}, where=where)


def _check_side(side: str) -> None:
    if side not in SIDES:
        raise UserError(expected="the side image or text", found=repr(side))
