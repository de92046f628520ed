"""`pipeline layers` and `pipeline align`: what they print, what they refuse, what survives Ctrl-C."""

from pathlib import Path
from typing import Any

import pytest

from pipeline.align.train import train
from pipeline.files import read_signed
from tests.commands.project import DATA, IMAGE, RUN, TEXT, snapshot, write_params
from tests.commands.running import done, pipeline, refused

QUICK = ("--set", "training.epochs=1", "--set", "training.min_steps=0")


def align(*words: object, image: str | Path = IMAGE, text: str | Path = TEXT, out: str | Path = "x/run") -> list[Any]:
    return ["align", "--image", image, "--text", text, "--out", out, *words]


def test_layers(project: Path) -> None:
    scores = done("layers", IMAGE, TEXT, "--json").json()
    assert (scores["image_layers"], scores["text_layers"]) == (["mean", "small", "output"], ["letters", "output"])
    assert [len(row) for row in scores["score"]] == [2, 2, 2]
    assert {"metric", "k", "rows", "calibrated", "p_value", "chosen"} <= set(scores)
    shown = done("layers", IMAGE, TEXT, "--top", 3).out.splitlines()
    assert shown[0].split("  ")[0] == "image layer"
    assert len(shown) == 2 + 3 + 2
    assert shown[-1].startswith("30 images, k = ")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([TEXT, IMAGE], f"{TEXT}: expected a store of image features, found a store of text features; swap"),
        ([IMAGE, "nowhere"], "nowhere: expected a feature store's folder, found no such folder; make one with"),
        ([IMAGE, TEXT, "--split", "later"], "in the split 'later', found 0 (splits of the images: test, train, val)"),
        ([IMAGE, TEXT, "--top", "0"], "--top: expected 1 or more, found 0"),
    ],
)
def test_layers_refuses(project: Path, words: list[str], message: str) -> None:
    assert message in refused("layers", *words)


def test_align_makes_a_run(own: Path) -> None:
    words = align("--method", "info_nce", "--layers", "small,last", "--seed", 3, "--seed", 4, *QUICK)
    result = done(*words, "--json")
    (run,) = result.json()
    assert run["path"] == "x/run"
    assert run["layers"] == {"image": ["small"], "text": ["output"]}
    assert [entry["seed"] for entry in run["seeds"]] == [3, 4]
    assert run["config"]["recipe"]["training"]["epochs"] == 1
    assert "Seed 4: mean recall" in result.err
    assert read_signed(own / "x/run/run.json", "a run") == {k: v for k, v in run.items() if k != "path"}
    again = done(*words)
    assert again.out == "x/run\n"
    assert "Reused from an earlier run with the same settings and features: seed 3, 4." in again.err
    assert not done(*words, "--quiet").err
    said = refused(*words, "--layers", "last,last")
    assert "x/run: expected a new folder, or this very run, found a run with layers = small,last" in said
    assert again.out == done(*words, "--replace", "--layers", "last,last").out


def test_bare_align_follows_params(own: Path) -> None:
    assert done("align", "--quiet").out.split() == [RUN, "data/2_projectors/info_nce"]
    first = done("align").err.splitlines()[0]
    assert first == f"As params.yaml says: align {IMAGE} and {TEXT} by cca and info_nce into data/2_projectors"
    assert done("align", "--quiet", "--method", "cca").out.split() == [RUN]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--method", "structur"], "--method: expected a known method (info_nce, "),
        (["--method", "structur"], "did you mean 'structure'?"),
        (["--method", "cca", "--method", "asif"], "expected one --method with --out, found cca, asif"),
        (["--layers", "middle,last"], "--layers: expected a known layer (all, last, mean, small, output), found 'mid"),
        (["--layers", "last,9"], "--layers: expected a layer index between -2 and 1, found 9"),
        (
            ["--layers", "a,b,c"],
            "--layers: expected auto, pair, stack, last, grow, spread, or an image layer and a text layer",
        ),
        (["--pairs", "1"], "--pairs: expected 2 or more, found 1"),
        (["--pairs", "1000"], "expected --pairs of 30 at most (the training images that have captions), found 1000"),
        (["--seed", "-1"], "--seed: expected 0 to 9223372036854775807, found -1"),
        (["--seed", "1", "--seed", "1"], "--seed: expected each value once, found 1 twice"),
        (["--set", "nonsense"], "--set: expected name=value, found 'nonsense'"),
        (["--set", "dim=["], "--set: expected a value as YAML writes it, found 'dim=['"),
        (["--set", "dim=0"], "pipeline align: align settings: expected dim above 0, found 0"),
        (["--set", "training.epochs=x"], "training.epochs should be int, not 'x'"),
        (["--set", "trainng.epochs=2"], "trainng is unknown (known: loss, temperature, "),
        (["--set", "trainng.epochs=2"], "); did you mean training?"),
        (["--set", "training=2", "--set", "training.epochs=2"], "--set: expected training set once, whole or by its"),
        (["--device", "tpu"], "--device: expected a device such as cpu, cuda or cuda:1, found 'tpu'"),
        (["--image", "nowhere"], "nowhere: expected a feature store's folder, found no such folder"),
        (["--text", "params.yaml"], "params.yaml: expected a feature store's folder, found a file"),
        (["--image", DATA], f"{DATA}: expected a feature store, found a folder without store.json"),
        (["--text", IMAGE], "expected a store of text features, found a store of image features; swap"),
        (["--out", "params.yaml"], "--out params.yaml: expected a folder to write into, found the file params.yaml"),
        (["--out", "params.yaml/x"], "--out params.yaml/x: expected a folder to write into, found the file params"),
    ],
)
def test_what_is_refused(project: Path, words: list[str], message: str) -> None:
    places = {"--image": IMAGE, "--text": TEXT, "--out": "x/run"}
    if words[0] in places:
        places |= {words[0]: words[1]}
        words = []
    method = [] if "--method" in words else ["--method", "cca"]
    assert message in refused("align", *(word for pair in places.items() for word in pair), *method, *words)
    assert not (project / "x").exists()


def test_flags_that_only_make_sense_together(project: Path) -> None:
    assert "expected --image, --text and --out together" in refused("align", "--image", IMAGE)
    assert "expected a file no.yaml, found none" in refused("align", "--params", "no.yaml")


def test_too_few_pairs(own: Path) -> None:
    path = own / DATA / "images.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(",train,", ",later,"), encoding="utf-8")
    done("extract", "--quiet")
    before = snapshot(own)
    sentence = refused(*align("--method", "cca"))
    assert "expected at least 4 images with captions in the split 'train', found 0 (splits of the images: " in sentence
    assert "check that both stores are of one data set" in sentence
    assert snapshot(own) == before


def test_interrupted_it_keeps_the_finished_seeds(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = align("--method", "info_nce", "--layers", "last", "--seed", 1, "--seed", 2, *QUICK)
    seeds: list[int] = []

    def interrupted(*arguments: Any, **named: Any) -> Any:
        seeds.append(named["seed"])
        if len(seeds) == 2:
            raise KeyboardInterrupt
        return train(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.align.run.train", interrupted)
        result = pipeline(*words)
    assert (result.code, result.out) == (130, "")
    assert result.err.splitlines()[-1].startswith("Interrupted: ")
    assert not (own / "x/run/run.json").exists()
    assert "expected a finished run's folder, found no run.json in it" in refused("search", "x/run", "red")
    assert "Reused from an earlier run with the same settings and features: seed 1." in done(*words).err


def test_params_are_checked(own: Path) -> None:
    write_params(own, methods=[])
    assert "params.yaml: expected --method, or methods in params.yaml, found neither" in refused("align")
