"""A study in miniature: run, run again, its page, its statistics against plain loops, and what it refuses."""

import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from examples.study.claims import judge_claims
from examples.study.config import GridSweep, StudyConfig, load_study, only_grids, sweeps_of
from examples.study.page import write_page
from examples.study.run import cost_sentences, finished_sweeps, run_study
from examples.study.statistics import Group, closed_rows, difference, groups_of, select
from pipeline.errors import UserError
from pipeline.evaluate.config import ZeroShotConfig
from tests.align.conftest import Stores
from tests.sweep.conftest import QUICK

ROOT = Path(__file__).resolve().parents[2]
STUDY: dict[str, Any] = {
    "title": "Small",
    "encoders": {"eye": "no:encoder", "ear": "no:encoder"},
    "data": {},
    "dataset": "pairs",
    "zero_shot": ["zoo"],
    "seeds": [1, 42, 55],
    "proposed": "few",
    "methods": {
        "cca": {"settings": QUICK},
        "few": {"method": "cca", "settings": QUICK | {"dim": 6, "hubness": {"neighbours": 3}}, "layers": "grow,spread"},
        "info_nce": {"settings": QUICK},
        "variance": {"method": "variance_aware", "settings": QUICK},
    },
    "grids": {
        "main": {
            "about": "Which?",
            "encoders": [["eye", "ear"]],
            "pairs": [40, 80],
            "captions": [1, 2],
            "methods": ["cca", "info_nce", "variance"],
        },
        "layers": {
            "about": "Which layers?",
            "encoders": [["eye", "ear"]],
            "pairs": [80],
            "captions": [2],
            "layers": ["last", "auto"],
            "methods": ["cca", "info_nce"],
        },
        "broken": {
            "about": "And broken?",
            "encoders": [["eye", "ear"]],
            "pairs": [80],
            "methods": ["cca", "info_nce", "few"],
            "swapped": [0.0, 0.5],
            "image_noise": [1.0],
            "zero_shot": False,
        },
    },
    "maps": {"grid": "main", "methods": ["cca"], "pairs": 80, "captions": 2, "points": 30},
    "claims": [
        {"claim": "A", "source": "ours", "better": "cca", "than": "info_nce", "measure": "mean_recall", "grid": "main"},
        {"claim": "B", "source": "x", "better": "info_nce", "than": "cca", "measure": "zoo/acc1", "grid": "main"},
        {
            "claim": "C",
            "source": "x",
            "better": "cca",
            "than": "info_nce",
            "measure": "text_retrieval_ece",
            "grid": "main",
            "lower": True,
        },
        {
            "claim": "D | pipe",
            "source": "x",
            "better": "cca",
            "than": "cca",
            "layers": ["auto", "last"],
            "measure": "weak_third_mean_recall",
            "grid": "layers",
        },
        {
            "claim": "E",
            "source": "x",
            "better": "info_nce",
            "than": "best closed form",
            "measure": "mean_recall",
            "grid": "broken",
            "swapped": [0.5],
        },
        {
            "claim": "F",
            "source": "x",
            "better": "cca",
            "than": "info_nce",
            "measure": "mean_recall",
            "grid": "main",
            "pairs": [7],
        },
    ],
    "notes": ["A note."],
}

Write = Callable[[dict[str, Any]], Path]


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory, stores: Stores, class_set: ZeroShotConfig) -> Path:
    """Return a data folder whose features are the synthetic stores."""
    features = tmp_path_factory.mktemp("data") / "1_features"
    for dataset, encoder, store in (
        ("pairs", "eye", stores.image),
        ("pairs", "ear", stores.text),
        ("zoo", "eye", class_set.image[0]),
        ("zoo/ear", "classes", class_set.classes[0]),
    ):
        folder = features / dataset
        folder.mkdir(parents=True, exist_ok=True)
        (folder / encoder).symlink_to(str(store))
    return features.parent


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, data: Path) -> tuple[StudyConfig, Path, list[GridSweep]]:
    """Return a study that was run, its folder and what it gave."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY, sort_keys=False))
    config = load_study(folder / "study.yaml")
    return config, folder / "out", run_study(config, data=data, out=folder / "out")


def test_all_cells_are_done_and_shared_ones_once(done: tuple[StudyConfig, Path, list[GridSweep]], data: Path) -> None:
    config, out, parts = done
    assert [len(each.results) for each in parts] == [3 * 2 * 2 * 3, 2 * 2 * 3, 2 * 3 * 3]
    cells = [path.name for path in (out / "cells" / "eye_x_ear" / "cells").glob("*/*.json")]
    assert len(cells) == 36 + 6  # the cells with the layers `auto` are the main grid's
    again = finished_sweeps(config, data, out)
    assert [each.results for each in again] == [
        [json.loads(json.dumps({**result, "format": 1})) for result in each.results] for each in parts
    ]
    sentences = cost_sentences(config, data, out, 2)
    assert all("0 of them to do" in sentence for sentence in sentences[:3])
    assert len((out / "results.csv").read_text().splitlines()) == 1 + 36 + 12 + 18


def test_page_has_all_its_figures_and_every_number_is_a_cells(
    done: tuple[StudyConfig, Path, list[GridSweep]], data: Path, tmp_path: Path
) -> None:
    config, out, parts = done
    stale = tmp_path / "docs" / "small" / "old.svg"
    stale.parent.mkdir(parents=True)
    stale.write_text("<svg/>")
    page = write_page(config, data=data, out=out, page=tmp_path / "docs" / "small.md", command="make x.yaml")
    text = page.read_text(encoding="utf-8")
    links = re.findall(r"!\[[^\]]*\]\(([^)]+)\)", text)
    assert len(links) >= 5
    for link in links:
        ET.parse(page.parent / link)
    assert {path.name for path in (page.parent / "small").iterdir()} == {Path(link).name for link in links}
    assert "made by `make x.yaml` from" in text.splitlines()[2]
    assert "A note." in text
    assert r"D \| pipe" in text
    assert "not measured" in text  # claim F: no such cells
    assert not re.search(r"\bnan\b|None|/tmp|/home", text)
    held = [each for each in parts[0].results if each["cell"]["row"] == "cca" and each["cell"]["pairs"] == 80]
    values = [100 * each["test"]["mean_recall"] for each in held if each["cell"]["captions"] == 1]
    assert f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}" in text
    first = {path.name: path.read_bytes() for path in (page.parent / "small").iterdir()}
    again = write_page(config, data=data, out=out, page=page, command="make x.yaml").read_text()
    assert again == text
    assert {path.name: path.read_bytes() for path in (page.parent / "small").iterdir()} == first


def test_page_of_a_part_says_what_is_missing(
    done: tuple[StudyConfig, Path, list[GridSweep]], data: Path, tmp_path: Path
) -> None:
    config, out, _ = done
    other = {**STUDY, "seeds": [1, 42, 55, 7]}
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump(other, sort_keys=False))
    assert [len(each.results) for each in finished_sweeps(load_study(path), data, out)] == [36, 12, 18]
    with pytest.raises(UserError, match="finished cells of the study"):
        write_page(config, data=data, out=tmp_path / "empty", page=tmp_path / "page.md")


def group(parts: list[GridSweep], **wanted: Any) -> Group:
    (found,) = select(groups_of(parts), **wanted)
    return found


def test_differences_are_those_of_plain_loops(done: tuple[StudyConfig, Path, list[GridSweep]]) -> None:
    _, _, parts = done
    kind = {"grid": "main", "pairs": 40, "captions": 1}
    a, b = (group(parts, row=row, **kind) for row in ("cca", "info_nce"))
    effect = difference([(a, b)], "mean_recall")
    gaps = [a.results[seed]["test"]["mean_recall"] - b.results[seed]["test"]["mean_recall"] for seed in a.results]
    assert effect.value == pytest.approx(np.mean(gaps), abs=1e-12)
    assert effect.low < effect.value < effect.high
    turned = difference([(b, a)], "mean_recall")
    assert turned[:3] == pytest.approx((-effect.value, -effect.high, -effect.low), abs=1e-12)
    both = difference([(a, b), (b, a)], "mean_recall")
    assert both.value == pytest.approx(0, abs=1e-12)
    assert both.low == pytest.approx(-both.high, abs=1e-12), "no draw differs, which is no proof that none would"
    assert (both.cells, both.ahead) == (2, 1)


def test_intervals_of_one_seed_are_those_of_the_paired_bootstrap(
    done: tuple[StudyConfig, Path, list[GridSweep]],
) -> None:
    """Another implementation, other random numbers: ends agree to a fraction of the interval's width."""
    _, _, parts = done
    kind = {"grid": "main", "pairs": 40, "captions": 1}
    a, b = (group(parts, row=row, **kind) for row in ("cca", "info_nce"))
    one = [Group(each.kind, each.out, {42: each.results[42]}) for each in (a, b)]
    effect = difference([(one[0], one[1])], "image_retrieval_recall@5")
    path = a.out / "cells"
    ranks = [np.load(path / row / "n40-c1-auto-seed42.npz")["image_retrieval"] <= 5 for row in ("cca", "info_nce")]
    owner = np.array(json.loads((a.out / "queries.json").read_text())["caption_image"])
    gap, captions = (np.bincount(owner, each) for each in (ranks[0].astype(float) - ranks[1], np.ones(len(owner))))
    drawn = np.random.default_rng(9).integers(0, len(gap), size=(4000, len(gap)))
    low, high = np.quantile(gap[drawn].sum(axis=1) / captions[drawn].sum(axis=1), [0.025, 0.975])
    assert effect.value == pytest.approx(gap.sum() / captions.sum(), abs=1e-12)
    assert effect.low == pytest.approx(low, abs=0.15 * (high - low))
    assert effect.high == pytest.approx(high, abs=0.15 * (high - low))


def test_metrics_without_ranks_are_compared_seed_by_seed(done: tuple[StudyConfig, Path, list[GridSweep]]) -> None:
    stats = pytest.importorskip("scipy.stats", reason="scipy is the oracle")
    _, _, parts = done
    kind = {"grid": "main", "pairs": 80, "captions": 2}
    a, b = (group(parts, row=row, **kind) for row in ("cca", "info_nce"))
    effect = difference([(a, b)], "modality_gap")
    oracle = stats.ttest_rel(a.values("modality_gap"), b.values("modality_gap")).confidence_interval()
    assert (effect.low, effect.high) == pytest.approx((oracle.low, oracle.high), rel=1e-3)
    with pytest.raises(UserError, match="a metric of the cells"):
        difference([(a, b)], "beauty")


def test_verdicts_follow_the_intervals(done: tuple[StudyConfig, Path, list[GridSweep]]) -> None:
    config, _, parts = done
    tested = {each.claim.claim: each for each in judge_claims(config, groups_of(parts))}
    for each in tested.values():
        if each.effect is None:
            continue
        low, high = each.effect.low, each.effect.high
        rule = "holds here" if low > 0 else "the opposite holds here" if high < 0 else "no difference to be seen here"
        assert each.verdict == rule
    assert tested["F"].verdict == "not measured"
    assert {name: each.effect.cells for name, each in tested.items() if each.effect} == {
        "A": 4,
        "B": 4,
        "C": 4,
        "D | pipe": 1,
        "E": 1,
    }
    calibration = tested["C"].effect
    values = {
        row: np.mean([g.values("text_retrieval_ece") for g in select(groups_of(parts), grid="main", row=row)])
        for row in ("cca", "info_nce")
    }
    assert calibration is not None
    assert calibration.value == pytest.approx(values["info_nce"] - values["cca"], abs=1e-12)


def test_the_proposed_row_is_no_rival_of_itself(done: tuple[StudyConfig, Path, list[GridSweep]]) -> None:
    config, _, _ = done
    assert closed_rows(config) == ["cca"]


def test_weak_captions_are_those_that_agree_least(done: tuple[StudyConfig, Path, list[GridSweep]]) -> None:
    from examples.study.statistics import Counted, read_queries

    _, _, parts = done
    queries = read_queries(parts[0].sweep.out)
    kept = queries.kept(Counted("image_retrieval", 1, weak=True))
    agreement = np.array(queries.data["agreement"])
    assert kept.sum() == round(len(kept) / 3)
    assert agreement[kept].max() <= agreement[~kept].min()


def test_example_is_a_study() -> None:
    config = load_study(ROOT / "examples" / "study" / "study.yaml")
    parts = sweeps_of(config, Path("data"), Path("out"))
    assert len({part.encoders for part in parts}) == 7
    assert config.seeds == (1, 42, 55, 100, 430)
    assert [part.grid for part in sweeps_of(only_grids(config, ["main"]), Path("data"), Path("out"))] == ["main"]


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"methods": "cca"}, "methods, a mapping of rows"),
        ({"methods": {"cca": 3}}, r"methods\.cca"),
        ({"methods": {"cca": None, "info_nce": {"method": "magic"}}}, "magic|a known method"),
        ({"grids": {"main": {"about": "x", "encoders": [["eye"]], "pairs": [40]}}}, r"pairs \[image, text\]"),
        ({"grids": {"main": {"about": "x", "encoders": [["eye", "nose"]], "pairs": [40]}}}, "a known encoder"),
        ({"grids": {"main": {"about": "x", "encoders": [["eye", "ear"]], "pairs": ["many"]}}}, "pairs"),
        ({"grids": {}}, "a known grid"),
        ({"baseline": "nobody"}, "a known method"),
        ({"seeds": "all"}, "seeds should be"),
        ({"colour": "red"}, "colour is unknown"),
        ({"claims": [{**STUDY["claims"][0], "grid": "moon"}]}, "a known grid"),
        ({"claims": [{"claim": "x"}]}, "is missing"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_hostile_studies_are_one_sentence(tmp_path: Path, data: Path, changes: dict[str, Any], sentence: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(yaml.safe_dump({**STUDY, "maps": None, "claims": [], **changes}))
    with pytest.raises(UserError, match=sentence) as caught:
        sweeps_of(load_study(path), data, tmp_path)
    assert "\n" not in caught.value.sentence()


@pytest.mark.parametrize("text", ["", "- a", "title: [", "\x00"], ids=["empty", "list", "broken", "control"])
def test_what_is_no_study_is_one_sentence(tmp_path: Path, text: str) -> None:
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=r"study\.yaml"):
        load_study(path)
