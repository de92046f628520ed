"""A damaged store or run never becomes a number: align, evaluate and search say which file, and what to do."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.files import dump_signed, read_signed
from tests.commands.project import IMAGE, RUN, TEXT, snapshot
from tests.commands.running import done, refused

STORES = ("--image", IMAGE, "--text", TEXT)
READERS: dict[str, list[str]] = {
    "layers": ["layers", IMAGE, TEXT],
    "align": ["align", *STORES, "--method", "cca", "--out", "x/run"],
    "evaluate": ["evaluate", RUN, *STORES, "--out", "x/report"],
    "search": ["search", RUN, "a red bar"],
    "convert": ["store", "convert", IMAGE, "--out", "x/npy"],
}


def flip(path: Path, place: int = -9) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 255
    path.write_bytes(data)


def flip_values(path: Path) -> None:
    """Flip a bit of every layer's last value: nothing but the checksums can tell."""
    import h5py

    with h5py.File(path, "r") as file:
        ends = [dataset.id.get_offset() + dataset.nbytes - 1 for dataset in file["layers"].values()]
    for end in ends:
        flip(path, end)


@pytest.mark.parametrize("reader", READERS)
def test_a_flipped_byte_of_a_shard(own: Path, reader: str) -> None:
    shard = sorted((own / IMAGE).glob("*.h5"))[0]
    flip_values(shard)
    before = snapshot(own)
    sentence = refused(*READERS[reader])
    assert snapshot(own) == before
    assert sentence.startswith(f"Error: {IMAGE}: expected {shard.name} with layer ")
    assert "delete the named file and run `pipeline extract` again: only that shard is redone" in sentence


def test_the_remedy_of_a_damaged_store_works(own: Path) -> None:
    digest = done("store", "ls", IMAGE, "--json").json()["content_digest"]
    for name in (sorted((own / IMAGE).glob("*.h5"))[0].name, "manifest.json", "samples.parquet", "store.json"):
        path = own / IMAGE / name
        flip(path)
        assert f"{IMAGE}: expected {name} with " in refused(*READERS["align"])
        path.unlink()
        done("extract", "--quiet")
        found = done("store", "ls", IMAGE, "--json").json()
        assert (found["content_digest"], found["shards"]) == (digest, 3)
        assert "every byte read" in done("store", "verify", IMAGE, "--deep").out


def change(**fields: Any) -> Callable[[Path], object]:
    return lambda path: path.write_bytes(dump_signed({**read_signed(path, "a record"), **fields}))


RECORDS: list[tuple[Callable[[Path], object], str]] = [
    (lambda path: path.write_text("{"), "run.json: expected JSON that describes a run, found Expecting property name"),
    (lambda path: path.write_bytes(b"\xff\xfe\x00"), "run.json: expected JSON that describes a run, found "),
    (lambda path: path.write_text("[]"), "run.json: expected a JSON object that describes a run, found list"),
    (change(format=99), "run.json: expected the record of a run, found format should be 1, not 99"),
    (change(seeds=3), "run.json: expected the record of a run, found seeds should be list, not 3"),
    (change(stores=None), "run.json: expected the record of a run, found stores should be dict, not None"),
    (change(seeds=[{"seed": 1, "folder": "../../etc"}]), "expected a folder inside the run's, found '../../etc'"),
    (change(layers={"image": ["gone"], "text": ["output"]}), "expected a known stored layer (mean, small, output)"),
    (lambda path: path.unlink(), f"{RUN}: expected a finished run's folder, found no run.json in it"),
]


@pytest.mark.parametrize(("edit", "message"), RECORDS)
def test_a_damaged_record(own: Path, edit: Callable[[Path], object], message: str) -> None:
    edit(own / RUN / "run.json")
    for reader in ("evaluate", "search"):
        assert message in refused(*READERS[reader])
    assert not (own / "x").exists()


@pytest.mark.parametrize("file", ["image.safetensors", "text.safetensors", "image.json", "text.json"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_a_damaged_projector(own: Path, file: str, damage: str) -> None:
    path = own / RUN / "seed-1" / file
    if damage == "flipped":
        flip(path, 10)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:50])
    else:
        path.unlink()
    for reader in ("evaluate", "search"):
        sentence = refused(*READERS[reader])
        assert file in sentence
        assert "seed-1" in sentence
        assert "run `pipeline align` again" in sentence
    assert not (own / "x").exists()
