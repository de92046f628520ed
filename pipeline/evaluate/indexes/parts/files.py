"""Files of a folder of parts: committed by rename with their size and SHA-256, and read only as what was committed."""

import errno
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pipeline import files
from pipeline.errors import UserError
from pipeline.evaluate.indexes.faiss_module import need_faiss
from pipeline.files import file_sha256
from pipeline.store import atomic
from pipeline.store.commit import writing

_NO_ROOM = re.compile("No space left|File too large|Disk quota", re.IGNORECASE)


def commit(target: Path, write: Callable[[Path], None]) -> dict[str, Any]:
    """Write a file whole or not at all and return its bytes and sha256.

    Raises:
        PipelineError: The disk is full, read-only or otherwise at fault.
    """
    with writing(target), atomic.temp_file(target) as temp:
        write(temp)
        files.sync_file(temp)
        said = {"bytes": temp.stat().st_size, "sha256": file_sha256(temp)}
        files.publish(temp, target)
        files.sync_folder(target.parent)
    return said


def write_faiss(index: Any, path: Path) -> None:
    """Write an index; what faiss raises comes out as OSError."""
    try:
        need_faiss("an index in parts").write_index(index, str(path))
    except RuntimeError as error:
        said = " ".join(str(error).split())
        code = errno.ENOSPC if _NO_ROOM.search(said) else errno.EIO
        raise OSError(code, os.strerror(code) if code == errno.ENOSPC else said) from error


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors as safetensors."""
    from safetensors.torch import save

    path.write_bytes(save({name: value.contiguous() for name, value in tensors.items()}))


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Read what `write_tensors` wrote."""
    from safetensors.torch import load

    return dict(load(path.read_bytes()))


def require(path: Path, sha256: str, remedy: str) -> Path:
    """Return a file that is what was committed.

    Raises:
        UserError: It is missing or another one.
    """
    found = file_sha256(path) if path.is_file() else "no such file"
    if found != sha256:
        raise UserError(expected=f"the sha256 {sha256}", found=found, where=str(path), remedy=remedy)
    return path
