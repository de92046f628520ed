"""`pipeline extract` as a user sees it: what it says, what it prints as JSON, what it refuses, what survives Ctrl-C."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.commands import encoders
from tests.commands.encoders import PIXELS, WORDS
from tests.commands.project import DATA, IMAGE, IMAGES, TEXT, snapshot
from tests.commands.running import done, pipeline, refused

KEYS = {"path", "what", "rows", "layers", "computed_shards", "skipped_shards", "rejected", "nonfinite", "seconds"}


def extract(encoder: str, out: str | Path, *words: object, data: str | Path = DATA) -> list[object]:
    return ["extract", "--dataset", data, "--encoder", encoder, "--out", out, *words]


def test_json_is_all_that_stands_on_standard_output(own: Path) -> None:
    result = done(*extract(PIXELS, "x/pixels", "--shard-rows", 10, "--json"))
    found = result.json()
    assert set(found) >= KEYS | {"content_digest", "cost", "classes"}
    assert (found["path"], found["rows"], found["layers"]) == ("x/pixels", IMAGES, ["mean", "small", "output"])
    assert (found["computed_shards"], found["skipped_shards"]) == (-(-IMAGES // 10), 0)
    assert f"{IMAGES} images × 3 layers" in result.err  # the cost, before the work
    quiet = done(*extract(PIXELS, "x/quiet", "--json", "--quiet"))
    assert not quiet.err
    assert quiet.json()["content_digest"] == found["content_digest"]


def test_a_second_run_does_nothing(project: Path) -> None:
    result = done("extract", "--quiet")
    assert result.out.count("nothing to do") == 3  # images, captions, class prompts
    plain = done("extract", "--json", "--quiet").json()
    assert [each["computed_shards"] for each in plain] == [0, 0]
    assert plain[1]["classes"]["computed_shards"] == 0


def test_a_dry_run_tells_the_cost_and_writes_nothing(project: Path) -> None:
    cost = done(*extract(PIXELS, "x/pixels", "--dry-run", "--json")).json()["cost"]
    assert cost["rows"] == IMAGES
    assert f"{IMAGES} images × 3 layers" in done(*extract(PIXELS, "x/pixels", "--dry-run")).out


def test_more_layers_later_compute_only_those(own: Path) -> None:
    done(*extract(PIXELS, "x/p", "--layers", "last", "--quiet"))
    before = snapshot(own / "x/p")
    found = done(*extract(PIXELS, "x/p", "--layers", "mean,output", "--json", "--quiet")).json()
    assert found["layers"] == ["mean", "output"]
    assert {name: state for name, state in snapshot(own / "x/p").items() if name.endswith(".h5")}.items() >= {
        name: state for name, state in before.items() if name.endswith(".h5")
    }.items()
    assert "nothing to do" in done(*extract(PIXELS, "x/p", "--layers", "0", "--quiet")).out
    layers = [layer["name"] for layer in done("store", "ls", "x/p", "--json").json()["layers"]]
    assert layers == ["mean", "output"]


def test_another_key_is_refused_and_replaced_on_demand(own: Path) -> None:
    other = "tests.commands.encoders:OtherPixels"
    before = snapshot(own)
    assert f"{IMAGE}: expected encoder.version = 2, found encoder.version = 1; extract to another --out" in refused(
        *extract(other, IMAGE, "--quiet")
    )
    assert snapshot(own) == before
    assert f"{IMAGES} images" in done(*extract(other, IMAGE, "--replace", "--quiet")).out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--encoder", "foo:bar"], "expected a known encoder family (timm, open_clip, hf, st, package) or a module"),
        (["--encoder", "bar"], "--encoder: expected FAMILY:NAME, such as timm:NAME"),
        (["--encoder", ""], "--encoder: expected FAMILY:NAME, such as timm:NAME"),
        (["--encoder", "package:nothing"], "expected a known packaged encoder (efficientnet-lite0, "),
        (["--encoder", "timm:vit_smal_patch14"], "expected a known model of timm (vit_small_"),
        (["--encoder", "timm:/nowhere"], "timm:/nowhere: expected a folder /nowhere, found none"),
        (["--encoder", "st:./x"], "st:./x: expected a folder x, found none"),
        (["--encoder", "tests.commands.encoders:Pixelz"], "expected a known encoder class (Pixels, OtherPixels, "),
        (["--layers", "middle"], "--layers: expected a known layer (all, last, mean, small, output), found 'middle'"),
        (["--layers", "9"], "--layers: expected a layer index between -3 and 2, found 9"),
        (["--layers", ""], "--layers: expected layers such as all, last, 0,5,-1, 4:12 or names, found nothing"),
        (["--pool", "strange"], "--pool: expected a known pooling (auto, cls, mean, "),
        (["--dtype", "fp8"], "pipeline extract: --dtype: expected a known dtype (fp32, fp16, bf16), found 'fp8'"),
        (["--storage-dtype", "int8"], "--storage-dtype: expected a known storage dtype"),
        (["--format", "csv"], "--format: expected a known file format (hdf5, parquet), found 'csv'"),
        (["--device", "tpu"], "--device: expected a device such as cpu, cuda or cuda:1, found 'tpu'"),
        (["--modality", "audio"], "modality should be one of image, text, not 'audio'"),
        (["--modality", "text"], "expected an encoder of text, found one of image; leave --modality out"),
        (["--batch-size", "0"], "--batch-size: expected 1 or more, found 0"),
        (["--max-rejected", "2"], "--max-rejected: expected 0 to 1, found 2.0"),
        (["--prompt", "a"], "expected no --prompt and no --max-length for images, found 'a'"),
        (["--dataset", "nowhere"], "nowhere: expected a raw data set's folder, found none; make one with"),
        (["--dataset", "shapes.csv"], "shapes.csv: expected a raw data set's folder, found none"),
        (["--dataset", "data"], "data: expected images.csv or captions.csv, found 0_raw, 1_features, 2_projectors"),
        (["--out", "params.yaml"], "params.yaml: expected a folder to write store.json into, found File exists"),
        (["--out", "params.yaml/x"], "params.yaml/x: expected a folder to write store.json into, found Not a dir"),
    ],
)
def test_what_is_refused(project: Path, words: list[str], message: str) -> None:
    asked = {"--dataset": DATA, "--encoder": PIXELS, "--out": "x/out"} | {words[0]: words[1]}
    assert message in refused("extract", *(word for pair in asked.items() for word in pair))
    assert not (project / "x").exists()


def test_flags_that_only_make_sense_together(project: Path) -> None:
    assert "expected --dataset, --encoder and --out together" in refused("extract", "--dataset", DATA)
    both = refused(*extract(PIXELS, "x/out", "--batch-size", 0, "--jpeg", "small"))
    assert "expected valid settings, found --jpeg should be a known way to decode JPEGs (exact, reduced), not " in both
    assert "--batch-size should be 1 or more, not 0" in both
    assert "expected a file no.yaml, found none; run the command in a checkout" in refused(
        "extract", "--params", "no.yaml"
    )


def broken(data: Path, count: int) -> None:
    for place, path in enumerate(sorted((data / "images").glob("*.png"))[:count]):
        path.write_bytes((b"", b"no picture", path.read_bytes()[:60])[place % 3])


def test_a_broken_image_is_listed_and_too_many_stop_the_run(own: Path) -> None:
    broken(own / DATA, 2)
    result = done(*extract(PIXELS, "x/two", "--quiet"))
    assert f"{IMAGES - 2} images" in result.out
    assert "2 items left out, see x/two/rejected.csv" in result.out
    table = (own / "x/two/rejected.csv").read_text(encoding="utf-8").splitlines()
    assert table[0] == "sample_id,reason"
    assert len(table) == 3
    broken(own / DATA, 9)
    sentence = refused(*extract(PIXELS, "x/nine", "--quiet"))
    assert "x/nine/rejected.csv: expected at most 5.0% broken images, found" in sentence
    assert "allow more with --max-rejected" in sentence
    assert not (own / "x/nine/manifest.json").exists()
    assert "9 items left out" in done(*extract(PIXELS, "x/nine", "--max-rejected", "0.5", "--quiet")).out


def replace_text(data: Path, file: str, old: str, new: str) -> None:
    path = data / file
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_an_empty_caption_is_listed(own: Path) -> None:
    replace_text(own / DATA, "captions.csv", ",a small red circle", ",  ")
    done(*extract(WORDS, "x/words", "--quiet"))
    (reason,) = (own / "x/words/rejected.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert reason.endswith(",the caption is empty")


EDITS: list[tuple[str, tuple[str, str, str] | str, str]] = [
    (PIXELS, ("images.csv", "file", "fiel"), "images.csv: expected the columns image_id, file, found image_id, fiel"),
    (WORDS, ("captions.csv", "caption", "text"), "captions.csv: expected the columns"),
    (PIXELS, ("images.csv", ",circle", ",sphere"), "images.csv, line 2: expected a class of classes.json"),
    (PIXELS, ("images.csv", "images/small_red_circle", "../../small"), "images.csv, line 2: expected a path inside"),
    (PIXELS, ("images.csv", "small_red_circle.png,", "large_red_circle.png,"), "expected every image_id once"),
    (WORDS, ("captions.csv", ",small_red_circle.png,", ",nobody,"), "captions.csv, line 2: expected an image_id of"),
    (PIXELS, "images.csv", "expected images, found none in images.csv"),
]


@pytest.mark.parametrize(("encoder", "edit", "message"), EDITS)
def test_tables_that_do_not_fit(own: Path, encoder: str, edit: Any, message: str) -> None:
    if isinstance(edit, str):
        (own / DATA / edit).unlink()
    else:
        replace_text(own / DATA, *edit)
    assert message in refused(*extract(encoder, "x/out", "--quiet"))
    assert not (own / "x").exists()


def test_no_captions_and_no_classes(own: Path) -> None:
    (own / DATA / "captions.csv").unlink()
    assert "3 class prompts" in done(*extract(WORDS, "x/prompts", "--quiet")).out
    assert "expected captions" in refused(*extract(WORDS, "x/words", "--texts", "captions", "--quiet"))
    (own / DATA / "classes.json").unlink()
    assert "found none" in refused(*extract(WORDS, "x/words", "--quiet"))
    assert not (own / "x/words").exists()


def test_interrupted_it_keeps_the_finished_shards(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = extract(PIXELS, "x/p", "--shard-rows", 16, "--batch-size", 16, "--quiet")
    calls = []
    encode = encoders.Pixels.encode

    def interrupted(self: Any, prepared: Any, layers: Any) -> Any:
        calls.append(len(prepared))
        if len(calls) == 4:  # two of a new store's first rows, then the second batch
            raise KeyboardInterrupt
        return encode(self, prepared, layers)

    with monkeypatch.context() as patch:
        patch.setattr(encoders.Pixels, "encode", interrupted)
        result = pipeline(*words)
    assert (result.code, result.out) == (130, "")
    assert result.err == "Interrupted: what was finished stays; run the same command again to go on.\n"
    assert not [name for name in snapshot(own / "x/p") if name.endswith((".tmp", ".lock")) or name == "manifest.json"]
    assert "expected a finished feature store" in refused("store", "ls", "x/p")
    done_shards = sum(shard["state"] == "done" for shard in done("store", "status", "x/p", "--json").json())
    assert done_shards < 3
    found = done(*words, "--json").json()
    assert (found["computed_shards"], found["skipped_shards"]) == (3 - done_shards, done_shards)
    assert not done("store", "verify", "x/p", "--deep").err
    shutil.rmtree(own / "x")


def test_texts_of_the_project(project: Path) -> None:
    found = done("store", "ls", TEXT, "--json").json()
    assert found["rows"] == 2 * IMAGES
    assert found["classes"]["rows"] == 3
