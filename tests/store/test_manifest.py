"""A manifest whose digest fits is not believed for that: names, counts and sizes that cannot be are refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DamagedStoreError, UserError
from pipeline.files import dump_signed
from pipeline.store.reader import FeatureStore
from tests.store.building import fill, header

Change = Callable[[dict[str, Any]], object]


def resign(store: Path, change: Change) -> None:
    path = store / "manifest.json"
    body = {name: value for name, value in json.loads(path.read_bytes()).items() if name != "self"}
    change(body)
    path.write_bytes(dump_signed(body))


CHANGES: list[tuple[Change, str]] = [
    (lambda body: body.update(rows=-5), "-5 rows, and 22 in the shards"),
    (lambda body: body.update(rows="22"), "rows '22'"),
    (lambda body: body.update(rows=22.0), "rows 22.0"),
    (lambda body: body["shards"][0].update(bytes=True), "bytes True"),
    (lambda body: body["layers"][0].update(name=["x"]), r"name \['x'\]"),
    (lambda body: body["layers"][0].update(name="a\0b"), r"name 'a\\x00b'"),
    (lambda body: body["header"].update(layer_names="ab"), "'ab' in place of texts"),
    (lambda body: body["shards"][0].update(rejected=[["a", 1]]), r"\['a', 1\] in place of texts"),
    (lambda body: body["header"]["key"].update(pooling=3), "pooling 3"),
    (lambda body: body["shards"][0].update(index=0.0), "index 0.0"),
    (lambda body: body.update(provenance=["x"]), "list as provenance"),
    (lambda body: body.update(header=None), "NoneType"),
    (lambda body: body.pop("layers"), "the field layers, found none"),
    (lambda body: body["shards"][0].update(name="../evil.h5"), r"'\.\./evil\.h5' as the file of shard 0"),
    (lambda body: body["shards"][0].update(name="/etc/passwd"), "'/etc/passwd' as the file of shard 0"),
    (lambda body: body["shards"].append(body["shards"][0]), "a shard file that is named twice"),
    (lambda body: body["shards"].pop(), "22 rows, and 19 in the shards"),
    (lambda body: body["shards"][0].update(rows=10**15, stop=10**15), "bytes of values in the"),
    (lambda body: body["layers"][0].update(width=10**12), "another width of blocks.0 in a shard"),
    (lambda body: body["layers"][0].update(width=-1), "width -1 of blocks.0"),
    (lambda body: body["layers"][0].update(dtype="object"), "'object'"),
    (lambda body: body["header"].update(items=0), "found 0"),
    (lambda body: body["header"].update(file_format="pickle"), "'pickle'"),
    (lambda body: body["shards"][0].update(more="x" * 10**6), "unexpected keyword"),
]


@pytest.mark.parametrize(("change", "said"), CHANGES)
def test_signed_nonsense_is_refused(tmp_path: Path, change: Change, said: str) -> None:
    store = tmp_path / "store"
    fill(store, header())
    resign(store, change)
    with pytest.raises(DamagedStoreError, match=said) as caught:
        FeatureStore.open(store)
    assert len(str(caught.value)) < 1000


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    store = tmp_path_factory.mktemp("manifest") / "store"
    fill(store, header())
    return store


@given(data=st.data())
def test_any_value_in_any_field_is_read_or_refused(stored: Path, data: st.DataObject) -> None:
    path = stored / "manifest.json"
    sound = path.read_bytes()

    def change(body: dict[str, Any]) -> None:
        place: Any = body
        while True:
            names = sorted(place) if isinstance(place, dict) else range(len(place))
            name = data.draw(st.sampled_from(names))
            if not place[name] or not isinstance(place[name], (dict, list)) or data.draw(st.booleans()):
                place[name] = data.draw(ANY)
                return
            place = place[name]

    refused: list[UserError] = []
    try:
        resign(stored, change)
        assert FeatureStore.open(stored).rows == 22
    except UserError as error:
        refused.append(error)
    finally:
        path.write_bytes(sound)
    assert all(len(error.sentence()) < 5000 for error in refused)
