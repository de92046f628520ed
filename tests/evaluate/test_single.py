"""One run's numbers against brute force in numpy, written from the definitions."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from pipeline.errors import UserError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import pairs_of_split, run_features, zero_shot_set
from pipeline.evaluate.results import RunResult
from pipeline.evaluate.single import evaluate_run
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.views import Side
from tests.corrected import SCALE, corrected_copy


def evaluated(world: Any, path: Any, ks: tuple[int, ...] = (1, 5, 10)) -> RunResult:
    image, text = Side.open("image", [world.image]), Side.open("text", [world.text])
    prompts = Side.open("text", [world.text / "classes"])
    config = EvaluateConfig(
        runs=(path,), image=(world.image,), text=(world.text,), out=world.root, ks=ks, bootstrap=200
    )
    sets = [zero_shot_set("", image, prompts, "test"), zero_shot_set("other", image, prompts, "val")]
    return evaluate_run("run", AlignedRun.open(path), pairs_of_split(image, text, "test"), sets, config)


def embed(world: Any, path: Any, seed: int, side: str, features: Any) -> Any:
    import torch

    rows = torch.from_numpy(np.asarray(features, dtype=np.float32))
    return AlignedRun.open(path).encode(side, rows, seed).double().numpy()


def test_retrieval_equals_brute_force(world: Any) -> None:
    path = world.add_run("info_nce")
    result = evaluated(world, path)
    samples, texts = world.image_samples, world.text_samples
    test = [i for i, split in enumerate(samples.split) if split == "test"]
    captions = [c for c, owner in enumerate(texts.image_id) if owner in {samples.image_id[i] for i in test}]
    for position, seed in enumerate((1, 2)):
        image = embed(world, path, seed, "image", world.image_features["output"][test])
        text = embed(world, path, seed, "text", world.text_features["output"][captions])
        scores = image @ text.T
        own = np.array([[texts.image_id[c] == samples.image_id[i] for c in captions] for i in test])
        for k in (1, 5, 10):
            hits = []
            for column in range(len(captions)):
                right = scores[own[:, column], column][0]
                hits.append(1 + (scores[~own[:, column], column] >= right).sum() <= k)
            assert result.values[f"image_retrieval_recall@{k}"][position] == np.mean(hits)
            hits = []
            for row in range(len(test)):
                best = scores[row, own[row]].max()
                hits.append(1 + (scores[row, ~own[row]] >= best).sum() <= k)
            assert result.values[f"text_retrieval_recall@{k}"][position] == np.mean(hits)
        for direction, table, right in (
            ("text_retrieval", scores, own),
            ("image_retrieval", scores.T, own.T),
        ):
            found = [average_precision_score(mask, row) for row, mask in zip(table, right, strict=True)]
            precision = result.answers[direction].precision
            assert precision is not None
            assert precision[position] == pytest.approx(np.mean(found))


def test_zero_shot_equals_brute_force(make_world: Callable[..., Any]) -> None:
    world = make_world(classes=[f"class {i}" for i in range(8)], images=60)
    path = world.add_run("ridge", steps=0, noise=0.6)
    result = evaluated(world, path)
    test = [i for i, split in enumerate(world.image_samples.split) if split == "test"]
    from pipeline.store.reader import FeatureStore

    prompts = FeatureStore.open(world.text / "classes")
    labels = sorted(set(world.labels))
    for position, seed in enumerate((1, 2)):
        text = embed(world, path, seed, "text", prompts.numpy("output"))
        owner = np.array(prompts.samples.label)
        means = np.stack([text[owner == label].mean(0) for label in labels])
        classes = means / np.linalg.norm(means, axis=1, keepdims=True)
        scores = embed(world, path, seed, "image", world.image_features["output"][test]) @ classes.T
        truth = np.array([labels.index(world.labels[i]) for i in test])
        right = scores[np.arange(len(test)), truth]
        rank = (scores >= right[:, None]).sum(1)
        assert result.values["acc1"][position] == np.mean(rank <= 1)
        assert result.values["acc5"][position] == np.mean(rank <= 5)
        recall = [np.mean(rank[truth == c] <= 1) for c in sorted(set(truth))]
        assert result.values["mean_per_class_recall"][position] == pytest.approx(np.mean(recall), abs=1e-15)
    confusion = result.answers["zero_shot"].confusion
    assert confusion is not None
    assert confusion.sum() == 2 * len(test)
    assert np.trace(confusion) == round(result.values["acc1"].sum() * len(test))
    assert "other/acc1" in result.values
    assert not result.trained


def test_several_stores_are_concatenated_in_the_run_s_order(world: Any) -> None:
    stores = {
        "image": [AlignedRun.open(world.add_run("a")).record["stores"]["image"][0]] * 2,
        "text": AlignedRun.open(world.add_run("a")).record["stores"]["text"],
    }
    layers = {"image": ["1/block.0", "0/output"], "text": ["output"]}
    run = AlignedRun.open(world.add_run("stacked", layers=layers, stores=stores))
    side = Side.open("image", [world.image, world.image])
    with pytest.raises(UserError, match="image features of width 12, as the run 'stacked' takes them, found width 24"):
        run.check("image", side.keys, side.where, offered=side.offered)
    features = run_features(run, side, np.array([3, 1])).numpy()
    for name, columns in (("block.0", slice(0, 12)), ("output", slice(12, 24))):
        np.testing.assert_array_equal(features[:, columns], world.image_features[name][[3, 1]].astype(np.float32))


def test_intervals_hold_the_mean_and_shrink_with_more_images(make_world: Callable[..., Any]) -> None:
    widths = []
    for images in (40, 400):
        world = make_world(images=images, pictures=False)
        result = evaluated(world, world.add_run("cca", noise=1.0))
        low, high = np.quantile(result.replicates["text_retrieval_recall@10"], [0.025, 0.975])
        assert low <= result.mean("text_retrieval_recall@10") <= high
        widths.append(high - low)
    assert widths[1] < widths[0]


def test_a_corrected_run_classifies_by_plain_cosines(world: Any) -> None:
    """Its accuracy, probes' features and confidence are those of the run that was wrapped; its retrieval is not."""
    path = world.add_run("cca", steps=0)
    plain, corrected = evaluated(world, path), evaluated(world, corrected_copy(path, world.root / "corrected"))
    for direction in ("zero_shot", "zero_shot:other"):
        before, after = plain.answers[direction], corrected.answers[direction]
        np.testing.assert_array_equal(after.queries.ranks, before.queries.ranks)
        np.testing.assert_array_equal(after.confusion, before.confusion)
        assert after.calibration.temperature == pytest.approx(SCALE * before.calibration.temperature)
        assert (before.calibration.scaled is None) == (after.calibration.scaled is None)
        if before.calibration.scaled and after.calibration.scaled:
            assert after.calibration.scaled.ece == pytest.approx(before.calibration.scaled.ece, abs=1e-5)
    ranks = [result.answers["text_retrieval"].queries.ranks for result in (plain, corrected)]
    assert (ranks[0] != ranks[1]).any()
