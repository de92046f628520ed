"""The correction of finished projectors, and the method that uses it."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.align.config import AlignConfig
from pipeline.align.fit import corrected, fit_seed
from pipeline.align.methods import make_recipe
from pipeline.align.pairs import PairFeatures
from pipeline.align.recipe import HubnessOptions
from pipeline.align.run import align
from pipeline.errors import UserError
from pipeline.progress import Update
from pipeline.projectors.base import unit_rows
from pipeline.projectors.csls import CslsProjector
from pipeline.projectors.linear import IdentityProjector, LinearProjector
from pipeline.projectors.run_record import AlignedRun
from tests.align.conftest import Stores


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
