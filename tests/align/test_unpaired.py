"""Images and texts without a partner: which rows count, pseudo-pairs by the slow formula, when they are left alone."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.align.config import AlignConfig
from pipeline.align.fit import fit_untrained
from pipeline.align.pairs import PairFeatures, draw, split_pairs
from pipeline.align.pool import Pool, PoolRows, pool_rows
from pipeline.align.recipe import Recipe, make_recipe
from pipeline.align.run import align
from pipeline.align.unpaired import (
    FOLDS,
    MUTUAL,
    NEAREST,
    NEIGHBOURS,
    ONE_SIDED,
    ROUNDS,
    TEXTS_OWN,
    pseudo_pairs,
    refine,
)
from pipeline.errors import UserError
from pipeline.progress import Update
from pipeline.projectors.base import unit_rows
from pipeline.projectors.moments import Links, PairStatistics
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.samples import Samples
from pipeline.store.views import Side
from tests.align.conftest import Stores, write_store
from tests.commands.running import done

RECIPE = make_recipe("fewpairs", {"dim": 20, "hubness": {"neighbours": 3}, "closed_form": {"climb": False}})

LATENTS, WIDE = 12, (120, 100)
"""A world that few pairs cannot show: what images and texts share drowns in what each has alone."""


# ---- moments ---------------------------------------------------------------------------------------------------------


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def test_a_weight_counts_as_so_many_pairs() -> None:
    image, text = rows(6, 4, 1), rows(9, 3, 2)
    texts, images, weights = [0, 1, 1, 4, 8], [5, 0, 2, 2, 1], [3.0, 1.0, 2.0, 1.0, 2.0]
    links = Links(torch.tensor(texts), torch.tensor(images), torch.tensor(weights))
    found = PairStatistics.weighted(image, text, links)
    repeated = [(t, i) for t, i, w in zip(texts, images, weights, strict=True) for _ in range(int(w))]
    x = image[[i for _, i in repeated]].double().numpy()
    y = text[[t for t, _ in repeated]].double().numpy()
    x, y = x - x.mean(0), y - y.mean(0)
    for side, centred in ((found.image, x), (found.text, y)):
        covariance = side.vectors @ torch.diag(side.values) @ side.vectors.T
        np.testing.assert_allclose(covariance, centred.T @ centred / len(centred), atol=1e-10)
    cross = found.image.vectors @ found.cross @ found.text.vectors.T
    np.testing.assert_allclose(cross, x.T @ y / len(x), atol=1e-10)


def test_links_of_no_weight_change_nothing() -> None:
    image, text, owner = rows(12, 4, 1), rows(20, 3, 2), torch.arange(20) % 8
    plain = PairStatistics.of(image[:8], text, owner)
    more = Links(
        torch.cat([torch.arange(20), torch.arange(5)]),
        torch.cat([owner, torch.full((5,), 10)]),
        torch.cat([torch.ones(20), torch.zeros(5)]),
    )
    found = PairStatistics.weighted(image, text, more)
    for side in ("image", "text"):
        ours, theirs = getattr(found, side), getattr(plain, side)
        torch.testing.assert_close(ours.mean, theirs.mean)
        torch.testing.assert_close(ours.values, theirs.values)
        torch.testing.assert_close(ours.mean_variance, theirs.mean_variance)
    torch.testing.assert_close(found.cross.abs(), plain.cross.abs())


# ---- pseudo-pairs ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "texts"), [(30, 50), (50, 30), (2, 2), (1, 7)])
def test_pseudo_pairs_are_those_of_the_slow_formula(images: int, texts: int) -> None:
    image, text = unit_rows(rows(images, 5, 3)), unit_rows(rows(texts, 5, 4))
    found = pseudo_pairs(image, text, weight=2.0)
    cosines = (image @ text.T).double().numpy()
    k, taken = min(NEIGHBOURS, texts), min(NEAREST, texts)
    near_image = np.sort(cosines, axis=1)[:, -k:].mean(1)
    near_text = np.sort(cosines, axis=0)[-min(NEIGHBOURS, images) :].mean(0)
    scores = 2 * cosines - near_image[:, None] - near_text
    expected = {}
    for i in range(images):
        for t in np.argsort(-scores[i])[:taken]:
            weight = MUTUAL if scores[:, t].argmax() == i else ONE_SIDED
            expected[int(t), i] = weight * 2.0 / taken
    for t in range(texts):
        expected.setdefault((t, int(scores[:, t].argmax())), TEXTS_OWN)
    pairs = zip(found.text.tolist(), found.image.tolist(), strict=True)
    assert dict(zip(pairs, found.weight.tolist(), strict=True)) == pytest.approx(expected)
    assert len(found.weight) == len(expected)


def test_pseudo_pairs_do_not_depend_on_the_order_of_the_pool() -> None:
    image, text = unit_rows(rows(40, 5, 3)), unit_rows(rows(60, 5, 4))
    order, other = torch.randperm(40), torch.randperm(60)
    found, turned = pseudo_pairs(image, text), pseudo_pairs(image[order], text[other])
    before = {(int(t), int(i)): float(w) for t, i, w in zip(found.text, found.image, found.weight, strict=True)}
    after = {
        (int(other[t]), int(order[i])): float(w)
        for t, i, w in zip(turned.text, turned.image, turned.weight, strict=True)
    }
    assert after == pytest.approx(before)


# ---- the rule --------------------------------------------------------------------------------------------------------


def world(pairs: int, pooled: int, *, kin: bool = True) -> tuple[PairFeatures, PairFeatures, Pool]:
    """Return training pairs, pairs to measure on, and a pool that is or is not of the same kind."""
    draw = torch.Generator().manual_seed(5)
    mix = [torch.randn(LATENTS, width, generator=draw) for width in WIDE]

    def view(latent: Tensor, side: int) -> Tensor:
        signal = latent @ mix[side]
        return signal + 5 * torch.randn(signal.shape, generator=draw)

    def made(count: int) -> PairFeatures:
        latent = torch.randn(count, LATENTS, generator=draw)
        return PairFeatures(view(latent, 0), view(latent.repeat_interleave(2, 0), 1), 2 * torch.arange(count + 1))

    if kin:
        pool = Pool(
            view(torch.randn(pooled, LATENTS, generator=draw), 0),
            view(torch.randn(2 * pooled, LATENTS, generator=draw), 1),
        )
    else:
        noise = [torch.randn(2 * pooled, width, generator=draw) for width in WIDE]
        pool = Pool(10 * noise[0] + 5, 10 * noise[1] - 5)
    return made(pairs), made(300), pool


def test_a_pool_of_the_same_kind_helps_few_pairs() -> None:
    data, validation, pool = world(30, 600)
    alone, helped = (fit_untrained(RECIPE, data, validation, each) for each in (None, pool))
    assert alone.unpaired is None
    assert helped.unpaired is not None
    assert helped.unpaired["rounds"] > 0
    assert helped.unpaired["gain"] > helped.unpaired["error"] > 0
    assert mean_recall(helped) > mean_recall(alone) + 0.02
    again = fit_untrained(RECIPE, data, validation, pool)
    for side in ("image", "text"):
        ours, theirs = getattr(helped, side).state_dict(), getattr(again, side).state_dict()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_pool_of_another_kind_is_left_alone_bit_for_bit() -> None:
    data, validation, pool = world(60, 300, kin=False)
    alone, beside = (fit_untrained(RECIPE, data, validation, each) for each in (None, pool))
    assert beside.unpaired is not None
    assert beside.unpaired["rounds"] == 0
    for side in ("image", "text"):
        ours, theirs = getattr(alone, side).state_dict(), getattr(beside, side).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert alone.temperature == beside.temperature


@pytest.mark.parametrize("pairs", [2, 3, 4])
def test_a_handful_of_pairs_and_a_tiny_pool_end_in_a_fit(pairs: int) -> None:
    data, validation, pool = world(pairs, 1)
    trained = fit_untrained(RECIPE, data, validation, pool)
    assert bool(torch.isfinite(trained.image(validation.image)).all())


def test_folds_never_see_what_they_hold_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every score of a fold comes from a fit in which the held-out images and captions have no link."""
    data, _, pool = world(20, 40)
    seen = []
    weighted = PairStatistics.weighted

    def watched(image: Tensor, text: Tensor, links: Links) -> PairStatistics:
        seen.append((len(image), len(text), int(links.image.max()), int(links.text.max())))
        return weighted(image, text, links)

    monkeypatch.setattr(PairStatistics, "weighted", staticmethod(watched))
    refine(data, pool, RECIPE, 1.0)
    fits = FOLDS * (1 + 2 * (1 + max(ROUNDS)))
    for images, texts, last_image, last_text in seen[:fits]:
        assert (images, texts) == (60, 120), "held-out rows are embedded, after pairs and pool"
        assert last_image < images - 20 // FOLDS
        assert last_text < texts - 2 * (20 // FOLDS)


def mean_recall(trained: Any) -> float:
    values = [value for name, value in trained.validation.items() if "_recall@" in name]
    return float(sum(values) / len(values))


# ---- which rows ------------------------------------------------------------------------------------------------------


def sides_of(stores: Stores) -> tuple[Side, Side]:
    return Side.open("image", [stores.image]), Side.open("text", [stores.text])


def pool_of(stores: Stores, seed: int = 1, **settings: Any) -> tuple[PoolRows, set[str]]:
    """Return the pool's rows, and the ids of the drawn training images."""
    config = AlignConfig(image=(stores.image,), text=(stores.text,), out=Path("none"), method="cca", **settings)
    sides = sides_of(stores)
    splits = split_pairs(*sides, config)
    drawn = draw(*sides, splits.train, config, seed)
    ids = sides[0].samples.image_id
    return pool_rows(config, sides, splits, drawn, seed), {ids[row] for row in splits.train.pick(drawn).image_rows}


def image_ids(parts: Any) -> list[str]:
    return [side.samples.image_id[row] for side, taken in parts for row in taken]


def test_the_rest_is_halved_without_a_true_pair(stores: Stores) -> None:
    pool, drawn = pool_of(stores, pairs=50, unpaired="rest")
    images, texts = image_ids(pool.image), image_ids(pool.text)
    assert len(images) == 75
    assert len(texts) == 2 * 75
    assert not set(images) & set(texts)
    assert not (set(images) | set(texts)) & drawn
    split = dict(zip(*(getattr(sides_of(stores)[0].samples, name) for name in ("image_id", "split")), strict=True))
    assert {split[name] for name in (*images, *texts)} == {"train"}
    assert pool.about == {"image": {"train": 75}, "text": {"train": 150}, "other_splits": []}
    other, _ = pool_of(stores, pairs=50, unpaired="rest", seed=2)
    assert other.digest != pool.digest


def test_no_validation_or_test_item_unless_asked(stores: Stores) -> None:
    stated: dict[str, Any] = {"unpaired_image": (stores.image,), "unpaired_text": (stores.text,), "pairs": 50}
    pool, _ = pool_of(stores, **stated)
    split = dict(zip(*(getattr(sides_of(stores)[0].samples, name) for name in ("image_id", "split")), strict=True))
    assert {split[name] for name in image_ids(pool.image)} == {"train"}
    asked, _ = pool_of(stores, **stated, unpaired_splits=("test",))
    assert asked.about["other_splits"] == ["test"]
    assert asked.about["image"] == {"test": 40, "train": 200}
    both, _ = pool_of(stores, **stated, unpaired_splits=("test", "val"))
    assert {split[name] for name in image_ids(both.text)} == {"train", "test"}, "validation pairs choose: never a pool"


def test_a_text_without_a_split_of_a_test_image_is_held_back(stores: Stores, tmp_path: Path) -> None:
    _, text = sides_of(stores)
    values = {layer.name: text.stores[0].numpy(layer.name).astype(np.float32) for layer in text.stores[0].layers}
    nameless = dataclasses.replace(text.samples, split=[""] * len(text.samples))
    copy = write_store(tmp_path / "text", "text", nameless, values)
    pool, _ = pool_of(stores, unpaired_image=(stores.image,), unpaired_text=(copy,))
    split = dict(zip(*(getattr(sides_of(stores)[0].samples, name) for name in ("image_id", "split")), strict=True))
    assert {split[name] for name in image_ids(pool.text)} == {"train"}


def test_a_store_in_another_order_is_the_same_pool(stores: Stores, tmp_path: Path) -> None:
    image, _ = sides_of(stores)
    order = np.random.default_rng(3).permutation(len(image.samples))
    values = {
        layer.name: image.stores[0].numpy(layer.name)[order].astype(np.float32) for layer in image.stores[0].layers
    }
    turned = write_store(tmp_path / "image", "image", image.samples.take(order.tolist()), values)
    pools = [
        pool_of(stores, unpaired_image=(each,), unpaired_text=(stores.text,))[0] for each in (stores.image, turned)
    ]
    assert image_ids(pools[0].image) == image_ids(pools[1].image)
    layers = ((image.layers()[1],), (sides_of(stores)[1].layers()[1],))
    first, second = (each.read(layers, torch.device("cpu")) for each in pools)
    assert first is not None
    assert second is not None
    torch.testing.assert_close(first.image, second.image, rtol=0, atol=0)


def test_lone_rows_of_the_runs_own_stores(stores: Stores, tmp_path: Path) -> None:
    """Images that lost their captions and captions whose images are gone; without any, the pairs alone are used."""
    none, _ = pool_of(stores, unpaired="own")
    assert none == PoolRows()
    image, text = sides_of(stores)
    lost = {f"im{number:04d}" for number in range(0, 300, 3)}
    samples = text.samples
    kept = [row for row, name in enumerate(samples.image_id) if name not in lost]
    few = samples.take(kept)
    few.image_id[:20] = [f"gone{number}" for number in range(20)]
    values = {layer.name: text.stores[0].numpy(layer.name)[kept].astype(np.float32) for layer in text.stores[0].layers}
    copy = write_store(tmp_path / "text", "text", few, values)
    pool, _ = pool_of(Stores(stores.image, copy), unpaired="own")
    split = dict(zip(image.samples.image_id, image.samples.split, strict=True))
    assert {split[name] for name in image_ids(pool.image)} == {"train"}
    assert lost >= set(image_ids(pool.image)) - {name for name in split if name not in few.image_id}
    assert set(image_ids(pool.text)) <= {f"gone{number}" for number in range(20)}


def test_stores_that_cannot_be_used_are_told(stores: Stores, tmp_path: Path) -> None:
    ids = ["a", "b", "c"]
    values = {"output": np.random.default_rng(0).standard_normal((3, 24)).astype(np.float32)}
    test_only = write_store(tmp_path / "test", "image", Samples(ids, ids, ["test"] * 3, [""] * 3, ids), values)
    with pytest.raises(UserError, match=r"unpaired images of the splits \(none\), train, found none"):
        pool_of(stores, unpaired_image=(test_only,), unpaired_text=(stores.text,))
    with pytest.raises(UserError, match="stores of both sides"):
        pool_of(stores, unpaired_image=(stores.image,))
    with pytest.raises(UserError, match="2 stores for 1"):
        pool_of(stores, unpaired_image=(f"{stores.image},{stores.image}",), unpaired_text=(stores.text,))
    with pytest.raises(UserError, match="swap --image and --text"):
        pool_of(stores, unpaired_image=(stores.text,), unpaired_text=(stores.text,))


# ---- the stage -------------------------------------------------------------------------------------------------------


def test_the_run_says_what_was_used_and_goes_on_where_it_stopped(stores: Stores, tmp_path: Path) -> None:
    stated: dict[str, Any] = {"pairs": 20, "seeds": (1,), "unpaired": "rest", "layers": "pair", "settings": {"dim": 8}}
    config = AlignConfig(image=(stores.image,), text=(stores.text,), out=tmp_path / "run", **stated)
    said: list[Update] = []
    opened = AlignedRun.open(align(config, said.append))
    about = opened.record["seeds"][0]["unpaired"]
    assert about["rows"] == {"image": {"train": 90}, "text": {"train": 180}, "other_splits": []}
    assert set(about) >= {"images", "texts", "rounds", "scores"}
    assert any("without a partner" in str(sentence) for sentence in said)
    again: list[Update] = []
    align(config, again.append)
    assert any("Reused" in str(sentence) for sentence in again)
    shutil.rmtree(tmp_path / "run" / "seed-1")
    assert AlignedRun.open(align(config)).record["seeds"][0]["unpaired"] == about


def test_the_command_of_the_docs_works(stores: Stores, tmp_path: Path) -> None:
    both = ("--image", str(stores.image), "--text", str(stores.text), "--out", str(tmp_path / "run"), "--quiet")
    few = ("--pairs", "20", "--seed", "1", "--layers", "pair", "--set", "dim=8")
    done("align", *both, *few, "--unpaired-image", str(stores.image), "--unpaired-text", str(stores.text))
    about = AlignedRun.open(tmp_path / "run").record["seeds"][0]["unpaired"]
    assert about["rows"] == {"image": {"train": 200}, "text": {"train": 400}, "other_splits": []}


def test_a_method_that_takes_none_says_so(stores: Stores, tmp_path: Path) -> None:
    recipe: Recipe = make_recipe("procrustes")
    assert not recipe.takes_unpaired
    said: list[Update] = []
    config = AlignConfig(
        image=(stores.image,), text=(stores.text,), out=tmp_path / "run", method="procrustes", unpaired="rest", pairs=50
    )
    opened = AlignedRun.open(align(config, said.append))
    assert "unpaired" not in opened.record["seeds"][0]
    assert any("procrustes takes no unpaired images and texts" in str(sentence) for sentence in said)
