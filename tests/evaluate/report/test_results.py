"""What the report says of several runs: right in each direction, and honest about having looked at many."""

import csv
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UnknownNameError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.leaderboard import Leaderboard, rank_runs
from pipeline.evaluate.report.summary import reasons, verdict
from pipeline.evaluate.results import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, Measure, RunResult
from pipeline.evaluate.run import evaluate
from tests.drawing import draws
from tests.evaluate.conftest import World

TEXT, IMAGE = f"{TEXT_RETRIEVAL}_recall@1", f"{IMAGE_RETRIEVAL}_recall@1"
MEASURES = [Measure(name=name, direction=name.split("_recall")[0], k=1) for name in (TEXT, IMAGE)]
IDS = [*range(500)]
IDS = [*range(500)]
ANSWERS = dict.fromkeys(
    (TEXT_RETRIEVAL, IMAGE_RETRIEVAL), SimpleNamespace(queries=SimpleNamespace(image_ids=IDS, ids=IDS))
)


def run(
    name: str, text: float, image: float, *, trained: bool = True, noise: float = 0.01, seeds: Any = 0, method: str = ""
) -> RunResult:
    """Return a run with these recalls, bootstrap noise of its own, and so much spread over two seeds."""
    rng = np.random.default_rng(len(name) + ord(name[0]))
    values = {TEXT: text, IMAGE: image}
    return RunResult(
        name=name,
        method=method or name,
        address=name,
        seeds=(1, 2),
        trained=trained,
        answers=cast(Any, ANSWERS),
        values={key: np.array([value - seeds, value + seeds]) for key, value in values.items()},
        replicates={key: value + noise * rng.standard_normal(1000) for key, value in values.items()},
    )


def summary(*runs: RunResult, baselines: tuple[str, ...] = ()) -> Leaderboard:
    return rank_runs(runs, dict.fromkeys(MEASURES, 0.01), 0.95, baselines)


def test_the_first_beats_the_baselines() -> None:
    found = summary(run("cca", 0.5, 0.5, trained=False), run("info_nce", 0.3, 0.3), run("structure", 0.2, 0.2))
    assert verdict(found).startswith("cca beats info_nce: it puts a right caption first for 50.0 % of images")
    text = " ".join(reasons(found, 100, 200))
    assert "image→text R@1 cca with 50.0 %" in text
    assert "+20.0 points over info_nce (interval +1" in text
    assert "The other runs against cca: info_nce and structure stay below it." in text
    assert (
        "Declared beforehand: every run is tested against the closed forms (cca) and plain info_nce (info_nce), all "
        "runs of each, on the mean of both directions; 95 % intervals and p of differences are corrected for these 2 "
        "by Bonferroni's method, whatever else stands on this page." in text
    )


def test_all_closed_forms_are_to_be_beaten() -> None:
    """None of them is picked as the best: whichever is nearest on the test images decides."""
    closed = [run(name, 0.3, 0.3, trained=False) for name in ("cca", "asif", "pls", "ridge")]
    found = summary(run("fewpairs", 0.5, 0.5, trained=False), *closed)
    assert verdict(found).startswith("fewpairs beats the closed forms (4): it puts")
    near = summary(run("fewpairs", 0.5, 0.5, trained=False), *closed, run("procrustes", 0.495, 0.495))
    assert verdict(near).startswith(
        "No clear winner: fewpairs comes first, but its lead over procrustes is not significant. It puts"
    )
    assert "against the closed forms (5)" not in " ".join(reasons(near, 100, 100))


@settings(max_examples=draws(60))
@given(
    lead=st.floats(0.0, 0.08),
    spread=st.floats(0.0, 0.02),
    third=st.sampled_from(["info_nce", "cca", "asif", "structure", "zzz"]),
    level=st.floats(0.0, 1.0),
    noise=st.sampled_from([0.0, 1e-4, 0.01, 0.2]),
    pair=st.sampled_from([("fewpairs", "cca"), ("structure", "info_nce"), ("x", "y")]),
)
def test_a_third_run_leaves_the_verdict_of_two_others_alone(
    lead: float, spread: float, third: str, level: float, noise: float, pair: tuple[str, str]
) -> None:
    """Whatever it is called, however good, bad or noisy: the difference, its interval, its p and the verdict stay."""
    a, b = run(pair[0], 0.3 + lead, 0.3 + lead, seeds=spread), run(pair[1], 0.3, 0.3, seeds=spread)
    alone = summary(a, b)
    beside = summary(a, b, run(f"{third}-too", level, level, noise=noise, method=third))
    for measure in ("mean_recall", TEXT, IMAGE):
        assert beside.gap(a, b, measure) == alone.gap(a, b, measure)
        assert beside.settled(a, b, measure) == alone.settled(a, b, measure)
        assert beside.settled(b, a, measure) == alone.settled(b, a, measure)


def test_a_bad_baseline_does_not_undo_a_win() -> None:
    """The case that was met: a run that hardly varies made the largest studentised difference of all pairs huge."""
    pair = run("fewpairs", 0.335, 0.335, trained=False), run("info_nce", 0.3, 0.3)
    assert verdict(summary(*pair)).startswith("fewpairs beats info_nce")
    for bad in (run("asif", 0.01, 0.01, noise=1e-4, trained=False), run("noise", 0.0, 0.0, noise=0.3)):
        assert verdict(summary(*pair, bad)).startswith("fewpairs beats ")


def test_a_third_run_leaves_the_rows_of_two_others_alone(world: World) -> None:
    def rows(*runs: Any) -> list[dict[str, str]]:
        stated: dict[str, Any] = {"image": (world.image,), "text": (world.text,), "examples": 0, "probes": False}
        evaluate(EvaluateConfig(runs=runs, out=world.root / "out", **stated))
        with (world.root / "out" / "differences.csv").open(encoding="utf-8") as stream:
            return list(csv.DictReader(stream))

    pair = world.add_run("structure", noise=0.1), world.add_run("info_nce")
    alone = rows(*pair)
    assert {row["against"] for row in alone} == {"info_nce"}
    for third in (world.add_run("asif", noise=9.0, steps=0), world.add_run("other", noise=0.01)):
        assert [row for row in rows(*pair, third) if row in alone] == alone


def test_baselines_are_named() -> None:
    runs = [run("a", 0.5, 0.5, method="x"), run("b", 0.4, 0.4, method="x"), run("c", 0.3, 0.3, method="cca")]
    assert "No run of a baseline is here: this comparison is descriptive." in reasons(summary(*runs[:2]), 9, 9)[0]
    assert verdict(summary(*runs[:2])).startswith("a comes first, 10.0 points ahead of b: it puts")
    assert verdict(summary(*runs, baselines=("b",))).startswith("a beats b: it puts")
    assert verdict(summary(*runs, baselines=("b", "c"))).startswith("a beats b and c: it puts")
    said = " ".join(reasons(summary(*runs, baselines=("b",)), 9, 9))
    assert "is tested against b, all runs of each, on" in said
    assert "p of differences need no correction" in said
    both = summary(*runs, baselines=("x", "c"))
    assert [[each.name for each in baseline.runs] for baseline in both.baselines] == [["a", "b"], ["c"]]
    with pytest.raises(UnknownNameError, match=r"a known run to compare with \(a, b, c, x, cca\), found 'bb'; did you"):
        summary(*runs, baselines=("bb",))


def test_intervals_and_p_are_corrected_for_what_was_declared() -> None:
    """Against the plain bootstrap: the level and p of one of two, three, … baselines, present or not."""
    a, b, c, d = (run(name, 0.3 + at, 0.3 + at) for name, at in (("a", 0.03), ("b", 0.0), ("c", -0.1), ("d", -0.2)))
    drawn = np.mean([a.replicates[name] - b.replicates[name] for name in (TEXT, IMAGE)], axis=0)
    plain = 2 * ((drawn <= 0).sum() + 1) / 1001
    for names in (("b",), ("b", "c"), ("b", "c", "d"), ()):
        number = len(names) or 2
        gap = summary(a, b, c, d, baselines=names).gap(a, b)
        assert (gap.low, gap.high) == pytest.approx(np.quantile(drawn, [0.025 / number, 1 - 0.025 / number]))
        assert gap.p_value == pytest.approx(min(1, number * plain))


def test_too_few_samples_show_nothing() -> None:
    """The smallest p of B samples is 2/(B + 1): times many baselines it is above 5 %, and nothing is significant."""
    few = [
        replace(each, replicates={name: rows[:100] for name, rows in each.replicates.items()})
        for each in (run("a", 0.9, 0.9), run("b", 0.1, 0.1), run("c", 0.1, 0.1), run("d", 0.1, 0.1))
    ]
    assert summary(*few, baselines=("b", "c")).settled(few[0], few[1])
    assert not summary(*few, baselines=("b", "c", "d")).settled(few[0], few[1])


def test_one_image_settles_nothing() -> None:
    """A difference that one image shows is the same in every sample; it is no proof."""
    one = dict.fromkeys(ANSWERS, SimpleNamespace(queries=SimpleNamespace(image_ids=["x"], ids=["x"])))
    a, b = (replace(run(name, at, at, noise=0), answers=cast(Any, one)) for name, at in (("a", 1.0), ("info_nce", 0.0)))
    found = summary(a, b)
    assert not found.settled(a, b)
    assert found.gap(a, b).p_value == 1
    assert found.interval(a)[0] < 0.5


def test_each_direction_has_its_own_best() -> None:
    found = summary(run("a", 0.6, 0.2), run("b", 0.2, 0.5))
    text = " ".join(reasons(found, 100, 200))
    assert "image→text R@1 a with 60.0 %; text→image R@1 b with 50.0 %" in text


def test_a_lead_within_the_spread_over_seeds_is_none() -> None:
    found = summary(run("a", 0.5, 0.5, seeds=0.2), run("info_nce", 0.4, 0.4, seeds=0.2))
    assert "No clear winner" in verdict(found)
    assert "its lead over info_nce is not significant" in verdict(found)
