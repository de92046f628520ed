"""Freed memory is reused: no page of a second large block is cleared again."""

import subprocess
import sys

import pytest

SCRIPT = """
import resource
import numpy as np
from pipeline.extract.host_memory import keep_freed_memory

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(10):
        np.ones(2**23).sum()  # 64 MB: 16,384 pages of 4 kB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

asked = keep_freed_memory()
faults()
print(int(asked), faults())
"""


def test_large_blocks_are_reused() -> None:
    result = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    asked, faults = (int(word) for word in result.stdout.split())
    if not asked:
        pytest.skip("this C library cannot be asked")
    assert faults < 2000
