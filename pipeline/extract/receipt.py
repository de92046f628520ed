"""Know that nothing is left to do without loading the encoder.

Beside a finished store lies receipt.json: what was asked for, the sha256 of every file that the encoder was made of,
and of the code and library versions that made it. Where all of that is the same now, the encoder would have the key
that the store has. Encoders whose files are not known (hub names, classes of one's own) give no receipt: they are
loaded.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import pipeline
from pipeline.extract.config import ExtractConfig

RECEIPT = "receipt.json"

_LIBRARIES = (
    "numpy",
    "open_clip_torch",
    "pillow",
    "sentence-transformers",
    "timm",
    "tokenizers",
    "torch",
    "torchvision",
    "transformers",
)


def write_receipt(root: Path, config: ExtractConfig, modality: str, layer_names: Sequence[str]) -> None:
    """Leave a receipt in a store that has just been finished, if the encoder's files are known.

    Args:
        root: The store.
        config: What was asked for.
        modality: What the encoder takes.
        layer_names: All its layers, in order of depth.
    """
    files = _encoder_files(config.encoder)
    path = root / RECEIPT
    if not files:
        path.unlink(missing_ok=True)
        return
    receipt = {
        "request": _request(config),
        "modality": modality,
        "layer_names": list(layer_names),
        "files": {str(file.absolute()): _sha256(file) for file in files},
        "code": _code(),
    }
    text = json.dumps(receipt, indent=1)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        temp = path.with_name(f".{RECEIPT}.{os.getpid()}")
        temp.write_text(text, encoding="utf-8")
        temp.replace(path)


def read_receipt(root: Path, config: ExtractConfig) -> Mapping[str, Any] | None:
    """Return a store's receipt if it still says what loading the encoder now would say; None otherwise."""
    try:
        receipt = json.loads((root / RECEIPT).read_text(encoding="utf-8"))
        same = receipt["request"] == _request(config) and receipt["code"] == _code()
        return receipt if same and _same_files(receipt["files"], config.encoder) else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def versions() -> dict[str, str]:
    """Return the versions of this package and of the libraries that took part."""
    found = {"fewpairs": pipeline.__version__}
    for name in _LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def _request(config: ExtractConfig) -> dict[str, Any]:
    names = ("encoder", "modality", "pool", "dtype", "storage_dtype", "max_length", "prompt", "jpeg")
    return {name: getattr(config, name) for name in names}


def _code() -> str:
    digest = hashlib.sha256(json.dumps(versions()).encode())
    package = Path(pipeline.__file__).parent
    for path in sorted([*(package / "encoders").glob("*.py"), *(package / "extract").glob("*.py")]):
        digest.update(f"{path.name}\n{_sha256(path)}\n".encode())
    return digest.hexdigest()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _encoder_files(spec: str) -> list[Path]:
    family, _, name = spec.partition(":")
    if family != "package":
        return _local_files(spec)
    from pipeline.encoders.packages import PACKAGES, weight_file

    file = weight_file(name, PACKAGES[name])
    return _files(file.parent) if PACKAGES[name].architecture == "sentence-transformers" else [file]


def _local_files(spec: str) -> list[Path]:
    family, _, name = spec.partition(":")
    return _files(Path(name)) if family in ("timm", "hf", "st", "open_clip") and Path(name).is_dir() else []


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc")


def _same_files(files: Mapping[str, str], spec: str) -> bool:
    if not spec.startswith("package:") and [str(path.absolute()) for path in _local_files(spec)] != sorted(files):
        return False
    return bool(files) and all(_sha256(Path(path)) == digest for path, digest in files.items())
