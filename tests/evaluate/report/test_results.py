"""What the report says of several runs: right in each direction, and honest about having looked at many."""

from typing import Any

import numpy as np
import pytest

from pipeline.evaluate.report.summary import reasons, verdict
from pipeline.evaluate.results import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, Leaderboard, Measure, RunResult, rank_runs
from pipeline.metrics.bootstrap import simultaneous_factor

TEXT, IMAGE = f"{TEXT_RETRIEVAL}_recall@1", f"{IMAGE_RETRIEVAL}_recall@1"
MEASURES = [Measure(name=name, direction=name.split("_recall")[0], k=1) for name in (TEXT, IMAGE)]


def run(
    name: str, text: float, image: float, *, trained: bool = True, noise: float = 0.01, seeds: Any = 0
) -> RunResult:
    """Return a run with these recalls, bootstrap noise of its own, and so much spread over two seeds."""
    rng = np.random.default_rng(len(name) + ord(name[0]))
    values = {TEXT: text, IMAGE: image}
    return RunResult(
        name=name,
        method=name,
        address=name,
        seeds=(1, 2),
        trained=trained,
        answers={},
        values={key: np.array([value - seeds, value + seeds]) for key, value in values.items()},
        replicates={key: value + noise * rng.standard_normal(1000) for key, value in values.items()},
    )


def summary(*runs: RunResult) -> Leaderboard:
    return rank_runs(runs, dict.fromkeys(MEASURES, 0.01), 0.95)


def test_a_clear_winner() -> None:
    found = summary(run("cca", 0.5, 0.5, trained=False), run("info_nce", 0.3, 0.3), run("structure", 0.2, 0.2))
    assert verdict(found).startswith("cca wins on the mean of both directions, 20.0 points ahead of info_nce")
    text = " ".join(reasons(found, 100, 200))
    assert "image→text R@1 cca with 50.0 % (ahead of every other run)" in text
    assert "among all 3 pairs of runs" in text
    assert "No trained loss beats cca, which needs no training; info_nce and structure stay below" in text


def test_each_direction_has_its_own_best() -> None:
    found = summary(run("a", 0.6, 0.2), run("b", 0.2, 0.5))
    text = " ".join(reasons(found, 100, 200))
    assert "image→text R@1 a with 60.0 % (ahead of every other run); text→image R@1 b with 50.0 %" in text
    assert "pairs of runs" not in text


def test_a_lead_that_many_looks_explain_is_none() -> None:
    """One comparison alone is significant at 2.3 standard errors; among 36 pairs it is not."""
    others = [run(name, 0.30, 0.30) for name in ("b", "c", "d", "e", "f", "g", "h", "i")]
    lead = run("a", 0.323, 0.323)
    alone = summary(lead, others[0])
    assert verdict(alone).startswith("a wins")
    many = summary(lead, *others)
    assert many.gap(lead, others[0]).low > 0
    assert verdict(many).startswith("No clear winner: a is 2.3 points ahead of")
    assert "its lead over none of the other 8 is significant" in verdict(many)


def test_a_lead_within_the_spread_over_seeds_is_none() -> None:
    found = summary(run("a", 0.5, 0.5, seeds=0.2), run("b", 0.4, 0.4, seeds=0.2))
    assert "No clear winner" in verdict(found)
    assert "its lead over b is not significant" in verdict(found)


@pytest.mark.parametrize("runs", [2, 3, 9])
def test_factor_is_that_of_the_studentised_range(runs: int) -> None:
    """Independent normal runs: the largest of all pairs' differences follows the studentised range over √2."""
    from scipy.stats import studentized_range

    drawn = np.random.default_rng(0).standard_normal((runs, 40_000))
    expected = studentized_range.ppf(0.95, runs, np.inf) / np.sqrt(2)
    assert simultaneous_factor(drawn, 0.95) == pytest.approx(expected, rel=0.02)


def test_equal_runs_have_no_factor() -> None:
    assert simultaneous_factor(np.ones((3, 100)), 0.95) == 0
    assert simultaneous_factor(np.ones((1, 100)), 0.95) == 0
