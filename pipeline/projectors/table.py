"""Projectors by name: the table, one builder, and a projector's two files, which hold its name and settings.

projector = build_projector("linear", {"d_in": 384, "d": 512})
save_projector(folder, "image", projector); projector = load_projector(folder, "image")

On the disk a projector is `<side>.safetensors` with the tensors and `<side>.json` with what they mean. No pickle.
"""

import hashlib
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save

from pipeline.errors import UnknownNameError, UserError
from pipeline.files import write_atomically
from pipeline.projectors.asif import AsifProjector
from pipeline.projectors.base import Projector
from pipeline.projectors.csls import CslsProjector
from pipeline.projectors.linear import AffineProjector, IdentityProjector, LinearProjector
from pipeline.projectors.residual import ResidualLowRankProjector, ResidualMLPProjector

PROJECTORS: dict[str, type[Projector]] = {
    "linear": LinearProjector,
    "residual_mlp": ResidualMLPProjector,
    "residual_low_rank": ResidualLowRankProjector,
    "identity": IdentityProjector,
    "affine": AffineProjector,
    "asif": AsifProjector,
}
WRAPPERS: dict[str, type[Projector]] = {"csls": CslsProjector}
"""Projectors around another one: their setting `base` is {"projector": name, "settings": {...}}."""
FORMAT = 1
_REMEDY = "run `pipeline align` again, or restore both files from the same run"


def build_projector(name: str, settings: Mapping[str, Any], *, where: str = "") -> Projector:
    """Make the projector of that name from its settings.

    Raises:
        UnknownNameError: No such projector, or a setting that it does not have.
        UserError: A setting is missing or has an impossible value.
    """
    table = {**PROJECTORS, **WRAPPERS}
    if name not in table:
        raise UnknownNameError("projector", name, PROJECTORS, where)
    known = inspect.signature(table[name]).parameters
    for setting in settings:
        if setting not in known:
            raise UnknownNameError(f"setting of the {name} projector", setting, known, where)
    missing = [key for key, spec in known.items() if spec.default is inspect.Parameter.empty and key not in settings]
    if missing:
        raise UserError(expected=f"the settings {', '.join(missing)}", found="none", where=where or f"{name} projector")
    if name in WRAPPERS:
        settings = {**settings, "base": _base(settings["base"], name, where)}
    try:
        return table[name](**settings)
    except TypeError as error:
        raise UserError(expected=f"settings of a {name} projector", found=str(error), where=where) from error


def _base(about: object, name: str, where: str) -> Projector:
    """Make the projector that another one wraps."""
    if not isinstance(about, Mapping) or set(about) != {"projector", "settings"} or about["projector"] in WRAPPERS:
        expected = f"the projector that {name} wraps, as its name and settings"
        raise UserError(expected=expected, found=str(about)[:120], where=where)
    return build_projector(str(about["projector"]), about["settings"], where=where)


def save_projector(folder: Path, side: str, projector: Projector) -> None:
    """Write a projector as `<side>.safetensors` and `<side>.json`, each put in place by rename, the JSON last.

    The JSON carries the sha256 of the tensors, so a mixture of two runs is noticed.

    Raises:
        UserError: A weight is NaN or infinite: the training diverged.
    """
    about, data = pack_projector(projector, side)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / f"{side}.safetensors", data)
    write_atomically(folder / f"{side}.json", (json.dumps({"format": FORMAT, **about}, indent=2) + "\n").encode())


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
    about = read_json(folder / f"{side}.json", "a projector", where)
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
    for field, kind in kinds.items():
        if not isinstance(about.get(field), kind):
            raise _damaged(where, f"the field {field} ({kind.__name__})", repr(about.get(field)))
    data = _read(tensors_path)
    if hashlib.sha256(data).hexdigest() != about["sha256"]:
        raise _damaged(tensors_path, f"the sha256 {about['sha256']}", "other bytes")
    with torch.device("meta"):  # no memory and no random numbers are spent before the tensors are known to fit
        projector = build_projector(about["projector"], about["settings"], where=where)
    if (projector.d_in, projector.d) != (about["d_in"], about["d"]):
        raise _damaged(where, f"d_in {about['d_in']} and d {about['d']}", f"{projector.d_in} and {projector.d}")
    try:
        projector.load_state_dict(load(data), strict=True, assign=True)
    except Exception as error:
        raise _damaged(tensors_path, f"the tensors of a {projector.name} projector", _line(error)) from error
    return projector.eval()


def read_json(path: Path, kind: str, where: str = "") -> dict[str, Any]:
    """Read a JSON object; `where` is what errors call the file, its path if unsaid.

    Raises:
        UserError: The file is missing or is not a JSON object.
    """
    try:
        value = json.loads(_read(path))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise _damaged(where or path, f"JSON that describes {kind}", _line(error)) from error
    if not isinstance(value, dict):
        raise _damaged(where or path, f"a JSON object that describes {kind}", type(value).__name__)
    return value


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise UserError(expected=f"a file {path.name}", found="none", where=str(path.parent), remedy=_REMEDY) from error


def _damaged(path: Path | str, expected: str, found: str) -> UserError:
    return UserError(expected=expected, found=found, where=str(path), remedy=_REMEDY)


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
