"""One side left as it is (LiT, ShareLock): trained, saved, loaded and evaluated like any other run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.align.config import AlignConfig
from pipeline.align.methods import make_recipe
from pipeline.align.run import align
from pipeline.errors import UnknownNameError, UserError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.evaluate.run import evaluate
from pipeline.metrics.arrays import matrix
from pipeline.projectors.base import unit_rows
from pipeline.projectors.run_record import AlignedRun
from pipeline.store.reader import FeatureStore
from tests.align.conftest import WIDTHS, Stores

TRAINING = {"max_steps": 80, "validations": 4, "learning_rate": 0.02}


def run(stores: Stores, out: Path, **settings: Any) -> AlignedRun:
    changes = {"dim": 8, "training": TRAINING, **settings}
    config = AlignConfig(
        image=(stores.image,),
        text=(stores.text,),
        out=out,
        method=settings.pop("method", "info_nce"),
        settings={name: value for name, value in changes.items() if name != "method"},
        seeds=(1,),
        layers="block1,block1",
        device="cpu",
    )
    return AlignedRun.open(align(config))


@pytest.mark.parametrize(("locked", "trained"), [("image", "text"), ("text", "image")])
@pytest.mark.parametrize("kind", ["linear", "residual_mlp"])
def test_locked_side_is_left_alone_and_decides_the_width(
    stores: Stores, tmp_path: Path, locked: str, trained: str, kind: str
) -> None:
    opened = run(stores, tmp_path / "run", **{f"{locked}_projector": "identity", "projector": kind})
    assert opened.dim == WIDTHS[locked]
    features = FeatureStore.open(getattr(stores, locked)).read("block1")
    torch.testing.assert_close(matrix(opened.encode(locked, features), "embeddings"), unit_rows(features))
    assert opened.projector(trained, 1).name == kind
    assert opened.trainings[0].validation["image_retrieval_recall@5"] > 4 * 5 / 60


def test_locked_side_is_evaluated(stores: Stores, tmp_path: Path) -> None:
    opened = run(stores, tmp_path / "run", text_projector="identity", projector="residual_mlp")
    found = evaluate(
        EvaluateConfig(
            runs=(opened.path,), image=(stores.image,), text=(stores.text,), out=tmp_path / "report", bootstrap=100
        )
    )
    assert found["image_retrieval_recall@10"] > 2 * 10 / 40


@pytest.mark.parametrize("method", ["structure", "combined"])
def test_structure_of_a_locked_side_costs_nothing(stores: Stores, tmp_path: Path, method: str) -> None:
    opened = run(stores, tmp_path / "run", image_projector="identity", method=method)
    assert opened.trainings[0].validation["text_retrieval_recall@5"] > 4 * 5 / 60


def test_settings_of_the_projector_are_for_the_trained_side(stores: Stores, tmp_path: Path) -> None:
    settings = {"projector": "residual_mlp", "image_projector": "identity", "projector_settings": {"depth": 1}}
    assert run(stores, tmp_path / "run", **settings).projector("text", 1).settings()["depth"] == 1


@pytest.mark.parametrize(("method", "kind"), [("lit", "linear"), ("sharelock", "residual_mlp")])
def test_presets_leave_the_image_side_alone(stores: Stores, tmp_path: Path, method: str, kind: str) -> None:
    opened = run(stores, tmp_path / "run", method=method)
    assert [opened.projector(side, 1).name for side in ("image", "text")] == ["identity", kind]
    assert opened.dim == WIDTHS["image"]
    assert opened.trainings[0].validation["image_retrieval_recall@5"] > 4 * 5 / 60


def test_two_kinds_of_projector(stores: Stores, tmp_path: Path) -> None:
    opened = run(stores, tmp_path / "run", image_projector="linear", text_projector="residual_low_rank")
    assert [opened.projector(side, 1).name for side in ("image", "text")] == ["linear", "residual_low_rank"]
    assert opened.dim == 8


def test_nothing_to_train_is_refused() -> None:
    with pytest.raises(UserError, match="projector with something to train on one side at least, found identity"):
        make_recipe("info_nce", {"projector": "identity"})


def test_start_from_cca_wants_linear_sides() -> None:
    with pytest.raises(UserError, match="projector linear where training starts from CCA, found linear and identity"):
        make_recipe("info_nce", {"start": "cca", "text_projector": "identity"})


def test_unknown_projector_of_a_side_lists_the_known_ones(stores: Stores, tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"known projector .*identity.*found .identiti"):
        run(stores, tmp_path / "run", image_projector="identiti")
