"""CLIP_benchmark's own scorers on our model give the numbers of our own evaluation."""

import json
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pipeline.apps.dual_encoder import DualEncoder
from pipeline.apps.export.clip_benchmark import PADDING, load_clip, pack, register, unpack
from pipeline.apps.export.run import export
from pipeline.encoders.libraries import import_library
from pipeline.errors import MissingExtraError, UserError
from pipeline.projectors.csls import EXTRA
from tests.apps.export.building import COLOURS, WORDS, make_run
from tests.commands.encoders import PIXELS
from tests.commands.encoders import WORDS as COUNTED
from tests.commands.project import COLOURS as PAINTS
from tests.commands.project import DATA, IMAGE, RUN, SHAPES, SIZES, TEXT, draw, write_table
from tests.commands.running import done
from tests.corrected import corrected_copy


def rows() -> list[tuple[str, str, str, str]]:
    """Return file, caption, label and split: two captions a picture, no two alike, because ties are counted apart."""
    names = [(size, colour, shape) for shape in SHAPES for colour in PAINTS for size in SIZES]
    found = []
    for place, (size, colour, shape) in enumerate(names):
        split = ("train", "train", "val", "test")[place % 4]
        file = f"{size}_{colour}_{shape}.png"
        found += [
            (file, f"a {size} {colour} {shape}", shape, split),
            (file, f"{shape}, {size}: {colour}", shape, split),
        ]
    return found


class Pictures:
    """The test split as CLIP_benchmark wants a data set: a picture, and its captions or its class."""

    def __init__(self, folder: Path, transform: Any, classes: list[str] | None = None) -> None:
        self.folder, self.transform = folder, transform
        test = [row for row in rows() if row[3] == "test"]
        self.files = list(dict.fromkeys(row[0] for row in test))
        self.captions = {file: [row[1] for row in test if row[0] == file] for file in self.files}
        self.labels = {row[0]: row[2] for row in test}
        self.classes = classes or []

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, Any]:
        file = self.files[place]
        with Image.open(self.folder / file) as picture:
            tensor = self.transform(picture)
        return tensor, self.classes.index(self.labels[file]) if self.classes else self.captions[file]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Work in a project with a run, its report and its export."""
    folder = tmp_path_factory.mktemp("bridge")
    for file, *_ in rows():
        size, colour, shape = file.removesuffix(".png").split("_")
        draw(shape, colour, SIZES[size]).save(folder / file)
    write_table(folder / "shapes.csv", ("filepath", "caption", "label", "split"), rows())
    with chdir(folder):
        done("data", "import", "shapes.csv", "--out", DATA, "--quiet")
        done("extract", "--dataset", DATA, "--encoder", PIXELS, "--out", IMAGE, "--quiet")
        done("extract", "--dataset", DATA, "--encoder", COUNTED, "--out", TEXT, "--quiet")
        done("align", "--image", IMAGE, "--text", TEXT, "--method", "cca", "--layers", "2,0", "--out", RUN, "--quiet")
        prompts = f"{TEXT}/classes"
        done("evaluate", RUN, "--image", IMAGE, "--text", TEXT, "--classes", prompts, "--out", "report", "--quiet")
        export(Path(RUN), folder / "model")
        yield folder


def scorer_of(name: str) -> Any:
    pytest.importorskip("clip_benchmark", reason="CLIP_benchmark is not installed: pip install clip-benchmark")
    return import_library(f"clip_benchmark.metrics.{name}")


def accuracy(output: torch.Tensor, target: torch.Tensor, topk: tuple[int, ...]) -> list[float]:
    """Do what CLIP_benchmark 1.6.2 does, whose own makes a float of an array of one number, as numpy once did."""
    return [float((output.topk(k).indices == target[:, None]).any(dim=1).float().mean()) for k in topk]


def collate(batch: list[tuple[torch.Tensor, Any]]) -> tuple[torch.Tensor, list[Any]]:
    return torch.stack([image for image, _ in batch]), [target for _, target in batch]


@pytest.mark.parametrize("amp", [False, True])
def test_retrieval_is_what_evaluate_says(project: Path, amp: bool) -> None:
    scorer = scorer_of("zeroshot_retrieval")
    model, transform, tokenizer = load_clip(project / "model")
    loader: Any = DataLoader(Pictures(project, transform), batch_size=4, collate_fn=collate)  # type: ignore[arg-type]
    found = scorer.evaluate(model, loader, tokenizer, device="cpu", amp=amp, recall_k_list=[1, 5])
    ours = json.loads((project / "report" / "metrics.json").read_text())
    for name, value in found.items():
        assert value == pytest.approx(ours[name], abs=1e-6), name
    assert len(found) == 4


@pytest.mark.parametrize("amp", [False, True])
def test_zero_shot_is_what_evaluate_says(project: Path, amp: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scorer = scorer_of("zeroshot_classification")
    model, transform, tokenizer = load_clip(project / "model")
    prompts = json.loads((project / DATA / "classes.json").read_text())
    data = Pictures(project, transform, prompts["classes"])
    loader: Any = DataLoader(data, batch_size=4)  # type: ignore[arg-type]
    monkeypatch.setattr(scorer, "accuracy", accuracy)
    found = scorer.evaluate(model, loader, tokenizer, data.classes, prompts["templates"], "cpu", amp=amp)
    ours = json.loads((project / "report" / "metrics.json").read_text())
    assert found["acc1"] == pytest.approx(ours["acc1"])
    assert found["mean_per_class_recall"] == pytest.approx(ours["mean_per_class_recall"])


def test_several_encoders_a_side(tmp_path: Path) -> None:
    wide = {"d_in": 6}
    run = make_run(
        tmp_path / "run",
        specs={"image": [COLOURS, COLOURS], "text": [WORDS, WORDS]},
        layers={"image": ["0/output", "1/output"], "text": ["1/output", "0/output"]},
        settings={"image": wide, "text": wide},
    )
    model, transform, tokenizer = load_clip(run)
    pictures = [Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (3, 9, 200))]
    ours = DualEncoder.open(run)
    images = model.encode_image(torch.stack([transform(each) for each in pictures]))
    torch.testing.assert_close(images, ours.encode_image(pictures))
    torch.testing.assert_close(
        model.encode_text(tokenizer(["red", "blue green"])), ours.encode_text(["red", "blue green"])
    )
    with pytest.raises(UserError, match="expected a batch from this model's transform"):
        model.encode_image(torch.full((2, 5), 3.0))


def test_texts_of_different_lengths_are_padded() -> None:
    tokens = [[torch.tensor([5, 0, 7])], [torch.tensor([4])]]
    batch = pack(tokens, "text")
    assert batch.tolist() == [[5, 0, 7], [4, PADDING, PADDING]]
    assert [row.tolist() for row in unpack(batch, 1, "text")[0]] == [[5, 0, 7], [4]]
    both = [[torch.tensor([5, 30521]), torch.tensor([[0.5], [2.0]])], [torch.tensor([4]), torch.zeros(2, 1)]]
    ids, values = unpack(pack(both, "text"), 2, "text")
    assert [row.tolist() for row in ids] == [[5, 30521], [4]]
    assert ids[0].dtype == torch.int64
    assert values[0].tolist() == [[0.5], [2.0]]


def test_its_command_line_knows_the_type(tmp_path: Path) -> None:
    pytest.importorskip("clip_benchmark")
    run = make_run(tmp_path / "run")
    register()
    register()
    models = import_library("clip_benchmark.models")
    assert models.MODEL_TYPES.count("fewpairs") == 1
    model, _, tokenizer = models.load_clip("fewpairs", "any", str(run), "", "cpu")
    assert model.encode_text(tokenizer(["red"])).shape == (1, 3)


def test_each_scorer_gets_the_vectors_of_its_task(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With stand-ins for CLIP_benchmark's modules, which need not be installed."""
    models, classification, probe = (SimpleNamespace() for _ in range(3))
    models.TYPE2FUNC, models.MODEL_TYPES = {}, []
    for scorer in (classification, probe):
        scorer.evaluate = lambda model, rows: model.encode_image(rows)
    stand_ins = {"models": models, "metrics.zeroshot_classification": classification, "metrics.linear_probe": probe}
    monkeypatch.setattr("pipeline.apps.export.clip_benchmark.find_spec", lambda name: True)
    known = {f"clip_benchmark.{name}": module for name, module in stand_ins.items()}
    monkeypatch.setattr("pipeline.apps.export.clip_benchmark.import_library", known.__getitem__)
    register()
    register()
    run = make_run(tmp_path / "run")
    plain = DualEncoder.open(run)
    model, transform, _ = models.TYPE2FUNC["fewpairs"](pretrained=str(corrected_copy(run, tmp_path / "corrected")))
    picture = Image.new("RGB", (4, 4), (3, 9, 200))
    batch = transform(picture)[None]
    assert model.encode_image(batch).shape == (1, plain.run.dim + EXTRA)
    for scorer in (classification, probe):
        torch.testing.assert_close(scorer.evaluate(model, batch), plain.encode_image([picture]))
    assert model.encode_image(batch).shape == (1, plain.run.dim + EXTRA), "the scorer has not changed the model"
    other = SimpleNamespace(encode_image=lambda rows: rows)
    assert probe.evaluate(other, batch) is batch
    asked, _, _ = load_clip(tmp_path / "corrected", task="classification")
    torch.testing.assert_close(asked.encode_image(batch), plain.encode_image([picture]))


def test_without_it_there_is_an_install_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.apps.export.clip_benchmark.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match="pip install clip-benchmark"):
        register()
