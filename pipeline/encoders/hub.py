"""Hub models: one clear sentence instead of a traceback when there is no network, and a folder for what was fetched."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.encoders.libraries import import_library
from pipeline.encoders.spec import Spec
from pipeline.errors import PipelineError, UserError


@contextmanager
def opening(spec: Spec, local: str) -> Iterator[None]:
    """Turn whatever goes wrong while a model is fetched or read into one sentence.

    Args:
        spec: What is being loaded.
        local: The local form of the spec, for the remedy.

    Raises:
        UserError: The model could not be fetched (no network, no such name) or read.
    """
    try:
        yield
    except PipelineError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
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


def fetch(spec: Spec) -> Path:
    """Return the folder of a Hugging Face model: the given one, or the hub's snapshot in the local cache."""
    if spec.folder is not None:
        return spec.folder
    hub = import_library("huggingface_hub")
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*/config.json", "*/*.safetensors"]
    return Path(hub.snapshot_download(spec.name, revision=spec.revision, allow_patterns=patterns))
