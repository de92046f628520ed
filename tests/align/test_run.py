"""The whole stage on synthetic stores: every method learns, seeds resume, the record is whole."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.align import run
from pipeline.align.config import AlignConfig
from pipeline.align.recipe import METHODS
from pipeline.align.run import align
from pipeline.config import build
from pipeline.errors import UserError
from pipeline.progress import Update
from pipeline.projectors.run_record import AlignedRun
from pipeline.settings import declared
from pipeline.store.reader import FeatureStore
from tests.align.conftest import Stores

SHORT: dict[str, Any] = {"dim": 8, "training": {"max_steps": 60, "validations": 4, "learning_rate": 0.01}}


def config_for(stores: Stores, out: Path, **changes: Any) -> AlignConfig:
    values: dict[str, Any] = {"method": "info_nce", "settings": SHORT, "seeds": (1,), "device": "cpu", "replace": True}
    return AlignConfig(image=(stores.image,), text=(stores.text,), out=out, **(values | changes))


@pytest.mark.parametrize("method", METHODS)
def test_every_method_beats_chance(stores: Stores, tmp_path: Path, method: str) -> None:
    opened = AlignedRun.open(align(config_for(stores, tmp_path / "run", method=method)))
    found = opened.trainings[0].validation
    chance = 5 / 60
    assert found["image_retrieval_recall@5"] > 4 * chance
    assert found["text_retrieval_recall@5"] > 4 * chance


def test_run_is_whole(stores: Stores, tmp_path: Path) -> None:
    opened = AlignedRun.open(align(config_for(stores, tmp_path / "run", method="combined", seeds=(1, 42))))
    assert opened.method == "combined"
    assert opened.seeds == (1, 42)
    assert opened.layers == {"image": ("block1",), "text": ("block1",)}
    assert opened.record["layers_by_store"] == {"image": [["block1"]], "text": [["block1"]]}
    assert opened.dim == 8
    assert opened.config["recipe"]["structure"]["weight"] == 10.0
    store = FeatureStore.open(stores.image)
    opened.check("image", [store.key.to_json()])
    assert opened.stores["image"][0].content_digest == store.content_digest
    scores = json.loads((opened.folder / "layer_pairs.json").read_text())
    assert scores["chosen"] == [1, 1]
    assert opened.encode("image", store.read("block1"), seed=42).shape == (300, 8)


def test_history_follows_the_training(stores: Stores, tmp_path: Path) -> None:
    path = align(config_for(stores, tmp_path / "run", method="combined"))
    rows = [json.loads(line) for line in (path / "seed-1" / "history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[0]["structure_weight"] == 0
    assert rows[-1]["structure_weight"] == 10
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert all(row["lambda_i2t"] + row["lambda_t2i"] == pytest.approx(1) for row in rows)
    assert all(0 < row["diagonal_features"] <= 1 for row in rows)
    validated = [row["step"] for row in rows if "val_image_retrieval_recall@1" in row]
    assert validated == [15, 30, 45, 60]


def test_same_seed_gives_the_same_weights(stores: Stores, tmp_path: Path) -> None:
    state = torch.random.get_rng_state()
    runs = [
        AlignedRun.open(align(config_for(stores, tmp_path / name, method="info_nce_mlp", seeds=seeds)))
        for name, seeds in (("a", (7,)), ("b", (3, 7)))
    ]
    one, two = (opened.projector("image", 7).state_dict() for opened in runs)
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert runs[0].trainings[0].validation == runs[1].trainings[1].validation
    other = runs[1].projector("image", 3).state_dict()
    assert not torch.equal(one["head.weight"], other["head.weight"])
    assert torch.equal(state, torch.random.get_rng_state())


def test_killed_between_seeds_goes_on(stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = AlignedRun.open(align(config_for(stores, tmp_path / "whole", seeds=(1, 2, 3))))
    trained: Callable[..., Any] = vars(run)["train"]

    def dies_at_seed_2(*arguments: Any, seed: int, **more: Any) -> Any:
        if seed == 2:
            raise KeyboardInterrupt
        return trained(*arguments, seed=seed, **more)

    monkeypatch.setattr(run, "train", dies_at_seed_2)
    config = config_for(stores, tmp_path / "killed", seeds=(1, 2, 3))
    with pytest.raises(KeyboardInterrupt):
        align(config)
    assert not (tmp_path / "killed" / "run.json").exists()
    (tmp_path / "killed" / "seed-2").mkdir()

    seeds: list[int] = []

    def counted(*arguments: Any, seed: int, **more: Any) -> Any:
        seeds.append(seed)
        return trained(*arguments, seed=seed, **more)

    monkeypatch.setattr(run, "train", counted)
    said: list[Update] = []
    again = AlignedRun.open(align(config, said.append))
    assert seeds == [2, 3]
    assert any("Reused" in str(sentence) and "seed 1" in str(sentence) for sentence in said)
    assert [entry.validation for entry in again.trainings] == [entry.validation for entry in whole.trainings]
    align(config)
    assert seeds == [2, 3]


ANOTHER: dict[str, dict[str, Any]] = {
    "image": {},  # the same store elsewhere; so is the text store, and the run
    "text": {},
    "out": {},
    "method": {"method": "dcl"},
    "settings": {"settings": SHORT | {"dim": 6}},
    "layers": {"layers": "last"},
    "layer_metric": {"layer_metric": "cka"},
    "stack": {"stack": 1},
    "pairs": {"pairs": 100},
    "captions_per_image": {"captions_per_image": 1},
    "seeds": {"seeds": (2,)},
    "train_split": {"train_split": "test"},
    "validation_split": {"validation_split": "test"},
    "unpaired_image": {},  # a further store, below
    "unpaired_text": {},
    "unpaired": {"unpaired": "own"},
    "unpaired_splits": {"unpaired_splits": ("test",)},
    "device": {"device": "auto"},
    "log_to": {"log_to": "dvclive"},
    "replace": {"replace": False},
}
"""Setting → another value of it."""


def digests(folder: Path) -> list[str]:
    """Return what the run's layers and seeds were made for."""
    seeds = [f"seed-{entry['seed']}/seed.json" for entry in json.loads((folder / "run.json").read_text())["seeds"]]
    found = [folder / name for name in ("layer_pairs.json", *seeds)]
    return [json.loads(path.read_text())["digest"] for path in found if path.exists()]


def test_every_setting_has_another_value() -> None:
    assert list(ANOTHER) == list(declared(AlignConfig))
    assert {name for name, about in declared(AlignConfig).items() if about.changes_bytes is None} == set()


@pytest.mark.parametrize("name", ANOTHER)
def test_a_setting_that_changes_bytes_is_trained_anew(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """And one that does not is reused; scores of layers, which choose what seeds are trained on, count as well."""
    monkeypatch.setattr(run, "need_logger", lambda logger: None)
    monkeypatch.setattr(run, "log_seeds", lambda logger, folder, seeds: folder)
    stated: dict[str, Any] = {"layers": "stack"} if name == "stack" else {"layers": "pair"}
    if name.startswith("unpaired"):
        stated |= {"method": "cca", "pairs": 60, "unpaired": "rest"}
    first = align(config_for(stores, tmp_path / "run", **stated))
    before = digests(first)
    folder = first.rename(tmp_path / "moved") if name == "out" else first
    config = config_for(stores, folder, **(stated | ANOTHER[name]))
    if name in ("unpaired_image", "unpaired_text"):
        config = config_for(stores, folder, **stated, **{name: (getattr(stores, name.removeprefix("unpaired_")),)})
    if name in ("image", "text"):
        copy = shutil.copytree(getattr(stores, name), tmp_path / name)
        config = build(AlignConfig, vars(config) | {name: [copy]}, where="test")
    said: list[Update] = []
    align(config, said.append)
    changes = bool(declared(AlignConfig)[name].changes_bytes)
    assert (digests(folder) != before) == changes
    if name != "layer_metric":
        assert any("Reused" in str(sentence) for sentence in said) != changes


def test_other_features_are_trained_anew(stores: Stores, make_stores: Any, tmp_path: Path) -> None:
    def shift(side: str, layers: dict[str, Any]) -> None:
        layers["block1"][0] += 1

    said: list[Update] = []
    align(config_for(stores, tmp_path / "run"))
    align(config_for(make_stores(change=shift), tmp_path / "run"), said.append)
    assert not any("Reused" in str(sentence) for sentence in said)


def test_older_revision_is_trained_anew(stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    align(config_for(stores, tmp_path / "run"))
    monkeypatch.setattr(run, "REVISION", 10**6)
    said: list[Update] = []
    align(config_for(stores, tmp_path / "run"), said.append)
    assert not any("Reused" in str(sentence) for sentence in said)


def test_closed_form_needs_one_seed_unless_pairs_are_drawn(stores: Stores, tmp_path: Path) -> None:
    all_pairs = AlignedRun.open(align(config_for(stores, tmp_path / "all", method="cca", seeds=(1, 2))))
    drawn = AlignedRun.open(align(config_for(stores, tmp_path / "drawn", method="cca", seeds=(1, 2), pairs=50)))
    assert all_pairs.seeds == (1,)
    assert drawn.seeds == (1, 2)
    weights = [drawn.projector("image", seed).state_dict()["matrix"] for seed in (1, 2)]
    assert not torch.allclose(weights[0], weights[1])


@pytest.mark.parametrize(
    ("layers", "image", "text"),
    [
        ("last", ("output",), ("output",)),
        ("0,-1", ("block0",), ("output",)),
        ("block1,output", ("block1",), ("output",)),
        ("1:,last", ("block1", "output"), ("output",)),
        ("stack", ("block1", "output"), ("block1", "output")),
    ],
)
def test_layers(stores: Stores, tmp_path: Path, layers: str, image: tuple[str, ...], text: tuple[str, ...]) -> None:
    config = config_for(stores, tmp_path / "run", layers=layers, stack=2)
    opened = AlignedRun.open(align(config))
    assert opened.layers == {"image": image, "text": text}
    assert (opened.record["layer_scores"] is None) == (layers != "stack")
    width = 24 * len(image)
    assert opened.projector("image").d_in == width


def test_several_stores_are_concatenated(stores: Stores, make_stores: Any, tmp_path: Path) -> None:
    config = AlignConfig(
        image=(stores.image, make_stores().image),
        text=(stores.text,),
        out=tmp_path / "run",
        method="info_nce",
        settings=SHORT,
        seeds=(1,),
        device="cpu",
    )
    opened = AlignedRun.open(align(config))
    assert opened.layers["image"] == ("0/block1", "1/block1")
    assert opened.record["layers_by_store"]["image"] == [["block1"], ["block1"]]
    assert opened.projector("image").d_in == 48


def test_unknown_device_is_one_sentence(stores: Stores, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="a device such as cpu"):
        align(config_for(stores, tmp_path / "run", device="quantum"))


def test_closed_form_records_a_temperature_fitted_on_validation_alone(
    stores: Stores, make_stores: Any, tmp_path: Path
) -> None:
    """It is where the likelihood of validation captions peaks; other features of test images change nothing."""
    hidden = np.array(FeatureStore.open(stores.image).samples.split) == "test"

    def spoil(side: str, layers: dict[str, Any]) -> None:
        if side == "image":
            layers["output"][hidden] *= -3

    opened = AlignedRun.open(align(config_for(stores, tmp_path / "run", method="cca", layers="last")))
    spoiled = make_stores(change=spoil)
    again = AlignedRun.open(align(config_for(spoiled, tmp_path / "again", method="cca", layers="last")))
    assert opened.record["temperature_source"] == opened.record["seeds"][0]["temperature_source"] == "validation"
    fitted = opened.record["temperature"]
    assert fitted == opened.record["seeds"][0]["temperature"] == again.record["temperature"]
    image, text = FeatureStore.open(stores.image), FeatureStore.open(stores.text)
    rows = np.flatnonzero(np.array(image.samples.split) == "val")
    place = {image.samples.image_id[row]: number for number, row in enumerate(rows)}
    captions = np.array([row for row, name in enumerate(text.samples.image_id) if name in place])
    owner = [place[text.samples.image_id[row]] for row in captions]
    scores = (
        opened.encode("text", text.read("output")[captions]) @ opened.encode("image", image.read("output")[rows]).T
    ).double()

    def nll(temperature: float) -> float:
        return float(torch.nn.functional.cross_entropy(scores / temperature, torch.tensor(owner)))

    assert nll(fitted) < min(nll(fitted * 1.02), nll(fitted / 1.02))


@pytest.mark.parametrize(("learned", "source"), [(True, "learned"), (False, "fixed")])
def test_trained_runs_say_where_their_temperature_comes_from(
    stores: Stores, tmp_path: Path, learned: bool, source: str
) -> None:
    settings = SHORT | {"temperature": {"initial": 0.05, "learned": learned}}
    opened = AlignedRun.open(align(config_for(stores, tmp_path / "run", settings=settings)))
    assert opened.record["seeds"][0]["temperature_source"] == source
    assert (opened.record["temperature"] == pytest.approx(0.05)) == (not learned)


def test_another_run_is_not_overwritten(stores: Stores, tmp_path: Path) -> None:
    """The same command goes on, with more seeds too; other settings or stores need --replace, and nothing is lost."""
    out = tmp_path / "run"
    first = replace(config_for(stores, out, method="cca", layers="last"), replace=False)
    align(first)
    before = {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()}
    shutil.copytree(stores.image, tmp_path / "copy")
    for change, said in (
        ({"method": "ridge"}, "a run with method = cca \\(asked for: ridge\\); name another --out, or make"),
        ({"layers": "block1"}, "layers = last"),
        ({"pairs": 50}, "pairs = None"),
        ({"settings": {}}, "settings = {'dim': 8"),
    ):
        with pytest.raises(UserError, match=f"expected a new folder, or this very run, found .*{said}"):
            align(replace(first, **change))
    assert {path: path.read_bytes() for path in sorted(out.rglob("*")) if path.is_file()} == before
    align(replace(first, image=(tmp_path / "copy",), seeds=(1, 2)))  # the same features, elsewhere
    align(replace(first, method="ridge", replace=True))
    assert AlignedRun.open(out).method == "ridge"
    assert "replace" not in AlignedRun.open(out).config


def test_somebody_elses_folder_is_not_written_into(stores: Stores, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_bytes(b"")
    with pytest.raises(UserError, match=r"a new folder, or a run's, found a folder that holds cat.jpg and no run"):
        align(replace(config_for(stores, tmp_path / "photos"), replace=False))
