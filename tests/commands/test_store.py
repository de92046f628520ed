"""`pipeline store ...`: what it prints, which keys its JSON has, and what it refuses."""

import json
from pathlib import Path

import numpy as np
import pytest

from tests.commands.project import DATA, IMAGE, IMAGES, REPORT, TEXT, snapshot
from tests.commands.running import done, pipeline, refused


def test_ls(project: Path) -> None:
    found = done("store", "ls", IMAGE, "--json").json()
    assert {"rows", "layers", "key", "key_digest", "content_digest", "bytes", "shards"} <= set(found)
    assert (found["rows"], found["shards"]) == (IMAGES, 3)
    layers = [(layer["name"], layer["width"], layer["dtype"]) for layer in found["layers"]]
    assert layers == [("mean", 3, "float32"), ("small", 192, "float32"), ("output", 195, "float32")]
    assert found["key"]["encoder"]["name"] == "pixels"
    assert found["bytes"] == sum(path.stat().st_size for path in Path(IMAGE).glob("*.h5"))
    shown = done("store", "ls", IMAGE).out
    for part in (found["key_digest"], found["content_digest"], "48 rows, 3 shards", "test 9, train 30, val 9"):
        assert part in shown


def test_verify(project: Path) -> None:
    assert done("store", "verify", IMAGE).out == f"{IMAGE}: as it was committed (names, sizes and records)\n"
    assert "every byte read" in done("store", "verify", TEXT, "--deep").out
    assert done("store", "verify", IMAGE, "--deep", "--json").json() == []


def test_verify_names_the_damaged_file(own: Path) -> None:
    path = sorted((own / IMAGE).glob("*.h5"))[1]
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    result = pipeline("store", "verify", IMAGE, "--deep", "--json")
    assert result.code == 1
    assert [problem["file"] for problem in result.json()] == [path.name]
    assert result.err.startswith(f"{path.name}: expected sha256 ")


def test_diff(project: Path) -> None:
    assert done("store", "diff", IMAGE, IMAGE).out == "The same ids, the same values, the same key.\n"
    result = pipeline("store", "diff", IMAGE, TEXT, "--json")
    assert result.code == 1
    assert 'key: modality is "image" in the first and "text" in the second' in result.json()


def test_du_status_and_gc(own: Path) -> None:
    sizes = done("store", "du", IMAGE, "--json").json()
    assert sizes["layer:mean"] == IMAGES * 3 * 4
    assert sizes["total"] == sizes["shards"] + sizes["tables"]
    assert "layer:output" in done("store", "du", IMAGE).out
    shards = done("store", "status", IMAGE, "--json").json()
    assert [(shard["start"], shard["stop"], shard["state"]) for shard in shards] == [
        (0, 16, "done"),
        (16, 32, "done"),
        (32, 48, "done"),
    ]
    assert done("store", "status", IMAGE).out == f"{IMAGE}: 3 shards: 3 done, 0 leased, 0 missing\n"
    assert done("store", "gc", IMAGE).out == "Nothing to clean.\n"
    left = own / IMAGE / ".00000-00000000.h5.0123456789abcdef.tmp"
    left.write_bytes(b"of a killed writer")
    shown = f"{IMAGE}/{left.name}: temp file of a dead process, 18 B, could be removed (--delete does it)\n"
    assert done("store", "gc", IMAGE).out == shown
    assert left.exists()
    assert done("store", "gc", IMAGE, "--delete", "--json").json() == [
        {"name": left.name, "bytes": 18, "reason": "temp file of a dead process"}
    ]
    assert not left.exists()


@pytest.mark.parametrize("layout", ["npy", "safetensors", "parquet"])
def test_convert(project: Path, tmp_path: Path, layout: str) -> None:
    result = done("store", "convert", IMAGE, "--format", layout, "--layers", "last", "--out", tmp_path / "out")
    files = [Path(line) for line in result.out.splitlines()]
    assert all(path.is_file() for path in files)
    if layout == "npy":
        assert np.load(tmp_path / "out/output.npy").shape == (IMAGES, 195)
        assert len(json.loads((tmp_path / "out/ids.json").read_text())) == IMAGES
    assert "expected a new file, found" in refused(
        "store", "convert", IMAGE, "--format", layout, "--layers", "last", "--out", tmp_path / "out"
    )


def test_convert_for_clip_retrieval(project: Path, tmp_path: Path) -> None:
    words = ("--format", "clip-retrieval", "--text", TEXT, "--out", tmp_path / "out")
    assert "img_emb" in done("store", "convert", IMAGE, *words).out


def test_ingest(project: Path, tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).normal(size=(3, 4)).astype(np.float32)
    np.save(tmp_path / "v.npy", vectors)
    (tmp_path / "ids.csv").write_text("sample_id,split,content\na,train,a.png\nb,test,b.png\nc,test,c.png\n")
    words = ["store", "ingest", tmp_path / "v.npy", "--modality", "image", "--out", tmp_path / "store"]
    found = done(*words, "--ids", tmp_path / "ids.csv", "--json").json()
    assert (found["rows"], found["splits"]) == (3, {"test": 2, "train": 1})
    done("store", "convert", tmp_path / "store", "--out", tmp_path / "back")
    np.testing.assert_array_equal(np.load(tmp_path / "back/output.npy"), vectors)
    np.save(tmp_path / "v.npy", vectors + 1)
    assert "start over with --replace" in refused(*words, "--ids", tmp_path / "ids.csv")
    assert done(*words, "--ids", tmp_path / "ids.csv", "--replace").out.startswith(f"{tmp_path / 'store'}: 3 rows")


@pytest.mark.parametrize(
    ("ids", "words", "message"),
    [
        ("a\nb\n", [], "ids.txt: expected one id for each vector, found 2 ids for 3 vectors"),
        ("a\nb\nb\n", [], "ids.txt: expected every sample id once, found 'b' twice"),
        ("a\nb\nc\n", ["--modality", "sound"], "expected a modality (image or text), found 'sound'"),
        ("a\nb\nc\n", ["--format", "csv"], "--format: expected a known file format (hdf5, parquet), found 'csv'"),
        ("a\nb\nc\n", ["--out", "ids.txt"], "ids.txt: expected a folder to write store.json into, found File exists"),
        (None, [], "ids.txt: expected a file of ids (.txt, .json or .csv), found no such file"),
    ],
)
def test_ingest_refuses_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ids: str | None, words: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("v.npy", np.zeros((3, 4), np.float32))
    if ids is not None:
        Path("ids.txt").write_text(ids)
    before = snapshot(tmp_path)
    asked = {"--modality": "image", "--ids": "ids.txt", "--out": "store"} | dict([words] if words else [])
    sentence = refused("store", "ingest", "v.npy", *(word for pair in asked.items() for word in pair))
    assert message in sentence
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize("command", ["ls", "verify", "du", "gc", "status", "diff", "convert"])
@pytest.mark.parametrize("path", ["nowhere", "params.yaml", DATA])
def test_what_is_no_store(project: Path, command: str, path: str) -> None:
    more = {"diff": [IMAGE], "convert": ["--out", "x"]}.get(command, [])
    sentence = refused("store", command, path, *more)
    assert sentence.startswith(f"Error: {path}: expected a feature store")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "csv"], "--format: expected a known export layout (npy, safetensors, parquet, clip-retrieval)"),
        (["--layers", "middle"], "--layers: expected a known layer (all, last, mean, small, output), found 'middle'"),
        (
            ["--format", "clip-retrieval", "--text", IMAGE],
            "expected an image store and a text store, found im",
        ),
        (["--out", "params.yaml"], "params.yaml: expected a folder to write mean.npy into, found File exists"),
        (["--out", "params.yaml/x"], "expected a folder to write mean.npy into, found Not a directory"),
    ],
)
def test_convert_refuses(project: Path, words: list[str], message: str) -> None:
    assert message in refused("store", "convert", IMAGE, *([] if "--out" in words else ["--out", "x"]), *words)


def test_an_unfinished_store_is_none(own: Path) -> None:
    (own / IMAGE / "manifest.json").unlink()
    for command in ("ls", "verify", "du"):
        sentence = refused("store", command, IMAGE)
        assert "expected a finished feature store, found 3 of 3 shards; run `pipeline extract` (again)" in sentence
    assert "3 done" in done("store", "status", IMAGE).out


def test_a_report_is_no_store(project: Path) -> None:
    assert "a folder without store.json" in refused("store", "ls", REPORT)
