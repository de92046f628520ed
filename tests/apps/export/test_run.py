"""The package's own form: the same embeddings from another process, refused when anything does not fit."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.apps.dual_encoder import DualEncoder, load_model
from pipeline.apps.export.run import export
from pipeline.apps.opening import MODEL
from pipeline.errors import KeyMismatchError, UnknownNameError, UserError
from pipeline.files import dump_signed, read_signed
from pipeline.projectors.csls import EXTRA
from pipeline.projectors.run_record import AlignedRun
from tests.apps import tiny
from tests.apps.export.building import COLOURS, SEED, WORDS, make_run
from tests.corrected import SCALE, corrected_copy

ROOT = Path(__file__).resolve().parents[3]
TEXTS = ["red green green", "blue", "red"]
ASIF = {"d": 20, "top_k": 5, "exponent": 4.0}
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "linear": ({"normalise_input": "unit"}, 5),
    "affine": ({"normalise_input": "standardise"}, 5),
    "identity": ({}, 3),
    "residual_mlp": ({"depth": 1, "expansion": 2}, 5),
    "residual_low_rank": ({"rank": 2}, 5),
    "asif": (ASIF, 20),
}


def pictures() -> list[Image.Image]:
    return [Image.new("RGB", (5, 4), colour) for colour in ((250, 10, 30), (10, 200, 90))]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return make_run(tmp_path / "made-up")


@pytest.mark.parametrize("kind", KINDS)
def test_every_projector_comes_back_the_same(kind: str, tmp_path: Path) -> None:
    settings, dim = KINDS[kind]
    run = make_run(
        tmp_path / "run",
        projectors={"image": kind, "text": kind},
        settings={"image": settings, "text": settings},
        dim=dim,
    )
    done = export(run, tmp_path / "model")
    assert (done.format, done.seed, done.dim) == ("folder", SEED, dim)
    assert set(done.files) == {"README.md", MODEL, "image.safetensors", "text.safetensors"}
    ours, model = DualEncoder.open(run), load_model(tmp_path / "model")
    torch.testing.assert_close(model.encode_text(TEXTS), ours.encode_text(TEXTS), atol=0, rtol=0)
    found = model.encode_image(pictures())
    torch.testing.assert_close(found, ours.encode_image(pictures()), atol=0, rtol=0)
    assert found.dtype == torch.float32
    assert found.shape == (2, dim)
    torch.testing.assert_close(found.norm(dim=1), torch.ones(2))


def test_stacks_of_layers_and_of_stores(tmp_path: Path) -> None:
    wide = {"d_in": 6, "blocks": [3, 3], "normalise_input": "unit"}
    run = make_run(
        tmp_path / "run",
        specs={"image": [COLOURS, COLOURS]},
        layers={"image": ["0/output", "1/output"], "text": ["output", "output"]},
        settings={"image": wide, "text": wide},
    )
    export(run, tmp_path / "model")
    ours, model = DualEncoder.open(run), load_model(tmp_path / "model")
    assert torch.equal(model.encode_image(pictures()), ours.encode_image(pictures()))
    assert torch.equal(model.encode_text(TEXTS), ours.encode_text(TEXTS))


def test_another_process_gives_the_same(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "model")
    file = tmp_path / "picture.png"
    pictures()[0].save(file)
    script = (
        "import json\n"
        "import tests.apps.tiny\n"  # its encoders: what is exported may not import them by itself
        "from pipeline.apps.dual_encoder import load_model\n"
        f"model = load_model({str(tmp_path / 'model')!r})\n"
        f"vectors = model.encode_image([{str(file)!r}]), model.encode_text(['red'])\n"
        "print(json.dumps([each.tolist() for each in vectors]))"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    image, text = json.loads(done.stdout)
    ours = DualEncoder.open(run)
    np.testing.assert_allclose(image, ours.encode_image([file]).numpy(), atol=1e-6)
    np.testing.assert_allclose(text, ours.encode_text(["red"]).numpy(), atol=1e-6)


def test_probabilities_are_softmax_over_the_temperature(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "model")
    model = load_model(tmp_path / "model")
    assert model.temperature == 0.05
    templates = ["a {c} thing", "{} green"]
    found = model.classify(pictures()[0], ["red", "blue", "green"], templates)
    classes = []
    for name in ("red", "blue", "green"):
        mean = model.encode_text([f"a {name} thing", f"{name} green"]).double().numpy().mean(axis=0)
        classes.append(mean / np.linalg.norm(mean))
    logits = np.stack(classes) @ model.encode_image(pictures()[:1])[0].double().numpy() / 0.05
    expected = np.exp(logits - logits.max())
    np.testing.assert_allclose(found[0].numpy(), expected / expected.sum(), rtol=1e-4)
    several = model.classify(pictures(), ["red", "blue"], {"red": ["red"], "blue": ["blue", "blue blue"]})
    assert several.shape == (2, 2)


def test_hubs_are_corrected_in_retrieval_and_not_in_classification(run: Path, tmp_path: Path) -> None:
    """The corrected run and its export classify as the run that was wrapped, and search as the wrapped projectors."""
    plain, corrected = DualEncoder.open(run), corrected_copy(run, tmp_path / "corrected")
    export(corrected, tmp_path / "model")
    for model in (DualEncoder.open(corrected), load_model(tmp_path / "model")):
        images, texts = model.encode_image(pictures()), model.encode_text(TEXTS)
        assert images.shape == (2, plain.run.dim + EXTRA)
        assert not torch.allclose(images @ texts.T * SCALE, plain.encode_image(pictures()) @ plain.encode_text(TEXTS).T)
        for found, expected in (
            (model.encode_image(pictures(), task="classification"), plain.encode_image(pictures())),
            (model.encode_text(TEXTS, task="classification"), plain.encode_text(TEXTS)),
            (model.for_classification(images), plain.encode_image(pictures())),
        ):
            torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
        names = ["red", "blue"]
        cosines = model.encode_image(pictures(), task="classification") @ model.class_vectors(names).T
        expected = torch.softmax(cosines / (SCALE * model.temperature), dim=1)
        torch.testing.assert_close(model.classify(pictures(), names), expected)
        assert model.encode_image([], task="classification").shape == (0, plain.run.dim)
        assert model.encode_text([]).shape == (0, plain.run.dim + EXTRA)
        with pytest.raises(UnknownNameError, match="task"):
            model.encode_text(["red"], task="search")  # type: ignore[arg-type]


def test_classify_refuses_what_it_cannot_mean(run: Path) -> None:
    model = DualEncoder.open(run)
    cases: list[tuple[Callable[[], Any], str]] = [
        (lambda: model.classify(pictures(), []), "a list of class names"),
        (lambda: model.classify(pictures(), "red"), "a list of class names"),
        (lambda: model.classify(pictures(), ["red", "red"]), "each once"),
        (lambda: model.classify(pictures(), ["red"], "a {c}"), "a list of templates"),
        (lambda: model.classify(pictures(), ["red", "blue"], {"red": ["red"]}), "none for blue"),
    ]
    for ask, message in cases:
        with pytest.raises(UserError, match=message):
            ask()


def test_model_json_names_encoders_and_no_local_path(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "model")
    text = (tmp_path / "model" / MODEL).read_text()
    assert "/secret/path" not in text
    assert str(tmp_path) not in text
    model = json.loads(text)
    assert [entry["spec"] for entry in model["encoders"]["text"]] == [WORDS]
    assert model["files"].keys() == {"README.md", "image.safetensors", "text.safetensors"}
    card = (tmp_path / "model" / "README.md").read_text()
    assert COLOURS in card
    assert "| image_retrieval_recall@1 | 50.0 % |" in card
    assert "load_model" in card


def test_numbers_of_a_report_go_into_the_card(run: Path, tmp_path: Path) -> None:
    metrics = tmp_path / "report" / "metrics"
    metrics.mkdir(parents=True)
    (metrics / "other.json").write_text("{}")
    with pytest.raises(
        UserError, match=r"made-up.json or made_up.json in the report's folder metrics, found other.json"
    ):
        export(run, tmp_path / "model", report=tmp_path / "report")
    assert not (tmp_path / "model").exists()
    (metrics / "made_up.json").write_text(json.dumps({"acc1": 0.4125, "runs": None}))
    export(run, tmp_path / "model", report=tmp_path / "report")
    assert "| acc1 | 41.2 % |" in (tmp_path / "model" / "README.md").read_text()


@pytest.mark.parametrize("side", ["image", "text"])
def test_another_encoder_is_refused_at_load(run: Path, tmp_path: Path, side: str, monkeypatch: Any) -> None:
    export(run, tmp_path / "model")
    monkeypatch.setitem(tiny.VERSION, side, 2)
    with pytest.raises(KeyMismatchError, match=r"expected encoder.version = 1, found encoder.version = 2"):
        load_model(tmp_path / "model")


def test_damage_is_one_sentence(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    export(run, folder)
    model = read_signed(folder / MODEL, "a model")

    def damaged(**changes: Any) -> None:
        (folder / MODEL).write_bytes(dump_signed({**model, **changes}))
        load_model(folder)

    cases: list[tuple[dict[str, Any], str]] = [
        ({"format": 2}, "expected format 1 and kind"),
        ({"layers": {"image": []}}, "layers.image should be a list that is not empty.*`pipeline export` again"),
        ({"encoders": None}, "stores should be dict"),
        ({"projectors": {}}, "a projector of the text side"),
        ({"seed": None}, "seed"),
        ({"dim": 9}, "a projector to 9 dimensions"),
        ({"projectors": {"image": {}, "text": {"projector": "linear"}}}, "the field settings"),
    ]
    for changes, message in cases:
        with pytest.raises(UserError, match=message):
            damaged(**changes)
    with pytest.raises(UserError, match="9 dim"):
        damaged(dim=9)
    (folder / MODEL).write_text((folder / MODEL).read_text().replace('"dim": 9', '"dim": 8'))
    with pytest.raises(UserError, match="what its digest says"):
        load_model(folder)
    (folder / MODEL).write_bytes(dump_signed(model))
    data = bytearray((folder / "text.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "text.safetensors").write_bytes(data)
    with pytest.raises(UserError, match="expected the sha256"):
        load_model(folder)
    (folder / "text.safetensors").unlink()
    with pytest.raises(UserError, match=r"expected a file text.safetensors"):
        load_model(folder)


def test_only_an_export_is_replaced(run: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    export(run, folder)  # an empty folder is welcome
    (folder / "text.safetensors").write_bytes(b"broken")
    export(run, folder)  # so is an older export
    load_model(folder)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"found an export with notes.txt added to it; choose another folder"):
        export(run, folder)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / MODEL).write_text("{}")
    (tmp_path / "file").touch()
    (tmp_path / "link").symlink_to(tmp_path / "photos")
    found = {
        "photos": "a folder without model.json that holds cat.jpg",
        "config": "another model.json",
        "file": "a file or a link",
        "link": "a file or a link",
    }
    for name, message in found.items():
        with pytest.raises(UserError, match=f"expected a new folder.*found {message}"):
            export(run, tmp_path / name)
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"made-up", "model", "photos", "config", "file", "link"}  # nothing half done beside them


def test_the_working_folder_is_not_replaced(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for to in (Path(), Path(), Path("../here")):
        with pytest.raises(UserError, match="found the working folder; choose another folder"):
            export(run, to)
    export(run, Path("new"))
    load_model("new")


def test_a_failure_leaves_the_old_export(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "model"
    export(run, folder)
    before = (folder / MODEL).read_bytes()

    def fail(*_: Any) -> str:
        raise RuntimeError("in the middle")

    monkeypatch.setattr("pipeline.apps.export.run.write_folder", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        export(run, folder)
    assert (folder / MODEL).read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"made-up", "model"}


def test_unknown_names(run: Path, tmp_path: Path) -> None:
    with pytest.raises(
        UnknownNameError, match=r"folder, onnx, sentence-transformers.*found 'onxx'.*did you mean 'onnx'"
    ):
        export(run, tmp_path / "model", form="onxx")
    with pytest.raises(UserError, match="one of the seeds 7"):
        export(run, tmp_path / "model", seed=1)
    export(run, tmp_path / "model")
    with pytest.raises(UserError, match="the seed 7, which was exported"):
        load_model(tmp_path / "model", seed=1)
    assert AlignedRun.open(run).seeds == (SEED,)
