"""The libraries of models: their one door, their hub, and digests of the weights and configs that they load.

PyPI's torchvision may be a CUDA build beside a CPU build of torch. Then its native library does not load, and `import
torchvision` fails with "operator torchvision::nms does not exist" and takes every library that imports it along.
Declaring the two operators is enough for all that is used here (nothing of torchvision.ops runs). Where the native
library loads, nothing is changed.
"""

import hashlib
import importlib
import importlib.util
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from pipeline.encoders.base import Spec
from pipeline.errors import MissingExtraError, PipelineError, UserError
from pipeline.files import file_sha256, spaced_json_digest

INSTALL = {
    "timm": "pip install 'timm>=1.0.15'",
    "open_clip": "pip install 'open_clip_torch>=3.0'",
    "transformers": "pip install 'transformers>=5'",
    "sentence_transformers": "pip install 'sentence-transformers>=5'",
}

WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*_Dense/*.bin"]
"""Files of a hub model that are fetched; pickles only where there are no others (and read as weights only)."""

LEFT_OUT = ["onnx/*", "openvino/*", "consolidated*", "original/*"]
"""The same weights again, in forms that are not read here."""

VOLATILE = ("transformers_version", "_name_or_path", "dtype", "torch_dtype", "architectures", "use_cache")
"""Fields of a config that do not change what comes out."""

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


def import_library(name: str) -> ModuleType:
    """Import a model library, or a module of it, once torchvision can be imported.

    Raises:
        MissingExtraError: The library is not installed.
    """
    make_torchvision_loadable()
    package = name.partition(".")[0]
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise MissingExtraError(package, INSTALL.get(package, f"pip install {package}"), "loads encoders") from error
    if package in ("transformers", "sentence_transformers"):  # a bar for every load of weights says nothing
        importlib.import_module("transformers.utils.logging").disable_progress_bar()
    return module


@cache
def make_torchvision_loadable() -> torch.library.Library | None:
    """Declare torchvision's operators where its native library cannot be loaded; keep what must stay alive."""
    spec = importlib.util.find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return None
    libraries = [file for ending in ("so", "pyd") for file in Path(spec.origin).parent.glob(f"_C*.{ending}")]
    try:
        for library in libraries:
            torch.ops.load_library(str(library))  # type: ignore[no-untyped-call]
    except OSError:
        libraries = []
    if libraries:
        return None
    fragment = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in ("nms", "qnms"):
        schema = f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
        fragment.define(schema)  # type: ignore[no-untyped-call]
    return fragment


@contextmanager
def opening(spec: Spec, local: str) -> Iterator[None]:
    """Turn whatever goes wrong while a model is fetched or read into one sentence.

    Args:
        spec: What is being loaded.
        local: The local form of the spec, for the remedy.

    Raises:
        UserError: The model could not be fetched (no network, no such name) or read.
    """
    muted = logging.root.manager.disable
    logging.disable(logging.ERROR)  # the libraries log what they then raise
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        kind = type(error).__name__
        found = f"{kind}: {' '.join(str(error).split())[:200] or kind}"
        if spec.folder is not None:
            raise UserError(expected=f"a readable model in {spec.folder}", found=found, where=spec.text) from error
        raise UserError(
            expected=f"the model {spec.key_name!r} in the local cache or on its hub",
            found=f"neither (offline, or no such name; {found})",
            where=spec.text,
            remedy=f"check the name and the network, or give a local path: {local}",
        ) from error
    finally:
        logging.disable(muted)


def nearest(name: str, names: Iterable[str]) -> list[str]:
    """Return the names most like one that was not found: a hub's whole list, of a thousand names, helps nobody."""
    return get_close_matches(name, list(names), n=8, cutoff=0.3)


def require_folder(spec: Spec, *files: str) -> Path | None:
    """Return the local folder of a spec after a look at the files that it needs; None for a hub name.

    Raises:
        UserError: The folder, or one of the files in it, does not exist.
    """
    folder = spec.folder
    if folder is None:
        return None
    if not folder.is_dir():
        raise UserError(expected=f"a folder {folder}", found="none", where=spec.text)
    missing = [file for file in files if not (folder / file).is_file()]
    if missing:
        raise UserError(expected=f"{', '.join(missing)} in {folder}", found="none", where=spec.text)
    return folder


def fetch(spec: Spec, *files: str) -> Path:
    """Return the folder of a Hugging Face model: the given one, with the files, or the hub's in the local cache.

    Raises:
        UserError: The given folder, or one of the files in it, does not exist.
    """
    folder = require_folder(spec, *files)
    if folder is not None:
        return folder
    snapshot = import_library("huggingface_hub").snapshot_download
    options = {"revision": spec.revision, "ignore_patterns": LEFT_OUT}
    folder = Path(snapshot(spec.name, allow_patterns=WANTED, **options))
    if any(folder.rglob("*.safetensors")):
        return folder
    return Path(snapshot(spec.name, allow_patterns=[*WANTED, "*.bin"], **options))


def weight_files(folder: Path) -> list[Path]:
    """Return the weight files of a folder: safetensors where there are any.

    Raises:
        UserError: There are none.
    """
    for suffix in WEIGHT_SUFFIXES:
        files = sorted(file for file in folder.glob(f"*{suffix}") if file.is_file())
        if files:
            return files
    raise UserError(expected="model.safetensors", found="no weight file", where=str(folder))


def weights_sha256(files: Iterable[Path]) -> str:
    """Return one digest of the weights in several files; neither their names nor their places count."""
    digests = sorted(file_sha256(file) for file in files)
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def state_sha256(state: Mapping[str, torch.Tensor]) -> str:
    """Return a digest of names, types, shapes and values, for weights of which no file is known."""
    digest = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def config_digest(config: Any) -> str:
    """Return the digest of a config of transformers without the fields that do not change what comes out."""
    return spaced_json_digest(_steady(config.to_dict()))


def _steady(config: Mapping[str, Any]) -> dict[str, Any]:
    kept = {name: value for name, value in config.items() if name not in VOLATILE}
    return {name: _steady(value) if isinstance(value, Mapping) else value for name, value in kept.items()}
