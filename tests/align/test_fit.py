"""Projectors of a seed: corrected by CSLS; one side left as it is (LiT, ShareLock), from training to evaluation."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.align.config import AlignConfig
from pipeline.align.fit import corrected
from pipeline.align.pairs import PairFeatures
from pipeline.align.recipe import HubnessOptions, make_recipe
from pipeline.align.run import align, fit_seed
from pipeline.errors import UnknownNameError, UserError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.metrics.retrieval import matrix
from pipeline.progress import Update
from pipeline.projectors.base import IdentityProjector, LinearProjector, unit_rows
from pipeline.projectors.csls import CslsProjector
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.reader import FeatureStore
from tests.align.conftest import WIDTHS, Stores


def pairs(images: int, seed: int, captions: int = 3) -> PairFeatures:
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(images, 6, generator=generator)
    mix = torch.Generator().manual_seed(99)
    to_image, to_text = torch.randn(6, 12, generator=mix), torch.randn(6, 10, generator=mix)
    repeated = latent.repeat_interleave(captions, dim=0)
    text = repeated @ to_text + 0.3 * torch.randn(images * captions, 10, generator=generator)
    image = latent @ to_image + 0.3 * torch.randn(images, 12, generator=generator)
    return PairFeatures(image, text, captions * torch.arange(images + 1))


def test_banks_hold_training_images_and_means_of_their_captions() -> None:
    data = PairFeatures(torch.eye(4)[:3], unit_rows(torch.rand(5, 4)), torch.tensor([0, 2, 4, 5]))
    sides = IdentityProjector(4), IdentityProjector(4)
    image, text = corrected(*sides, data, HubnessOptions(neighbours=2))
    assert isinstance(image, CslsProjector)
    assert isinstance(text, CslsProjector)
    torch.testing.assert_close(text.bank, data.image)
    for number, (start, stop) in enumerate(((0, 2), (2, 4), (4, 5))):
        torch.testing.assert_close(image.bank[number], unit_rows(data.text[start:stop].mean(dim=0)))


def test_a_small_bank_is_drawn_the_same_way_again() -> None:
    data = pairs(40, 0)
    sides = LinearProjector(12, 5), LinearProjector(10, 5)
    found = [corrected(*sides, data, HubnessOptions(neighbours=1, bank=7)) for _ in range(2)]
    banks = [text.state_dict()["bank"] for _, text in found]
    assert banks[0].shape == (7, 5)
    assert torch.equal(banks[0], banks[1])


def test_no_neighbours_is_no_correction() -> None:
    sides = IdentityProjector(12), IdentityProjector(10)
    assert corrected(*sides, pairs(5, 0), HubnessOptions()) == sides


@pytest.mark.parametrize("method", ["info_nce", "fewpairs", "asif"])
def test_every_kind_of_method_can_ask_for_it(method: str) -> None:
    settings: dict[str, Any] = {"dim": 6, "training": {"max_steps": 20}}
    data, validation = pairs(60, 0), pairs(30, 1)
    recipe = make_recipe(method, {**settings, "hubness": {"neighbours": 5}})
    made = fit_seed(recipe, data, validation, seed=1)
    assert isinstance(made.image, CslsProjector)
    assert made.temperature_source == "validation"
    bare = fit_seed(make_recipe(method, {**settings, "hubness": {"neighbours": 0}}), data, validation, 1)
    again = fit_seed(recipe, data, validation, seed=1)
    with torch.no_grad():
        assert torch.equal(made.image.base(data.image), bare.image(data.image))
        assert torch.equal(again.image(validation.image), made.image(validation.image))


def test_fewpairs_is_written_and_read_back(stores: Stores, tmp_path: Path) -> None:
    said: list[Update] = []
    config = AlignConfig(image=(stores.image,), text=(stores.text,), out=tmp_path, method="fewpairs")
    align(config, said.append)
    run = AlignedRun.open(tmp_path)
    assert tuple(run.seeds) == (1,)
    assert list(run.layers["text"]) == ["block0", "block1", "output"]
    assert list(run.layers["image"]) == ["block1", "output"]
    assert json.loads((tmp_path / "seed-1" / "image.json").read_text())["projector"] == "csls"
    assert any("Stacked block1 + output with block0 + block1 + output" in str(sentence) for sentence in said)
    assert json.loads((tmp_path / "run.json").read_text())["layer_scores"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"neighbours": -1}, "hubness.neighbours at least 0"),
        ({"weight": 0.0}, "hubness.weight above 0"),
        ({"weight": float("nan")}, "hubness.weight above 0"),
        ({"bank": 0}, "hubness.bank at least 1"),
        ({"neighbors": 3}, "hubness.neighbors is unknown"),
    ],
)
def test_impossible_settings_are_told(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_recipe("cca", {"hubness": options})


def test_a_method_recommends_layers() -> None:
    stated: dict[str, Any] = {"image": (Path("i"),), "text": (Path("t"),), "out": Path("o")}
    assert AlignConfig(**stated, method="cca").layer_expression == "pair"
    assert AlignConfig(**stated, method="fewpairs").layer_expression == "grow,spread"
    assert AlignConfig(**stated, method="fewpairs", layers="last").layer_expression == "last"
    with pytest.raises(UserError, match="layers of a method other than auto"):
        make_recipe("cca", {"layers": "auto"})


TRAINING = {"max_steps": 80, "validations": 4, "learning_rate": 0.02}


def run(stores: Stores, out: Path, **settings: Any) -> AlignedRun:
    changes = {"dim": 8, "training": TRAINING, **settings}
    config = AlignConfig(
        image=(stores.image,),
        text=(stores.text,),
        out=out,
        method=settings.pop("method", "info_nce"),
        settings={name: value for name, value in changes.items() if name != "method"},
        seeds=(1,),
        layers="block1,block1",
        device="cpu",
    )
    return AlignedRun.open(align(config))


@pytest.mark.parametrize(("locked", "trained"), [("image", "text"), ("text", "image")])
@pytest.mark.parametrize("kind", ["linear", "residual_mlp"])
def test_locked_side_is_left_alone_and_decides_the_width(
    stores: Stores, tmp_path: Path, locked: str, trained: str, kind: str
) -> None:
    opened = run(stores, tmp_path / "run", **{f"{locked}_projector": "identity", "projector": kind})
    assert opened.dim == WIDTHS[locked]
    features = FeatureStore.open(getattr(stores, locked)).read("block1")
    torch.testing.assert_close(matrix(opened.encode(locked, features), "embeddings"), unit_rows(features))
    assert opened.projector(trained, 1).name == kind
    assert opened.trainings[0].validation["image_retrieval_recall@5"] > 4 * 5 / 60


def test_locked_side_is_evaluated(stores: Stores, tmp_path: Path) -> None:
    opened = run(stores, tmp_path / "run", text_projector="identity", projector="residual_mlp")
    found = evaluate(
        EvaluateConfig(
            runs=(opened.folder,), image=(stores.image,), text=(stores.text,), out=tmp_path / "report", bootstrap=100
        )
    )
    assert found["image_retrieval_recall@10"] > 2 * 10 / 40


@pytest.mark.parametrize("method", ["structure", "combined"])
def test_structure_of_a_locked_side_costs_nothing(stores: Stores, tmp_path: Path, method: str) -> None:
    opened = run(stores, tmp_path / "run", image_projector="identity", method=method)
    assert opened.trainings[0].validation["text_retrieval_recall@5"] > 4 * 5 / 60


def test_settings_of_the_projector_are_for_the_trained_side(stores: Stores, tmp_path: Path) -> None:
    settings = {"projector": "residual_mlp", "image_projector": "identity", "projector_settings": {"depth": 1}}
    assert run(stores, tmp_path / "run", **settings).projector("text", 1).settings()["depth"] == 1


@pytest.mark.parametrize(("method", "kind"), [("lit", "linear"), ("sharelock", "residual_mlp")])
def test_presets_leave_the_image_side_alone(stores: Stores, tmp_path: Path, method: str, kind: str) -> None:
    opened = run(stores, tmp_path / "run", method=method)
    assert [opened.projector(side, 1).name for side in ("image", "text")] == ["identity", kind]
    assert opened.dim == WIDTHS["image"]
    assert opened.trainings[0].validation["image_retrieval_recall@5"] > 4 * 5 / 60


def test_two_kinds_of_projector(stores: Stores, tmp_path: Path) -> None:
    opened = run(stores, tmp_path / "run", image_projector="linear", text_projector="residual_low_rank")
    assert [opened.projector(side, 1).name for side in ("image", "text")] == ["linear", "residual_low_rank"]
    assert opened.dim == 8


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="projector with something to train on one side at least, found identity"):
        make_recipe("info_nce", {"projector": "identity"})


def test_start_from_cca_wants_linear_sides() -> None:
    with pytest.raises(UserError, match="projector linear where training starts from CCA, found linear and identity"):
        make_recipe("info_nce", {"start": "cca", "text_projector": "identity"})


def test_unknown_projector_of_a_side_lists_the_known_ones(stores: Stores, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"known projector .*identity.*found .identiti"):
        run(stores, tmp_path / "run", image_projector="identiti")
