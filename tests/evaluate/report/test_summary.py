"""Every hidden mistake that can be seen is said before the numbers, and nothing is said where there is none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest

from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.data import pairs_of_split
from pipeline.evaluate.features import NEAR, SAME, Duplicates, Twin
from pipeline.evaluate.report.summary import (
    class_caveats,
    cut_off_caveats,
    duplicate_caveats,
    find_caveats,
    seed_caveats,
    small_set_caveats,
    split_caveats,
    text_encoder_caveats,
)
from pipeline.evaluate.results import Measure, QueryRanks
from pipeline.evaluate.run import evaluate
from pipeline.store.samples import Samples
from pipeline.store.views import Side
from tests.evaluate.conftest import World, write_store
from tests.evaluate.report.test_results import run, summary


def with_record(name: str, record: dict[str, Any], layer_pairs: dict[str, Any] | None = None) -> Any:
    return replace(run(name, 0.5, 0.5), record=record, layer_pairs=layer_pairs)


def page_of(world: World, *runs: Path, **changes: Any) -> str:
    stated: dict[str, Any] = {"image": (world.image,), "text": (world.text,), "bootstrap": 100, "examples": 0}
    evaluate(EvaluateConfig(runs=runs, out=world.root / "out", **(stated | changes)))
    return (world.root / "out" / "report.html").read_text()


def test_a_split_that_was_trained_or_chosen_on() -> None:
    clean = with_record("clean", {"config": {"train_split": "train", "validation_split": "val"}})
    trained = with_record("a", {"config": {"train_split": "test"}})
    chosen = with_record("b", {"config": {"train_split": "train", "validation_split": "test"}})
    assert list(split_caveats([clean], "test")) == []
    said = list(split_caveats([clean, trained, chosen], "test"))
    assert {caveat.title for caveat in said} == {"The split test was not held out"}
    assert [caveat.text for caveat in said] == [
        "a trained on it. Their numbers say nothing about new data.",
        "b chose their best step on it. Their numbers say nothing about new data.",
    ]


def test_a_split_that_was_seen_without_its_pairs() -> None:
    """Only where the rows were used, and only for the split that is evaluated."""
    rows = {"other_splits": ["test"]}
    entries = [{"seed": 1, "unpaired": {"rounds": rounds, "rows": rows}} for rounds in (2, 0)]
    used, alone = (
        with_record(name, {"seeds": [entry]}) for name, entry in zip(("used", "alone"), entries, strict=True)
    )
    plain = with_record("plain", {"seeds": [{"seed": 1}]})
    assert list(split_caveats([used, alone, plain], "val")) == []
    (said,) = split_caveats([used, alone, plain], "test")
    assert said.title == "The split test was seen without its pairs"
    assert said.text.startswith("used had its images or texts")


def test_layers_chosen_on_another_split_than_train() -> None:
    record = {"config": {"train_split": "train"}}
    fine = with_record("fine", record, {"split": "train"})
    guilty = with_record("guilty", record, {"split": "test"})
    (said,) = split_caveats([fine, guilty], "test")
    assert said.title == "Layers chosen outside the training split"
    assert said.text == "The layers of guilty were chosen on another split than train."


def test_an_interval_wider_than_the_difference() -> None:
    close = summary(run("a", 0.50, 0.50, noise=0.03), run("info_nce", 0.49, 0.49, noise=0.03))
    (said,) = small_set_caveats(close, 180)
    low, high = close.interval(close.lead)
    assert said.title == "A small test set, too small to tell a from info_nce"
    assert said.text == (
        f"With 180 test images the mean of both directions of a is known to lie between {100 * low:.1f} and "
        f"{100 * high:.1f} (95 % interval), and its lead over info_nce is 1.0 points. More test images, not more "
        "decimals, would settle it."
    )
    apart = summary(run("a", 0.50, 0.50), run("info_nce", 0.30, 0.30))
    assert list(small_set_caveats(apart, 180)) == []


def test_a_small_set_is_told_by_its_size_and_by_its_interval() -> None:
    wide, narrow = (summary(run("a", 0.5, 0.5, noise=noise)) for noise in (0.08, 0.01))
    for board, images, said in ((wide, 500, True), (narrow, 100, False), (narrow, 99, True)):
        low, high = board.interval(board.lead)
        assert [(each.title, each.text) for each in small_set_caveats(board, images)] == [
            (
                "A small test set",
                f"With {images} test images the mean of both directions of a is known to lie between {100 * low:.1f} "
                f"and {100 * high:.1f} (95 % interval).",
            )
        ] * said
    several = summary(run("a", 0.5, 0.5), run("b", 0.3, 0.3))
    (found,) = small_set_caveats(several, 40)
    assert found.text.endswith("interval). Other images of the same kind could turn the order of runs round.")


def test_seeds() -> None:
    (said,) = seed_caveats(summary(run("a", 0.5, 0.5, seeds=0.2), run("b", 0.4, 0.4, seeds=0.2)))
    assert said.title == "The lead is within the spread over seeds"
    single = replace(run("a", 0.5, 0.5), seeds=(1,))
    (said,) = seed_caveats(summary(single))
    assert said.title == "One seed"
    assert list(seed_caveats(summary(run("a", 0.5, 0.5)))) == []


def leaderboard(*runs: Any, half: float = 0.0, gap: float = 0.0, error: float = 0.0, apart: bool = True) -> Any:
    """Return a stand-in whose every number is stated: half an interval, a lead, its error over seeds."""
    stated = {
        "interval": lambda run: (0.5 - half, 0.5 + half),
        "gap": lambda run, other: SimpleNamespace(value=gap),
        "seed_error": lambda run, other: error,
        "apart": lambda run, other: apart,
        "not_beaten": lambda run: runs[1:],
    }
    return cast(Any, SimpleNamespace(runs=runs, lead=runs[0], confidence=0.95, **stated))


@pytest.mark.parametrize(("half", "said"), [(3 / 64, False), (1 / 16, True)])
def test_a_number_known_to_five_points_is_known(half: float, said: bool) -> None:
    """The bar is ± 5 points: 4.7 are no caveat, 6.2 are."""
    found = list(small_set_caveats(leaderboard(run("a", 0.5, 0.5), half=half), 200))
    assert [caveat.title for caveat in found] == ["A small test set"] * said
    assert not said or "between 43.8 and 56.2" in found[0].text
    two = (run("a", 0.5, 0.5), run("b", 0.4, 0.4))
    together = list(small_set_caveats(leaderboard(*two, half=half, gap=-0.01, apart=False), 1000))
    assert "1,000 test images" in together[0].text
    assert "its lead over b is 1.0 points" in together[0].text
    assert bool(list(small_set_caveats(leaderboard(*two, half=half), 1000))) == said


@pytest.mark.parametrize(("gap", "said"), [(1 / 32, True), (1 / 32 + 1 / 1024, False), (-1.0, True)])
def test_a_lead_of_two_standard_errors_over_seeds_is_none(gap: float, said: bool) -> None:
    two = (run("a", 0.5, 0.5), run("b", 0.4, 0.4))
    found = list(seed_caveats(leaderboard(*two, gap=gap, error=1 / 64)))
    assert [caveat.title for caveat in found] == ["The lead is within the spread over seeds"] * said
    assert not said or found[0].text == (
        f"a leads b by {100 * gap:.1f} points; the standard error of that lead over seeds is 1.6. Other seeds could "
        "turn the order round."
    )
    assert list(seed_caveats(leaderboard(*two, gap=gap, error=0.0))) == []


def test_one_seed_is_said_of_trainings_alone() -> None:
    single = {"seeds": (1,)}
    closed, trained = (replace(run(name, 0.5, 0.5, trained=name == "b"), **single) for name in "ab")  # type: ignore[arg-type]
    (said,) = seed_caveats(leaderboard(closed, trained, gap=1.0, error=0.1))
    assert said.text == "b: one seed does not show whether a result is merit or luck in training."
    (said,) = seed_caveats(leaderboard(trained))
    assert said.title == "One seed"
    assert list(seed_caveats(leaderboard(closed))) == []
    assert list(seed_caveats(leaderboard(run("b", 0.5, 0.5)))) == []


@pytest.mark.parametrize(("dogs", "said"), [(2, False), (1, True)])
def test_classes_are_unequal_above_three_to_one(dogs: int, said: bool) -> None:
    """6:2 are three to one and fine; 4:1 are not."""
    labels = ["cat"] * (6 if dogs == 2 else 4) + ["dog"] * dogs
    for name, shown in (("", "the main data set"), ("zoo", "zoo")):
        found = list(class_caveats(cast(Any, SimpleNamespace(labels=labels, name=name, unlabelled=0))))
        assert [caveat.title for caveat in found] == ["Unequal classes"] * said
        assert not said or found[0].text == (
            f"In {shown} class 'cat' has 4 test images and 'dog' has 1: read the per-class recall beside the accuracy."
        )
    (left,) = class_caveats(cast(Any, SimpleNamespace(labels=["cat", "dog"], name="zoo", unlabelled=1)))
    assert left.title == "Images without a label"
    assert left.text == "1 image of zoo without a label are left out of zero-shot."


def test_layers_of_an_old_record_count_as_chosen_in_training() -> None:
    """A record that names no split chose on the one it was trained on; that one may have another name than train."""
    fine = [
        with_record("a", {"config": {}}, {"scores": []}),
        with_record("b", {}, {"split": "train"}),
        with_record("c", {"config": {"train_split": "learn"}}, {"split": "learn"}),
        with_record("d", {"config": {"train_split": "learn"}}, {"scores": []}),
        with_record("e", {}),
    ]
    assert list(split_caveats(fine, "test")) == []
    (said,) = split_caveats([with_record("f", {"config": {"train_split": "learn"}}, {"split": "train-2"})], "test")
    assert "of f were" in said.text


def test_cut_offs_beyond_the_gallery() -> None:
    assert list(cut_off_caveats((1, 5), 6)) == []
    (said,) = cut_off_caveats((1, 5, 10), 5)
    assert said.title == "Cut-offs beyond the gallery"
    assert said.text == "With 5 test images text→image R@5 and R@10 is 100 % whatever the model."


def test_unequal_classes_and_images_without_a_label(make_world: Callable[..., World]) -> None:
    world = make_world(images=80, pictures=False)
    assert "Unequal classes" not in page_of(world, world.add_run("cca"))
    labels = ["cat" if row % 16 else "dog" if row % 32 else "" for row in range(80)]
    labels[1] = "dog"
    labels[3] = ""
    samples = world.image_samples
    world.image = world.root / "unequal"
    unequal = Samples(samples.sample_id, samples.image_id, samples.split, labels, samples.content)
    features = {name: values.astype(np.float32) for name, values in world.image_features.items()}
    write_store(world.image, "image", unequal, features)
    page = page_of(world, world.add_run("cca"))
    assert "Unequal classes" in page
    assert "has 38 test images and &#39;dog&#39; has 1: read the per-class recall" in page
    assert "1 image of the main data set without a label are left out" in page


def test_a_text_encoder_that_knows_the_captions(world: World) -> None:
    features = {name: values.astype(np.float32) for name, values in world.image_features.items()}
    texts = {name: values.astype(np.float32) for name, values in world.text_features.items()}
    for name, dataset in (("flickr", "data/0_raw/flickr8k"), ("other", "data/0_raw/birds")):
        where = {"spec": "package:tiny-image", "dataset": dataset}
        write_store(world.root / name, "image", world.image_samples, features, provenance=where)
    write_store(world.root / "mini", "text", world.text_samples, texts, provenance={"spec": "package:all-minilm-l6-v2"})
    text = Side.open("text", [world.root / "mini"])
    known, other = (
        pairs_of_split(Side.open("image", [world.root / name]), text, "test") for name in ("flickr", "other")
    )
    (said,) = text_encoder_caveats(known)
    assert said.title == "The text encoder knows captions of this kind"
    assert said.text == (
        "The text encoder package:all-minilm-l6-v2 was trained on captions of COCO and Flickr30k, says its model card."
    )
    assert list(text_encoder_caveats(other)) == []


def stores_of(**provenance: str) -> Any:
    return SimpleNamespace(stores=[SimpleNamespace(manifest=SimpleNamespace(provenance=provenance))])


@pytest.mark.parametrize("spec", ["all-minilm-l6-v2", "st:All-MPNet-base", "paraphrase-x", "hf:all-distilroberta-v1"])
@pytest.mark.parametrize("dataset", ["data/0_raw/flickr8k", "/x/MSCOCO"])
def test_every_encoder_and_set_of_captions_is_known(spec: str, dataset: str) -> None:
    """Model cards of sentence-transformers list COCO and Flickr30k among what these were trained on."""
    for text, image, said in (
        ({"spec": spec}, {"dataset": dataset}, True),
        ({"spec": "hf:bert-base"}, {"dataset": dataset}, False),
        ({"spec": spec}, {"dataset": "birds"}, False),
        ({}, {"dataset": dataset}, False),
        ({"spec": spec}, {}, False),
    ):
        pairs = SimpleNamespace(image=stores_of(**image), text=stores_of(**text))
        assert bool(list(text_encoder_caveats(cast(Any, pairs)))) == said


DIRECTIONS = ("text_retrieval", "image_retrieval")


def found_duplicates(near: int = 0, same: int = 0, touched: frozenset[str] = frozenset()) -> Duplicates:
    blank = {"cosine": 1.0, "test_content": "", "train_content": "", "train": ""}
    kinds = [(NEAR, "")] * near + [(SAME, "")] * same + [(NEAR, "zoo"), (NEAR, "zoo")] * (near > 1)
    twins = tuple(Twin(kind=kind, set=name, test=str(row), **blank) for row, (kind, name) in enumerate(kinds))  # type: ignore[arg-type]
    left_out = {"image_retrieval": touched} if touched else {}
    return Duplicates(twins=twins, touched={NEAR: left_out, SAME: left_out})


def board_of_ranks(ranks: list[int]) -> Any:
    queries = QueryRanks(
        direction="image_retrieval",
        ids=list("pqrs"),
        image_ids=list("pqrs"),
        labels=[""] * 4,
        seeds=(1,),
        ranks=np.array([ranks]),
    )
    measures = [Measure(name=f"{name}_recall@{k}", direction=name, k=k) for name in DIRECTIONS for k in (1, 5)]
    lead = SimpleNamespace(
        name="best",
        answers=dict.fromkeys(DIRECTIONS, SimpleNamespace(queries=queries)),
        mean=lambda name: float(np.mean([rank <= int(name.partition("@")[2]) for rank in ranks])),
    )
    return cast(Any, SimpleNamespace(lead=lead, measures=measures, k=1))


def test_what_was_seen_in_training_is_counted_and_left_out() -> None:
    """Of the ranks 1, 1, 9, 9 half are hits; without the first query a third."""
    board = board_of_ranks([1, 1, 9, 9])
    assert list(duplicate_caveats(board, found_duplicates(), 0.97)) == []
    remembered = "They may be remembered, not understood."
    for count, said in ((1, "1 test image has"), (2, "2 test images have")):
        near, *sets = duplicate_caveats(board, found_duplicates(near=count, touched=frozenset("p")), 0.97)
        assert near.title == "Near-duplicates between train and test"
        assert near.text == (
            f"{said} a training image with a cosine above 0.97 in the centred frozen features. {remembered} "
            "Without them, best: text→image R@1 50.0 becomes 33.3."
        )
        assert [(each.title, each.text) for each in sets] == [
            (
                "zoo has pictures of the training split",
                "2 images of zoo are nearly training images of the runs.",
            )
        ] * (count > 1)
    for count, said in ((1, "1 test caption stands"), (2, "2 test captions stand")):
        (same,) = duplicate_caveats(board, found_duplicates(same=count), 0.97)
        assert same.title == "Captions of the test set in training"
        assert same.text == f"{said} in the training split word for word. {remembered}"
    (same,) = duplicate_caveats(board, found_duplicates(same=4, touched=frozenset("pqrs")), 0.97)
    assert same.text.endswith("Without them, best: text→image R@1 nothing is left.")
    both = found_duplicates(same=1, touched=frozenset("p"))
    both = replace(both, touched={NEAR: {}, SAME: {name: frozenset("p") for name in DIRECTIONS}})
    (same,) = duplicate_caveats(board, both, 0.97)
    assert same.text.endswith("best: image→text R@1 50.0 becomes 33.3, text→image R@1 50.0 becomes 33.3.")


def test_the_gravest_caveats_come_first() -> None:
    """Splits, duplicates, cut-offs, small sets, seeds, encoders, classes, then the user's own notes."""
    guilty = replace(run("a", 0.5, 0.5, noise=0.2), seeds=(1,), record={"config": {"train_split": "test"}})
    board = replace(summary(guilty), measures=())
    pairs = SimpleNamespace(
        image=stores_of(dataset="flickr"),
        text=stores_of(spec="all-minilm"),
        split="test",
        pairs=SimpleNamespace(image_rows=np.arange(5)),
    )
    data = SimpleNamespace(labels=["cat"] * 4 + ["dog"], name="", unlabelled=1)
    config = SimpleNamespace(duplicate_cosine=0.9, ks=(1, 5), notes=("one", "two"))
    duplicates = found_duplicates(near=1, same=1)
    about = SimpleNamespace(board=board, pairs=pairs, sets=[data], config=config, duplicates=duplicates)
    found = find_caveats(cast(Any, about))
    assert [caveat.title for caveat in found] == [
        "The split test was not held out",
        "Near-duplicates between train and test",
        "Captions of the test set in training",
        "Cut-offs beyond the gallery",
        "A small test set",
        "One seed",
        "The text encoder knows captions of this kind",
        "Unequal classes",
        "Images without a label",
        "Note",
        "Note",
    ]
    assert [caveat.text for caveat in found[-2:]] == ["one", "two"]
    assert "a cosine above 0.9 in" in found[1].text
    assert "With 5 test images" in found[3].text
    assert "With 5 test images" in found[4].text


def test_notes_stand_beside_the_numbers(world: World) -> None:
    assert "made from the same source" in page_of(world, world.add_run("cca"), notes=("made from the same source",))
