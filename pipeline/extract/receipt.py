"""The receipt of a finished store: proof, without loading the encoder, that it would give the same key again.

Beside a finished store, on the machine that made it, lies receipt.json: what was asked for, the sha256 of every file
that the encoder was made of, of the code and of the library versions that made it, and the key that came of it. Where
all of that is the same now, loading the encoder would give that key again. The receipt is signed, so that no flipped
byte of it is believed, and it counts only for a store of the very key that it names: another store in its place, or a
receipt from elsewhere, is no receipt. It is no part of the store: without it the encoder is loaded, and that is all.

The digests are taken before the encoder is loaded: files that change while it works make the receipt void, not wrong.
Encoders whose files are not all known (hub names, classes of one's own) give no receipt: they are loaded.
"""

import hashlib
import json
import logging
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pipeline
from pipeline.encoders.base import parse_spec
from pipeline.errors import PipelineError
from pipeline.extract.config import ExtractConfig
from pipeline.files import dump_signed, file_sha256, load_signed
from pipeline.runtime import installed_versions
from pipeline.settings import bytes_settings
from pipeline.storage.local import LocalStorage
from pipeline.store.key import FeatureKey

RECEIPT = "receipt.json"

_LIBRARIES = (
    "huggingface_hub",
    "numpy",
    "open_clip_torch",
    "pillow",
    "pillow-heif",
    "safetensors",
    "sentence-transformers",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)
_log = logging.getLogger(__name__)


def prepare_receipt(config: ExtractConfig) -> Mapping[str, Any]:
    """Digest what an encoder is about to be made of; empty if its files are not known. Call before it is loaded."""
    origin = _origin(config.encoder)
    files = _digests(origin)
    return {"request": bytes_settings(config), "origin": origin, "files": files, "code": _code()} if files else {}


def write_receipt(
    folder: Path, prepared: Mapping[str, Any], key: FeatureKey, modality: str, layer_names: Sequence[str]
) -> None:
    """Leave a receipt in a store that has just been finished, or none; a disk that will not take it is no error.

    Args:
        folder: The store's folder on this machine.
        prepared: What `prepare_receipt` gave before the encoder was loaded.
        key: The store's key.
        modality: What the encoder takes.
        layer_names: All its layers, in order of depth.
    """
    path = folder / RECEIPT
    try:
        if not prepared:
            path.unlink(missing_ok=True)
            return
        receipt = {**prepared, "key": key.digest(), "modality": modality, "layer_names": list(layer_names)}
        data = dump_signed(receipt)
        if not path.is_file() or path.read_bytes() != data:
            LocalStorage(folder).put(RECEIPT, data)
    except OSError as error:
        _log.warning("%s: %s; the next run loads the encoder", path, error.strerror)


def read_receipt(folder: Path, config: ExtractConfig) -> Mapping[str, Any] | None:
    """Return a store's receipt if it still says what loading the encoder now would say; None otherwise.

    Whoever uses it compares its "key" with the digest of the store's own key.
    """
    try:
        receipt = _read(folder)
        if receipt["request"] != bytes_settings(config) or receipt["code"] != _code():
            return None
        packaged = config.encoder.startswith("package:")  # the table of packages is code, and takes long to import
        origin = receipt["origin"] if packaged else _origin(config.encoder)
        return receipt if receipt["files"] and _digests(origin) == receipt["files"] else None
    except (OSError, PipelineError, KeyError, TypeError):
        return None


def same_receipt(folder: Path, receipt: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """Return the receipt of another store if, but for the key, it is the same as one that was found good."""
    try:
        other = _read(folder)
    except (OSError, PipelineError):
        return None
    return other if {**other, "key": ""} == {**receipt, "key": ""} else None


def _read(folder: Path) -> dict[str, Any]:
    return load_signed((folder / RECEIPT).read_bytes(), RECEIPT, str(folder))


def versions() -> dict[str, str]:
    """Return the versions of this package and of the libraries that took part."""
    return {"fewpairs": pipeline.__version__} | installed_versions(_LIBRARIES)


def _code() -> str:
    digest = hashlib.sha256(json.dumps(versions()).encode())
    package = Path(pipeline.__file__).parent
    for path in sorted([*(package / "encoders").glob("*.py"), *(package / "extract").glob("*.py")]):
        digest.update(f"{path.name}\n{file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _origin(spec: str) -> dict[str, Any]:
    """Return where all the files of an encoder lie; empty where nobody knows."""
    parsed = parse_spec(spec)
    if parsed.family == "package":
        from pipeline.encoders.packages import PACKAGES

        package = PACKAGES.get(parsed.name)
        if package is None:
            return {}
        name, _, _ = package.distribution.partition("==")
        return {"package": name, "file": package.file, "folder": package.architecture == "sentence-transformers"}
    if parsed.family not in ("timm", "hf", "st", "open_clip") or parsed.folder is None or not parsed.folder.is_dir():
        return {}
    return {} if _names_others(parsed.folder) else {"folder": str(parsed.folder.absolute())}


def _names_others(folder: Path) -> bool:
    """Tell whether a folder of open_clip takes its tokenizer or its text tower from a hub."""
    path = folder / "open_clip_config.json"
    return path.is_file() and any(f'"hf_{what}_name"' in path.read_text("utf-8") for what in ("tokenizer", "model"))


def _digests(origin: Mapping[str, Any]) -> dict[str, str]:
    """Return path → sha256 of every file of an encoder as it lies there now."""
    if "package" in origin:
        try:
            file = Path(str(distribution(origin["package"]).locate_file(origin["file"])))
        except PackageNotFoundError:
            return {}
        files = _files(file.parent) if origin["folder"] else [file]
    else:
        files = _files(Path(origin["folder"])) if origin else []
    return {str(file.absolute()): file_sha256(file) for file in files}


def _files(folder: Path) -> list[Path]:
    """Return all files below a folder; links are followed, as the libraries follow them."""
    found: list[Path] = []
    known: set[str] = set()
    for root, folders, names in os.walk(folder, followlinks=True):
        if os.path.realpath(root) in known:  # a link that leads back
            folders.clear()
            continue
        known.add(os.path.realpath(root))
        found += [Path(root, name) for name in names if not name.endswith(".pyc")]
    return sorted(path for path in found if path.is_file())
