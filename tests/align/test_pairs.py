"""Joining, splitting, drawing: by id and by seed, never by position."""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

from pipeline.align.config import AlignConfig
from pipeline.align.pairs import PairFeatures, PairSet, Splits, draw, one_row_an_image, split_pairs, subset
from pipeline.align.run import align
from pipeline.errors import UserError
from pipeline.layers import LayerRef
from pipeline.progress import Update, silent
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.views import Side
from tests.align.conftest import MakeStores, Stores

ALL_LAYERS = ((LayerRef(0, "block1"),), (LayerRef(0, "output"),))


def open_sides(stores: Stores) -> tuple[Side, Side]:
    return Side.open("image", (stores.image,)), Side.open("text", (stores.text,))


def config_for(stores: Stores, out: Path = Path(), **changes: Any) -> AlignConfig:
    return AlignConfig(image=(stores.image,), text=(stores.text,), out=out, replace=True, **changes)


def image_ids(side: Side, pairs: PairSet) -> list[str]:
    return [side.samples.image_id[row] for row in pairs.image_rows]


def test_captions_belong_to_their_images(stores: Stores) -> None:
    image, text = open_sides(stores)
    splits = split_pairs(image, text, config_for(stores), silent)
    assert (len(splits.train), len(splits.validation), splits.carved) == (200, 60, False)
    for pairs in (splits.train, splits.validation, splits.train.take(np.array([5, 2, 199]))):
        owners = [text.samples.image_id[row] for row in pairs.caption_rows]
        assert owners == [image_ids(image, pairs)[i] for i in pairs.caption_image]
        assert len(set(pairs.caption_rows.tolist())) == 2 * len(pairs)


def test_training_and_validation_share_no_image_and_never_touch_test(stores: Stores, make_stores: MakeStores) -> None:
    for paths in (stores, make_stores(val=0)):
        image, text = open_sides(paths)
        splits = split_pairs(image, text, config_for(paths), silent)
        train, validation = (set(image_ids(image, pairs)) for pairs in (splits.train, splits.validation))
        test = {
            name for name, split in zip(image.samples.image_id, image.samples.split, strict=True) if split == "test"
        }
        assert not train & validation
        assert not (train | validation) & test


def test_without_validation_split_one_is_carved_and_said(make_stores: MakeStores) -> None:
    paths = make_stores(val=0)
    said: list[Update] = []
    image, text = open_sides(paths)
    first, again = (split_pairs(image, text, config_for(paths), said.append) for _ in range(2))
    assert first.carved
    assert (len(first.train), len(first.validation)) == (180, 20)
    assert first.validation.image_rows.tolist() == again.validation.image_rows.tolist()
    assert "20 of 200 training images are kept for validation" in str(said[0])


def test_validation_pairs_are_a_random_sample_in_random_order(make_stores: MakeStores) -> None:
    """Neither carved nor given validation pairs follow the order of ids or rows: a part of them stands for all.

    Places of a random sample of m out of n, in the order of ids, have a mean within a few standard errors of the
    middle (hypergeometric: n/√(12·m)·√(1 − m/n)), and as many ascents as descents between neighbours.
    """
    for paths in (make_stores(val=0), make_stores(train=60, val=60)):
        image, text = open_sides(paths)
        splits = split_pairs(image, text, config_for(paths), silent)
        found = image_ids(image, splits.validation)
        pool = sorted({*found, *(image_ids(image, splits.train) if splits.carved else [])})
        places = np.array([pool.index(name) for name in found])
        size, share = len(pool), len(found) / len(pool)
        error = size / np.sqrt(12 * len(found)) * np.sqrt(1 - share)
        assert abs(places.mean() - (size - 1) / 2) <= 3 * error
        ascents = np.mean(np.diff(places) > 0)
        assert 0.2 < ascents < 0.8
        assert len(set(np.diff(np.sort(places)))) > 1 or not splits.carved


def drawn(splits: Splits, image: Side, count: int, seed: int) -> set[str]:
    return set(image_ids(image, splits.train.take(subset(image, splits.train, count, seed))))


def test_subsets_are_nested_and_differ_by_seed(stores: Stores) -> None:
    image, text = open_sides(stores)
    splits = split_pairs(image, text, config_for(stores), silent)
    small, large, other = (drawn(splits, image, n, s) for n, s in ((50, 1), (100, 1), (50, 2)))
    assert len(small) == 50
    assert small < large
    assert small != other
    assert len(subset(image, splits.train, None, 1)) == 200


def test_subset_depends_on_ids_not_on_rows(stores: Stores) -> None:
    image, text = open_sides(stores)
    splits = split_pairs(image, text, config_for(stores), silent)
    backwards = splits.train.take(np.arange(200)[::-1].copy())
    turned = backwards.take(subset(image, backwards, 50, 1))
    assert set(image_ids(image, turned)) == drawn(splits, image, 50, 1)


def test_more_pairs_than_there_are(stores: Stores, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--pairs of 200 at most .* found 201"):
        align(config_for(stores, tmp_path, pairs=201))


@pytest.mark.parametrize("train", [0, 1])
def test_too_few_pairs(make_stores: MakeStores, tmp_path: Path, train: int) -> None:
    with pytest.raises(UserError, match=rf"at least 4 images with captions in the split 'train', found {train}"):
        align(config_for(make_stores(train=train, val=5, test=5), tmp_path))


def test_three_pairs_without_validation(make_stores: MakeStores, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="at least 4 images with captions"):
        align(config_for(make_stores(train=3, val=0, test=5), tmp_path))


def test_two_training_images_are_enough_beside_a_validation_split(make_stores: MakeStores) -> None:
    paths = make_stores(train=2, val=2, test=1)
    splits = split_pairs(*open_sides(paths), config_for(paths), silent)
    assert (len(splits.train), len(splits.validation), splits.carved) == (2, 2, False)


def test_two_of_four_are_carved(make_stores: MakeStores) -> None:
    paths = make_stores(train=4, val=0, test=1)
    splits = split_pairs(*open_sides(paths), config_for(paths), silent)
    assert (len(splits.train), len(splits.validation), splits.carved) == (2, 2, True)


def test_all_pairs_may_be_asked_for_by_number(stores: Stores) -> None:
    image, text = open_sides(stores)
    train = split_pairs(image, text, config_for(stores), silent).train
    assert subset(image, train, len(train), seed=1).tolist() == list(range(200))


def test_a_layer_with_one_row_an_image(stores: Stores) -> None:
    """Images their own rows, captions the mean of each image's: by a plain loop over ids."""
    image, text = open_sides(stores)
    train = split_pairs(image, text, config_for(stores), silent).train
    layer = LayerRef(0, "output")
    own = image.read([layer], train.image_rows)
    assert torch.equal(one_row_an_image(image, layer, train), own)
    rows = text.read([layer], np.arange(len(text.samples)))
    means = [
        torch.stack([rows[place] for place, owner in enumerate(text.samples.image_id) if owner == name]).mean(dim=0)
        for name in image_ids(image, train)
    ]
    torch.testing.assert_close(one_row_an_image(text, layer, train), torch.stack(means))


def test_widths_of_stacked_layers_go_along(stores: Stores) -> None:
    sides = open_sides(stores)
    both = tuple(LayerRef(0, name) for name in ("block1", "output"))
    train = split_pairs(*sides, config_for(stores), silent).train
    data = PairFeatures.read(sides, (both, both), train, torch.device("cpu"))
    widths = tuple([side.stores[0].layer(ref.name).width for ref in both] for side in sides)
    for some in (data, data.head(3), data.take(np.array([4, 2]))):
        assert some.widths == widths
    away = PairFeatures.read(sides, (both, both), train, torch.device("meta"))
    assert {away.image.device.type, away.text.device.type, away.starts.device.type} == {"meta"}


def test_smallest_run_that_works(make_stores: MakeStores, tmp_path: Path) -> None:
    settings = {"dim": 2, "training": {"max_steps": 3}}
    assert align(config_for(make_stores(train=4, val=2, test=1), tmp_path / "run", settings=settings, seeds=(1,)))


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("side", ["image", "text"])
def test_features_that_are_not_finite(make_stores: MakeStores, tmp_path: Path, side: str, value: float) -> None:
    def spoil(name: str, layers: dict[str, Any]) -> None:
        if name == side:
            layers["output"][:] = np.where(np.arange(16 if side == "text" else 24) == 3, value, layers["output"])

    paths = make_stores(change=spoil)
    for layers in ("last", "auto"):
        with pytest.raises(UserError, match=r"NaN or infinity in .* rows, first in 'im"):
            align(config_for(paths, tmp_path, layers=layers))


def test_constant_features(make_stores: MakeStores, tmp_path: Path) -> None:
    def flatten(name: str, layers: dict[str, Any]) -> None:
        if name == "image":
            layers["output"][:] = 1.0

    paths = make_stores(change=flatten)
    with pytest.raises(UserError, match=r"features that differ between samples, found 200 equal rows"):
        align(config_for(paths, tmp_path, layers="last"))
    settings = {"dim": 4, "training": {"max_steps": 3}}
    assert align(config_for(paths, tmp_path, layers="auto", settings=settings, seeds=(1,)))


def test_sides_swapped(stores: Stores, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"expected a store of image features, found a store of text.*swap --image and"):
        align(AlignConfig(image=(stores.text,), text=(stores.image,), out=tmp_path))


def test_duplicate_images_and_captions_are_harmless(make_stores: MakeStores, tmp_path: Path) -> None:
    def double(name: str, layers: dict[str, Any]) -> None:
        for values in layers.values():
            values[1::2] = values[::2]

    settings = {"dim": 4, "training": {"max_steps": 5}}
    for method in ("combined", "cca"):
        assert align(config_for(make_stores(change=double), tmp_path / method, method=method, settings=settings))


def tensors(stores: Stores) -> PairFeatures:
    sides = open_sides(stores)
    splits = split_pairs(*sides, config_for(stores), silent)
    return PairFeatures.read(sides, ALL_LAYERS, splits.train, torch.device("cpu"))


def test_epoch_draws_one_own_caption_of_each_image(stores: Stores) -> None:
    data = tensors(stores)
    generator = torch.Generator().manual_seed(0)
    drawn_captions = torch.zeros(len(data.text), dtype=torch.bool)
    for _ in range(12):
        images, captions = data.epoch("one", generator)
        assert sorted(images.tolist()) == list(range(200))
        assert torch.equal(data.caption_image[captions], images)
        drawn_captions[captions] = True
    assert drawn_captions.float().mean() > 0.99


def test_epoch_of_all_captions(stores: Stores) -> None:
    data = tensors(stores)
    images, captions = data.epoch("all", torch.Generator().manual_seed(0))
    assert sorted(captions.tolist()) == list(range(400))
    assert torch.equal(data.caption_image[captions], images)


def test_taking_images_takes_their_captions(stores: Stores) -> None:
    data = tensors(stores)
    some = data.take(np.array([7, 3]))
    assert torch.equal(some.image, data.image[[7, 3]])
    assert torch.equal(some.text, data.text[[14, 15, 6, 7]])
    assert data.head(3).text.shape[0] == 6
    assert data.head(10**6) is data


def test_drawn_captions_are_nested_and_belong_to_the_drawn_images(make_stores: MakeStores) -> None:
    paths = make_stores(train=50, val=10, test=5, captions=5)
    image, text = open_sides(paths)
    train = split_pairs(image, text, config_for(paths), silent).train
    drawn = {
        (count, captions): train.pick(
            draw(image, text, train, config_for(paths, pairs=count, captions_per_image=captions), 7)
        )
        for count in (10, 30)
        for captions in (1, 3, 5)
    }
    for (count, captions), pairs in drawn.items():
        assert len(pairs) == count
        assert np.diff(pairs.starts).tolist() == [captions] * count
        owners = [text.samples.image_id[row] for row in pairs.caption_rows]
        assert owners == [image_ids(image, pairs)[i] for i in pairs.caption_image]
    assert set(drawn[10, 1].caption_rows) < set(drawn[10, 3].caption_rows) < set(drawn[30, 3].caption_rows)
    assert set(drawn[10, 1].caption_rows) < set(drawn[30, 1].caption_rows)
    other = train.pick(draw(image, text, train, config_for(paths, captions_per_image=1), 8))
    same = train.pick(draw(image, text, train, config_for(paths, captions_per_image=1), 7))
    assert set(other.caption_rows) != set(same.caption_rows)
    with pytest.raises(UserError, match="captions_per_image: expected 1 or more"):
        config_for(paths, captions_per_image=0)


def test_drawn_captions_follow_ids_not_rows(make_stores: MakeStores) -> None:
    paths = make_stores(train=40, val=10, test=5, captions=3)
    image, text = open_sides(paths)
    train = split_pairs(image, text, config_for(paths), silent).train
    config = config_for(paths, captions_per_image=2, pairs=20)
    turned = train.take(np.arange(len(train))[::-1].copy())
    one, two = (pairs.pick(draw(image, text, pairs, config, 3)) for pairs in (train, turned))
    assert set(one.caption_rows) == set(two.caption_rows)


def test_all_captions_said_or_unsaid_are_the_same_run(stores: Stores, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"method": "cca", "pairs": 50, "seeds": (1,), "device": "cpu"}
    runs = [
        AlignedRun.open(align(config_for(stores, tmp_path / str(count), captions_per_image=count, **changes)))
        for count in (None, 2, 1)
    ]
    weights = [opened.projector("text").state_dict()["matrix"] for opened in runs]
    assert torch.equal(weights[0], weights[1])
    assert not torch.allclose(weights[0], weights[2])
    assert runs[2].record["pairs"]["captions_per_image"] == 1


def test_captions_in_another_order_are_not_taken_for_the_whole(stores: Stores) -> None:
    data = tensors(stores)
    order = np.arange(len(data.text)).reshape(-1, 2)[::-1].ravel().copy()
    turned = data.pick(PairSet(np.arange(len(data)), order, data.starts.numpy()))
    assert torch.equal(turned.text, data.text[order])
    assert data.pick(PairSet(np.arange(len(data)), np.sort(order), data.starts.numpy())) is data


@pytest.mark.parametrize("captions", ["one", "all"])
def test_an_epoch_depends_on_its_generator_alone(stores: Stores, captions: Literal["one", "all"]) -> None:
    data, found = tensors(stores), []
    for other in (1, 2):
        torch.manual_seed(other)
        found.append(data.epoch(captions, torch.Generator().manual_seed(5)))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
    assert not torch.equal(found[0][1], data.epoch(captions, torch.Generator().manual_seed(6))[1])


def test_the_first_images_keep_all_that_belongs_to_them(stores: Stores) -> None:
    data = tensors(stores)
    some = data.head(3)
    assert torch.equal(some.image, data.image[:3])
    assert torch.equal(some.text, data.text[:6])
    assert some.starts.tolist() == [0, 2, 4, 6]
    assert some.widths == data.widths
    assert data.head(len(data)) is data


def test_every_draw_is_the_one_that_ids_and_seed_give(stores: Stores) -> None:
    """The streams written out: `seed` draws images, `(seed, 1)` captions, both over the sorted ids."""
    image, text = open_sides(stores)
    pairs = split_pairs(image, text, config_for(stores)).train
    order = np.argsort(image_ids(image, pairs))[np.random.default_rng(3).permutation(len(pairs))]
    assert subset(image, pairs, 7, seed=3).tolist() == sorted(order[:7].tolist())
    assert subset(image, pairs, len(pairs), seed=3).tolist() == list(range(len(pairs)))
    names = [text.samples.sample_id[row] for row in pairs.caption_rows]
    key = np.empty(len(names), dtype=np.int64)
    key[np.argsort(names)] = np.random.default_rng((3, 1)).permutation(len(names))
    first = [min(2 * i, 2 * i + 1, key=key.__getitem__) for i in range(len(pairs))]
    found = draw(image, text, pairs, config_for(stores, captions_per_image=1), seed=3)
    assert found.caption_rows.tolist() == first


@pytest.mark.parametrize(("val", "trained", "validated"), [(0, 18, 2), (9, 20, 9)])
def test_validation_images_are_ordered_by_seed_zero(
    make_stores: MakeStores, val: int, trained: int, validated: int
) -> None:
    paths = make_stores(train=20, val=val, test=2)
    image, text = open_sides(paths)
    splits = split_pairs(image, text, config_for(paths))
    assert (len(splits.train), len(splits.validation)) == (trained, validated)
    found = image_ids(image, splits.validation)
    pool = sorted(found if val else [*found, *image_ids(image, splits.train)])
    order = np.random.default_rng(0).permutation(len(pool))[:validated]
    assert found == [pool[place] for place in order]


def test_too_few_pairs_names_the_splits_that_there_are(make_stores: MakeStores) -> None:
    paths = make_stores(train=1, val=2, test=2)
    with pytest.raises(UserError, match=r"splits of the images: test, train, val\)"):
        split_pairs(*open_sides(paths), config_for(paths))


def test_an_epoch_of_one_caption_draws_order_then_captions(stores: Stores) -> None:
    data, stream = tensors(stores), torch.Generator().manual_seed(5)
    order = torch.randperm(len(data), generator=stream)
    chance = torch.rand(len(data), generator=stream, dtype=torch.float64)
    images, captions = data.epoch("one", torch.Generator().manual_seed(5))
    assert torch.equal(images, order)
    assert torch.equal(captions, (data.starts[:-1] + (2 * chance).long())[order])


def test_one_row_an_image_of_a_constant_layer(make_stores: MakeStores) -> None:
    def constant(side: str, values: dict[str, Any]) -> None:
        for table in values.values():
            table[:] = 1.0

    paths = make_stores(train=6, val=2, test=2, change=constant)
    image, text = open_sides(paths)
    pairs = split_pairs(image, text, config_for(paths)).train
    assert bool((one_row_an_image(text, LayerRef(0, "output"), pairs) == 1.0).all())
