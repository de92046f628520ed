"""The door to the model libraries, whether torchvision loads or not; what is fetched from a hub, and what if not."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.encoders.base import parse_spec
from pipeline.encoders.libraries import fetch, import_library, make_torchvision_loadable, opening, require_folder
from pipeline.errors import MissingExtraError, UserError


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


@pytest.mark.parametrize("weights", ["model.safetensors", "pytorch_model.bin"])
def test_pickles_are_fetched_only_where_there_is_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, weights: str
) -> None:
    asked: list[dict[str, Any]] = []

    def snapshot(name: str, **options: Any) -> str:
        asked.append({"name": name, **options})
        if "*.bin" in options["allow_patterns"] or weights.endswith("safetensors"):
            (tmp_path / weights).touch()
        return str(tmp_path)

    monkeypatch.setattr(import_library("huggingface_hub"), "snapshot_download", snapshot)
    assert fetch(parse_spec("hf:org/name@v1")) == tmp_path
    assert (tmp_path / weights).exists()
    assert len(asked) == (1 if weights.endswith("safetensors") else 2)
    assert {(call["name"], call["revision"]) for call in asked} == {("org/name", "v1")}


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert fetch(parse_spec(f"hf:{tmp_path}")) == tmp_path


def test_our_own_errors_pass() -> None:
    mine = UserError(expected="this", found="that")
    with pytest.raises(UserError, match="expected this, found that") as caught, opening(parse_spec("hf:a/b"), "local"):
        raise mine
    assert caught.value is mine


def test_any_other_error_becomes_a_sentence_with_the_local_way(tmp_path: Path) -> None:
    sentence = r"hf:a/b: expected the model 'a/b' .*offline.*OSError: no route\); check the name .*: hf:/folder"
    with pytest.raises(UserError, match=sentence), opening(parse_spec("hf:a/b"), "hf:/folder"):
        raise OSError("no  route")
    with (
        pytest.raises(UserError, match=r"expected a readable model in .*found KeyError"),
        opening(parse_spec(f"hf:{tmp_path}"), "hf:/folder"),
    ):
        raise KeyError("x")


def test_a_missing_folder_or_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a folder .*nowhere, found none"):
        require_folder(parse_spec(f"hf:{tmp_path}/nowhere"), "config.json")
    with pytest.raises(UserError, match=r"config\.json in"):
        require_folder(parse_spec(f"hf:{tmp_path}"), "config.json")
