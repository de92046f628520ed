"""From raw data to a search at URLs, each step on a machine that shares nothing with the others but the bucket."""

from pathlib import Path

import pytest

from tests.commands.encoders import PIXELS, WORDS
from tests.commands.project import DATA, make_source
from tests.commands.running import done, refused
from tests.storage.conftest import Machine
from tests.storage.objects_by_hand import delete, get, names, put

ALIGN = ("--method", "info_nce", "--seed", "1", "--set", "training.epochs=2", "--quiet")
EVALUATE = ("--quiet", "--json")


def extract(data: object, out: object, encoder: str) -> object:
    words = ("--dataset", data, "--encoder", encoder, "--layers", "all", "--out", out, "--shard-rows", "16")
    return done("extract", *words, "--quiet", "--json").json()["content_digest"]


def align(at: str) -> None:
    done("align", "--image", f"{at}/pixels", "--text", f"{at}/words", "--out", f"{at}/run", *ALIGN)


def evaluate(at: str) -> object:
    stores = ("--image", f"{at}/pixels", "--text", f"{at}/words")
    return done("evaluate", f"{at}/run", *stores, "--out", f"{at}/report", *EVALUATE).json()


def upload(server: str, folder: Path, url: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            put(server, f"{url}/{path.relative_to(folder).as_posix()}", path.read_bytes())


def test_the_whole_path(
    tmp_path: Path, bucket: str, s3: str, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make_source(tmp_path)
    done("data", "import", "shapes.csv", "--out", DATA, "--quiet")
    here = str(tmp_path / "here")
    local = [extract(DATA, f"{here}/pixels", PIXELS), extract(DATA, f"{here}/words", WORDS)]
    align(here)
    metrics = evaluate(here)

    upload(s3, tmp_path / DATA, f"{bucket}/raw/shapes")
    cache = machine("extracts images")
    assert extract(f"{bucket}/raw/shapes", f"{bucket}/pixels", PIXELS) == local[0]
    assert len(list(cache.rglob("*.png"))) == 48
    machine("extracts texts")
    assert extract(f"{bucket}/raw/shapes", f"{bucket}/words", WORDS) == local[1]
    assert {"manifest.json", "classes/manifest.json"} < set(names(s3, f"{bucket}/words"))
    machine("aligns")
    align(bucket)
    assert names(s3, f"{bucket}/run")[0:2] == ["layer_pairs.json", "run.json"]
    assert str(tmp_path) not in get(s3, f"{bucket}/run/run.json").decode()
    cache = machine("evaluates")
    assert evaluate(bucket) == metrics
    assert 0 < len(list(cache.rglob("*.png"))) < 48  # the pictures that the report shows, and no others
    assert "report.html" in names(s3, f"{bucket}/report")
    page = get(s3, f"{bucket}/report/report.html").decode()
    assert f"{bucket}/pixels" in page
    assert str(cache) not in page

    machine("searches")
    asked = ("red circle", "--top", "3", "--json")
    found = done("search", f"{bucket}/run", *asked).json()
    assert found == done("search", f"{here}/run", *asked).json()
    table = done("search", f"{bucket}/run", "red circle", "--top", "3").out
    assert f"{bucket}/raw/shapes" in table

    machine("goes on")
    out = done(
        "align", "--image", f"{bucket}/pixels", "--text", f"{bucket}/words", "--out", f"{bucket}/run", *ALIGN[:-1]
    )
    assert "Reused from an earlier run with the same settings and features: seed 1" in out.err
    assert out.out.strip() == f"{bucket}/run"
    again = done("extract", "--dataset", f"{bucket}/raw/shapes", "--encoder", PIXELS, "--out", f"{bucket}/pixels")
    assert again.out.startswith(f"{bucket}/pixels: nothing to do, 48 images are there")
    assert f"{bucket}/pixels: as it was committed" in done("store", "verify", f"{bucket}/pixels").out

    delete(s3, f"{bucket}/raw/shapes/images.csv")
    put(s3, f"{bucket}/raw/shapes/images.csv", b"image_id,file\nx,../../pixels/store.json\n")
    words = ("--encoder", PIXELS, "--out", f"{bucket}/other")
    assert "'../../pixels/store.json' (it climbs out with ..)" in refused(
        "extract", "--dataset", f"{bucket}/raw/shapes", *words
    )


def test_a_url_where_none_is_understood(machine: Machine) -> None:
    said = refused("data", "import", "table.csv", "--out", "s3://bucket/raw")
    assert (
        said == "Error: out: expected a local path, found s3://bucket/raw; work in a folder, and copy from or to there."
    )


def test_a_bucket_that_is_not_there(s3: str, machine: Machine) -> None:
    said = refused("store", "ls", "s3://no-such-bucket/store")
    assert said.startswith("Error: s3://no-such-bucket/store: expected a bucket that is there, found none of this name")


def test_a_store_that_is_not_there(bucket: str, machine: Machine) -> None:
    said = refused("store", "ls", f"{bucket}/nothing")
    assert said.startswith(f"Error: {bucket}/nothing: expected a feature store, found a folder without store.json")


def test_no_credentials(s3: str, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    said = refused("store", "ls", "s3://bucket/store")
    assert said.startswith("Error: s3://bucket/store: expected credentials, found none that can be used")
    assert "set AWS_ACCESS_KEY_ID" in said


def test_a_password_in_a_url() -> None:
    said = refused("store", "ls", "s3://key:secret@bucket/store")
    assert "expected a URL without a password" in said
    assert "secret" not in said
