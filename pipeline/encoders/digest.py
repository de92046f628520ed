"""Digests of what an encoder is made of: file contents, state dicts, configs. Never of a path."""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from pipeline.errors import UserError
from pipeline.files import file_sha256

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth")


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
