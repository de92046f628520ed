"""Hub models: one clear sentence instead of a traceback when there is no network, and a folder for what was fetched."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.encoders.libraries import import_library
from pipeline.encoders.spec import Spec
from pipeline.errors import PipelineError, UserError

WANTED = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*_Dense/*.bin"]
"""Files of a hub model that are fetched; pickles only where there are no others (and read as weights only)."""

LEFT_OUT = ["onnx/*", "openvino/*", "consolidated*", "original/*"]
"""The same weights again, in forms that are not read here."""


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
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        if spec.folder is not None:
            raise UserError(
                expected=f"a readable model in {spec.folder}",
                found=f"{type(error).__name__}: {reason}",
                where=spec.text,
            ) from error
        raise UserError(
            expected=f"the model {spec.key_name!r} in the local cache or on its hub",
            found=f"neither (offline, or no such name; {type(error).__name__}: {reason})",
            where=spec.text,
            remedy=f"check the name and the network, or give a local path: {local}",
        ) from error
    finally:
        logging.disable(muted)


def fetch(spec: Spec) -> Path:
    """Return the folder of a Hugging Face model: the given one, or the hub's snapshot in the local cache."""
    if spec.folder is not None:
        return spec.folder
    snapshot = import_library("huggingface_hub").snapshot_download
    options = {"revision": spec.revision, "ignore_patterns": LEFT_OUT}
    folder = Path(snapshot(spec.name, allow_patterns=WANTED, **options))
    if any(folder.rglob("*.safetensors")):
        return folder
    return Path(snapshot(spec.name, allow_patterns=[*WANTED, "*.bin"], **options))
