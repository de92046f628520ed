"""What test and training share: found by brute force too, numbers with and without, and said in the report."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.evaluate.config import EvaluateConfig, ZeroShotConfig
from pipeline.evaluate.data import pairs_of_split
from pipeline.evaluate.features import NEAR, SAME, find_duplicates, near_duplicates, plain_words, without
from pipeline.evaluate.output import read_queries
from pipeline.evaluate.results import Measure, QueryRanks
from pipeline.evaluate.run import evaluate
from pipeline.store.samples import Samples
from pipeline.store.views import Side
from tests.evaluate.conftest import World, write_store


def with_copies(world: World, copies: Sequence[tuple[int, int]], captions: Sequence[tuple[int, str]] = ()) -> World:
    """Write the stores anew: image `a` gets the features of image `b`; captions get other words."""
    features = {name: values.astype(np.float32) for name, values in world.image_features.items()}
    for values in features.values():
        for a, b in copies:
            values[a] = values[b] + 1e-4
    texts, content = world.text_samples, list(world.text_samples.content)
    for row, words in captions:
        content[row] = words
    world.image, world.text = world.root / "image-2", world.root / "text-2"
    provenance = {"spec": "package:tiny-image", "dataset": str(world.data)}
    write_store(world.image, "image", world.image_samples, features, provenance=provenance)
    samples = Samples(texts.sample_id, texts.image_id, texts.split, texts.label, content)
    write_store(world.text, "text", samples, {k: v.astype(np.float32) for k, v in world.text_features.items()})
    return world


def config(world: World, *runs: Path, **changes: Any) -> EvaluateConfig:
    stated: dict[str, Any] = {"image": (world.image,), "text": (world.text,), "bootstrap": 100, "examples": 1}
    return EvaluateConfig(runs=runs, out=world.root / "out", **(stated | changes))


def caption_of(world: World, image: int) -> int:
    return world.text_samples.image_id.index(f"im{image:03d}")


def test_near_duplicates_are_those_of_the_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    train, test = torch.randn(60, 8, generator=generator) + 5, torch.randn(40, 8, generator=generator) + 5
    expected = []
    for row, one in enumerate(test):
        scores = [float(torch.cosine_similarity(one - train.mean(0), other - train.mean(0), dim=0)) for other in train]
        if max(scores) > 0.7:
            expected.append((row, int(np.argmax(scores)), max(scores)))
    found = near_duplicates(train, test, 0.7)
    assert {each[:2] for each in found} == {each[:2] for each in expected}
    assert [each[2] for each in found] == pytest.approx(sorted((each[2] for each in expected), reverse=True))
    assert 0 < len(found) < 40


def test_numbers_with_and_without_follow_from_the_table_of_queries(world: World) -> None:
    with_copies(world, [(3, 2), (7, 6)], [(caption_of(world, 9), "A  Dog runs."), (caption_of(world, 2), "a dog runs")])
    values = evaluate(config(world, world.add_run("info_nce"), classes=(world.root / "text" / "classes",)))
    assert values["near_duplicate_images"] == 2
    assert values["duplicate_captions"] == 1
    tables = read_queries(world.root / "out")["info_nce"]
    said = world.text_samples.sample_id[caption_of(world, 9)]
    for direction, kind, kept in (
        ("image_retrieval", NEAR, lambda query, image: image not in ("im003", "im007")),
        ("text_retrieval", NEAR, lambda query, image: image not in ("im003", "im007")),
        ("image_retrieval", SAME, lambda query, image: query != said),
        ("text_retrieval", SAME, lambda query, image: image != "im009"),
    ):
        table = tables[direction]
        rows = [r for r, (q, i) in enumerate(zip(table.ids, table.image_ids, strict=True)) if kept(q, i)]
        assert len(rows) < len(table.ids)
        expected = np.mean([[rank <= 1 for rank in ranks[rows]] for ranks in table.ranks])
        assert values[f"{direction}_recall@1_without_{kind}"] == pytest.approx(expected)
    assert "acc1_without_near_duplicates" in values
    assert "acc1_without_duplicate_captions" not in values
    with (world.root / "out" / "duplicates.csv").open(encoding="utf-8", newline="") as stream:
        listed = [(row["kind"], row["test"], row["train"]) for row in csv.DictReader(stream)]
    first = [(NEAR, "im003", "im002"), (NEAR, "im007", "im006")]
    assert sorted(listed[:2]) == first
    assert listed[2:] == [(SAME, said, world.text_samples.sample_id[caption_of(world, 2)])]
    page = (world.root / "out" / "report.html").read_text()
    for words in (">Train–test overlap<", "Near-duplicates between train and test", "The closest pairs of images"):
        assert words in page


def test_nothing_in_common_is_not_spoken_of(world: World) -> None:
    values = evaluate(config(world, world.add_run("cca"), duplicate_cosine=1.0))
    assert values["near_duplicate_images"] == values["duplicate_captions"] == 0
    assert ">Train–test overlap<" not in (world.root / "out" / "report.html").read_text()
    assert len((world.root / "out" / "duplicates.csv").read_text().splitlines()) == 1


def test_another_set_is_compared_with_the_training_images_too(make_world: Callable[..., World]) -> None:
    world = with_copies(make_world(), [(4, 2)])  # im004 is in val, im002 in train
    classes = world.root / "text" / "classes"
    extra = ZeroShotConfig(name="other", image=(world.image,), classes=(classes,), split="val")
    values = evaluate(config(world, world.add_run("cca"), zero_shot=(extra,)))
    assert "other/acc1_without_near_duplicates" in values
    page = (world.root / "out" / "report.html").read_text()
    assert "other has pictures of the training split" in page


def test_a_run_that_was_trained_on_the_test_split_is_compared_with_nothing(world: World) -> None:
    image, text = Side.open("image", [world.image]), Side.open("text", [world.text])
    found = find_duplicates(["test"], pairs_of_split(image, text, "test"), [], 0.97)
    assert found.twins == ()


def test_no_query_left_has_no_number() -> None:
    ranks = np.array([[1, 2]])
    queries = QueryRanks(
        direction="image_retrieval", ids=["a", "b"], image_ids=["a", "b"], labels=["", ""], seeds=(1,), ranks=ranks
    )
    measure = Measure(name="image_retrieval_recall@1", direction="image_retrieval", k=1)
    assert without(measure, queries, frozenset("ab")) is None
    assert without(measure, queries, frozenset("b")) == 1.0
    assert plain_words(" A dog  runs !") == plain_words("a DOG runs.") != plain_words("a dog, runs")
