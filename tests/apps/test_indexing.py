"""A stored index over a run's images: searched as exact search would, and refused for anything else."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.apps.config import IndexConfig, SearchConfig
from pipeline.apps.export.run import export
from pipeline.apps.indexing import build as build_by
from pipeline.apps.search import open_searcher
from pipeline.apps.searcher import Searcher
from pipeline.errors import KeyMismatchError, MissingExtraError, UserError
from pipeline.files import read_signed
from pipeline.indexes import index as indexes
from pipeline.projectors.base import IdentityProjector, LinearProjector
from pipeline.projectors.run_record import AlignedRun, save_projector
from pipeline.store.samples import Samples
from tests.apps.colours import write_store
from tests.commands.running import done, refused

pytest.importorskip("faiss")
ROWS = 2400


def make(folder: Path, rows: int = ROWS) -> Path:
    """Write a run over random features: every image has a caption, every fifth one is a test image."""
    torch.manual_seed(0)
    names = [f"i{number:05}" for number in range(rows)]
    splits = ["test" if number % 5 == 0 else "val" if number % 5 == 1 else "train" for number in range(rows)]
    images = Samples(names, names, splits, [""] * rows, [f"{name}.png" for name in names])
    texts = Samples([f"{name}#0" for name in names], names, [""] * rows, [""] * rows, [f"about {n}" for n in names])
    stores = {
        "image": [write_store(folder / "image", "image", images, torch.randn(rows, 3), folder)],
        "text": [write_store(folder / "text", "text", texts, torch.randn(rows, 3), folder)],
    }
    for side in ("image", "text"):
        save_projector(folder / "run" / "seed-7", side, IdentityProjector(3, 3))
        save_projector(folder / "run" / "seed-8", side, LinearProjector(3, 3))
    AlignedRun.write(
        folder / "run",
        {
            "method": "identity",
            "config": {"train_split": "train", "validation_split": "val"},
            "layers": {"image": ["output"], "text": ["output"]},
            "stores": stores,
            "dim": 3,
            "seeds": [{"seed": seed, "folder": f"seed-{seed}"} for seed in (7, 8)],
        },
    )
    return folder / "run"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("indexing"))


def build(run: Path, out: Path, **options: Any) -> dict[str, Any]:
    return build_by(IndexConfig(run=run, out=out, **options))


def found(searcher: Searcher, vectors: torch.Tensor) -> list[list[str]]:
    return [[hit.image_id for hit in hits] for hits in searcher.find_images(vectors, 5)]


@pytest.mark.parametrize("kind", ["auto", "ivf", "hnsw", "sq8", "ivfpq"])
def test_found_as_by_exact_search(run: Path, tmp_path: Path, kind: str) -> None:
    made = build(run, tmp_path / "index", kind=kind, recall=0.99, k=5)
    assert made["kind"] == ("flat" if kind == "auto" else kind)
    assert made["recall"]["queries"] == (960 if made["recall"]["of"] == "captions" else 1000)
    vectors = torch.nn.functional.normalize(torch.randn(50, 3), dim=1)
    exact, stored = open_searcher(SearchConfig(run=run)), open_searcher(SearchConfig(run=run, index=tmp_path / "index"))
    pairs = zip(found(exact, vectors), found(stored, vectors), strict=True)
    overlap = sum(len(set(a) & set(b)) for a, b in pairs) / 250
    assert overlap == pytest.approx(made["recall"]["recall"], abs=0.1)  # 50 other queries
    assert made["recall"]["recall"] >= 0.985 or not made["recall"]["reached"]
    assert made["recall"]["reached"] or kind in ("sq8", "ivfpq")  # with three numbers a row, codes are coarse


def test_queries_are_captions_outside_the_test_split(tmp_path: Path) -> None:
    run = make(tmp_path, 3000)
    made = build(run, tmp_path / "index", kind="ivf")
    assert (made["recall"]["of"], made["recall"]["queries"], made["recall"]["tuned_on"]) == ("captions", 1000, 1000)
    few = build(make(tmp_path / "few", 300), tmp_path / "few-index", kind="ivf")
    assert (few["recall"]["of"], few["recall"]["queries"]) == ("images", 150)


def little(memory: int, **options: Any) -> IndexConfig:
    """Return what builds with less memory than may be asked for."""
    config = IndexConfig(**options)
    object.__setattr__(config, "memory", memory)
    return config


def test_memory_decides_the_parts(run: Path, tmp_path: Path) -> None:
    """2,400 rows of 3 numbers take 20 bytes each in lists, which grow by doubling."""
    whole = build_by(little(2400 * 40, run=run, out=tmp_path / "whole", kind="ivf"))
    assert (whole["build"]["parts"], set(whole["files"])) == (1, {"index.faiss"})
    made = build_by(little(2399 * 40, run=run, out=tmp_path / "index", kind="ivf"))
    assert (made["build"]["parts"], set(made["files"])) == (2, {"index.faiss", "index.ivfdata"})
    assert not (tmp_path / "index.parts").exists()
    assert made["recall"]["recall"] >= 0.94
    vectors = torch.nn.functional.normalize(torch.randn(50, 3), dim=1)
    mapped = open_searcher(SearchConfig(run=run, index=tmp_path / "index"))
    mapped.images.effort = mapped.images.most_effort
    assert found(mapped, vectors) == found(open_searcher(SearchConfig(run=run)), vectors)


@pytest.mark.parametrize("kind", ["flat", "hnsw"])
def test_what_must_lie_in_memory_says_so(run: Path, tmp_path: Path, kind: str) -> None:
    with pytest.raises(UserError, match=r"found 28,800 bytes of vectors.*take --kind ivf, sq8 or ivfpq"):
        build_by(little(20_000, run=run, out=tmp_path / "index", kind=kind))
    assert not (tmp_path / "index").exists()


def test_a_split_has_an_index_of_its_own(run: Path, tmp_path: Path) -> None:
    build(run, tmp_path / "index", split="test")
    vectors = torch.eye(3)
    ours = open_searcher(SearchConfig(run=run, split="test", index=tmp_path / "index"))
    assert found(ours, vectors) == found(open_searcher(SearchConfig(run=run, split="test")), vectors)
    with pytest.raises(KeyMismatchError, match='expected split = "test", found split = null'):
        found(open_searcher(SearchConfig(run=run, index=tmp_path / "index")), vectors)


def test_another_projector_or_other_features_are_a_miss(run: Path, tmp_path: Path) -> None:
    build(run, tmp_path / "index")
    with pytest.raises(KeyMismatchError, match=r'expected projector = "\w{64}", found projector'):
        found(open_searcher(SearchConfig(run=run, seed=8, index=tmp_path / "index")), torch.eye(3))
    other = make(tmp_path / "other", 2405)
    with pytest.raises(KeyMismatchError, match=r"expected features = .*content_digest.* found features"):
        found(open_searcher(SearchConfig(run=other, index=tmp_path / "index")), torch.eye(3))


def test_an_export_finds_the_same(run: Path, tmp_path: Path) -> None:
    export(run, tmp_path / "model")
    stores: dict[str, Any] = {"image": [run.parent / "image"], "text": [run.parent / "text"]}
    build(tmp_path / "model", tmp_path / "index", **stores)
    searcher = open_searcher(SearchConfig(run=run, index=tmp_path / "index"))
    assert found(searcher, torch.eye(3)) == found(open_searcher(SearchConfig(run=run)), torch.eye(3))


def test_the_command(run: Path, tmp_path: Path) -> None:
    out = done("index", run, "--out", tmp_path / "index", "--kind", "ivf").out
    assert "ivf of 2,400 images" in out
    assert "recall@10" in out
    made = done("index", run, "--out", tmp_path / "index", "--json").json()  # an older index is replaced
    assert made == read_signed(tmp_path / "index" / "index.json", "an index")
    hits = done("search", run, "red", "--index", tmp_path / "index", "--top", 2, "--json").json()
    assert hits == done("search", run, "red", "--top", 2, "--json").json()
    told = done("index", run, "--out", tmp_path / "codes", "--kind", "ivfpq", "--recall", 1).err
    assert "Recall 1.0 was not reached with all effort: ivfpq finds" in told


def test_mistakes_are_one_sentence(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "index"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "photo.jpg").touch()
    assert "a known index (auto" in refused("index", run, "--out", out, "--kind", "tree")
    assert "found torch; take --kind flat" in refused("index", run, "--out", out, "--kind", "torch")
    assert "a recall above 0 and at most 1" in refused("index", run, "--out", out, "--recall", 95)
    assert "expected 1 or more" in refused("index", run, "--out", out, "--k", 0)
    assert "a megabyte of memory at least" in refused("index", run, "--out", out, "--memory", 0)
    assert "one of the seeds 7, 8" in refused("index", run, "--out", out, "--seed", 1)
    assert "images in split nowhere" in refused("index", run, "--out", out, "--split", "nowhere")
    assert "holds photo.jpg; choose another folder" in refused("index", run, "--out", tmp_path / "mine")
    assert "expected the folder of an index" in refused("search", run, "red", "--index", tmp_path / "mine")
    assert not out.exists()
    assert {path.name for path in tmp_path.iterdir()} == {"mine"}


def test_without_faiss_there_is_an_install_line(run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    none: Callable[[], None] = lambda: None  # noqa: E731
    monkeypatch.setattr(indexes, "find_faiss", none)
    with pytest.raises(MissingExtraError, match="pip install faiss-cpu"):
        build(run, tmp_path / "index")


def test_a_run_that_is_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a finished run's folder"):
        build(tmp_path / "none", tmp_path / "index")
