"""What every export needs: values in a type that numpy knows, and new files written whole or not at all."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from pipeline.errors import UserError
from pipeline.files import publish, sync_folder
from pipeline.store.atomic import temp_file
from pipeline.store.commit import writing
from pipeline.store.formats.base import Features
from pipeline.store.reader import FeatureStore


def plain_values(store: FeatureStore, layer: str) -> Features:
    """Read a layer [N, D] in a type that numpy knows: bfloat16 becomes float32."""
    values = store.numpy(layer)
    if store.layer(layer).dtype != "bfloat16":
        return values
    return (values.astype(np.uint32) << 16).view(np.float32)


def put_new(target: Path, write: Callable[[Path], object]) -> Path:
    """Write a file that must not be there yet, whole or not at all, and return its path.

    Raises:
        UserError: It is there.
        PipelineError: Writing failed.
    """
    if target.exists():
        raise UserError(expected="a new file", found=f"{target.name} exists", where=str(target.parent))
    with writing(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        with temp_file(target) as temp:
            write(temp)
            publish(temp, target)
            sync_folder(target.parent)
    return target


def put_npy(target: Path, values: Features) -> Path:
    """Write an array as a new npy file and return its path; errors as for `put_new`."""

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.save(file, values, allow_pickle=False)

    return put_new(target, write)
