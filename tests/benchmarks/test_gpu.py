"""The GPU benchmark runs from end to end with a tiny model on a CPU, and says so where there is no GPU."""

from importlib.metadata import version

import pytest
import torch

from benchmarks import gpu

TASKS = ["bare forward", "encode, all layers", "extract, from memory", "extract, from JPEG", "extract, reduced"]


def test_a_tiny_model_on_a_cpu(capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--rows", "10", "--batch-size", "4", "--repeat", "1", "--width", "150", "--height", "100"]
    found = gpu.main(["--device", "cpu", "--tiny", "--workers", "1", *small])
    assert list(found) == list(gpu.TINY)
    assert list(found["vit_tiny_patch16_224"]) == TASKS
    assert all(seconds.wall > 0 for seconds in found["vit_tiny_patch16_224"].values())
    said = capsys.readouterr().out
    assert "CPU, " in said
    assert f"torch {version('torch')}" in said
    assert "10 rows, 4 layers, batch 4" in said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_gpu_it_is_a_sentence(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        gpu.main([])
    assert "there is no CUDA device; --device cpu --tiny" in capsys.readouterr().err
