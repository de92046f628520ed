"""Two evaluations joined by query id: against a paired bootstrap written as a loop, and hostile folders."""

from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import UserError
from pipeline.evaluate.compare import compare
from pipeline.evaluate.output import FILE, read_queries, write_queries
from pipeline.evaluate.results import QueryRanks


def ranks_table(
    seed: int, ids: list[str], seeds: tuple[int, ...] = (1, 2), direction: str = "image_retrieval"
) -> QueryRanks:
    rng = np.random.default_rng(seed)
    return QueryRanks(
        direction=direction,
        ids=ids,
        image_ids=[name.split("#")[0] for name in ids],
        labels=[""] * len(ids),
        seeds=seeds,
        ranks=rng.integers(1, 5, size=(len(seeds), len(ids))),
    )


def folder(path: Path, **tables: QueryRanks) -> Path:
    path.mkdir()
    write_queries(path / FILE, tables.items())
    return path


IDS = [f"im{i}#{j}" for i in range(30) for j in range(1 + i % 3)]


def test_written_and_read_back(tmp_path: Path) -> None:
    tables = {"a": ranks_table(0, IDS), "b": ranks_table(1, IDS[:5], seeds=(9,))}
    read = read_queries(folder(tmp_path / "x", **tables))
    for name, table in tables.items():
        found = read[name]["image_retrieval"]
        assert (found.ids, found.image_ids, found.seeds) == (table.ids, table.image_ids, table.seeds)
        np.testing.assert_array_equal(found.ranks, table.ranks)


def test_difference_and_interval_against_a_loop(tmp_path: Path) -> None:
    a, b = ranks_table(0, IDS), ranks_table(1, list(reversed(IDS)), seeds=(1, 2, 3))
    rows = compare(folder(tmp_path / "a", x=a), folder(tmp_path / "b", y=b), ks=(2,), samples=3000, seed=5)
    assert [(row["run"], row["metric"], row["queries"], row["left_out"]) for row in rows] == [
        ("x → y", "image_retrieval_recall@2", len(IDS), 0)
    ]
    hits_a = dict(zip(a.ids, (a.ranks <= 2).mean(0), strict=True))
    hits_b = dict(zip(b.ids, (b.ranks <= 2).mean(0), strict=True))
    difference = {name: hits_b[name] - hits_a[name] for name in IDS}
    assert rows[0]["difference"] == pytest.approx(np.mean(list(difference.values())))
    assert rows[0]["b"] - rows[0]["a"] == pytest.approx(rows[0]["difference"])
    rng = np.random.default_rng(0)
    images = sorted({name.split("#")[0] for name in IDS})
    members = {image: [name for name in IDS if name.split("#")[0] == image] for image in images}
    drawn = []
    for _ in range(3000):
        names = [name for image in rng.choice(images, len(images)) for name in members[image]]
        drawn.append(np.mean([difference[name] for name in names]))
    assert (rows[0]["low"], rows[0]["high"]) == pytest.approx(np.quantile(drawn, [0.025, 0.975]), abs=0.02)


def test_only_shared_queries_count(tmp_path: Path) -> None:
    rows = compare(folder(tmp_path / "a", x=ranks_table(0, IDS)), folder(tmp_path / "b", x=ranks_table(1, IDS[10:])))
    assert {row["queries"] for row in rows} == {len(IDS) - 10}
    assert {row["left_out"] for row in rows} == {10}
    assert {row["run"] for row in rows} == {"x"}


def test_equal_evaluations_do_not_differ(tmp_path: Path) -> None:
    """What 30 images do not show may still be: other images may tell them apart by z² / (30 + z²) either way."""
    table = ranks_table(0, IDS)
    reach = 1.959964**2 / (30 + 1.959964**2)
    for row in compare(folder(tmp_path / "a", x=table), folder(tmp_path / "b", x=table)):
        assert (row["difference"], row["p_value"]) == (0, 1)
        assert (row["low"], row["high"]) == pytest.approx((-reach, reach), rel=1e-5)


def test_hostile_folders_are_one_sentence(tmp_path: Path) -> None:
    good = folder(tmp_path / "good", x=ranks_table(0, IDS), z=ranks_table(0, IDS))
    other = folder(tmp_path / "other", y=ranks_table(0, IDS))
    elsewhere = folder(tmp_path / "elsewhere", y=ranks_table(0, ["u", "v"]))
    text = folder(tmp_path / "text", y=ranks_table(0, IDS, direction="text_retrieval"))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / FILE).write_bytes(b"PAR1 no")
    repeated = folder(tmp_path / "repeated", y=ranks_table(0, ["u", "u"]))
    for a, b, message in (
        (good, tmp_path / "none", "expected the file per_query.parquet, found none"),
        (good, broken, "expected a table of ranks by query"),
        (good, other, "expected runs of the same name, or one run each, found x, z and y"),
        (other, elsewhere, "expected queries that both evaluations asked"),
        (other, text, "expected a direction that both evaluated"),
        (other, repeated, "expected the same queries for every seed"),
    ):
        with pytest.raises(UserError, match=message):
            compare(a, b)
