"""The machine: devices, versions, number formats, disk; and freed memory is reused."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipeline.errors import UserError
from pipeline.runtime import (
    DTYPE_NAMES,
    cpu_cores,
    free_disk,
    installed_version,
    installed_versions,
    resolve_device,
    torch_dtype,
)

SCRIPT = """
import resource
import numpy as np
from pipeline.runtime import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(2**23).sum()  # 64 MB: 16,384 pages of 4 kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

asked = keep_freed_memory()
faults()
print(int(asked), faults())
"""


def test_large_blocks_are_reused_and_no_page_is_cleared_again() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    asked, faults = (int(word) for word in result.stdout.split())
    if not asked:
        pytest.skip("this C library cannot be asked")
    assert faults < 2000


def test_devices_by_name() -> None:
    assert resolve_device("cpu") == torch.device("cpu")
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    with pytest.raises(UserError, match="--gpu: expected a device such as cpu, cuda or cuda:1, found 'abacus'"):
        resolve_device("abacus", "--gpu")
    with pytest.raises(UserError, match=r"expected a (CUDA device|device of this machine: auto, cpu or cuda), found"):
        resolve_device("cuda:99")


def test_number_formats_by_either_name() -> None:
    for short, long in DTYPE_NAMES.items():
        assert torch_dtype(short) == torch_dtype(long)
    assert torch_dtype("bf16") == torch.bfloat16
    with pytest.raises(ValueError, match="'relu' is no number format"):
        torch_dtype("relu")


def test_versions() -> None:
    assert installed_version("no-such-distribution") is None
    assert installed_versions(["numpy", "no-such-distribution"]) == {"numpy": installed_version("numpy")}


def test_the_disk_of_a_folder_that_is_not_there_yet(tmp_path: Path) -> None:
    assert free_disk(tmp_path / "a" / "b") > 0


def test_cores() -> None:
    assert cpu_cores() >= 1
