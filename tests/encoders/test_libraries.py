"""The door to the model libraries, with a torchvision whose native library does not load and with one that does."""

import subprocess
import sys

import pytest
import torch

from pipeline.encoders.libraries import import_library, make_torchvision_loadable
from pipeline.errors import MissingExtraError


def test_torchvision_can_be_imported_in_a_fresh_process() -> None:
    code = (
        "from pipeline.encoders.libraries import import_library;"
        "transforms = import_library('torchvision.transforms');"
        "print(transforms.CenterCrop(3).size)"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "(3, 3)"


def test_the_cure_is_taken_once() -> None:
    assert make_torchvision_loadable() is make_torchvision_loadable()
    assert hasattr(torch.ops.torchvision, "nms")


def test_a_missing_library_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(MissingExtraError, match="run: pip install no_such_library"):
        import_library("no_such_library")
    with pytest.raises(ModuleNotFoundError, match=r"timm\.no_such_module"):
        import_library("timm.no_such_module")
