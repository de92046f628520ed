"""Fuzz: whatever a file holds, reading it ends in success or in one bounded sentence, in time and in memory.

Valid small files are damaged: bytes are flipped, cut out and put in; values of JSON and YAML take other types, sizes
and depths, and signed JSON is signed again, as somebody would who means it. `--hypothesis-profile explore` draws more.
"""

import json
import resource
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import LONGEST, UserError
from pipeline.files import dump_signed
from tests.drawing import draws
from tests.fuzz.readers import READERS, Reader, make

SECONDS = 60
"""Of the processor, for one file of a few kilobytes."""
MEMORY = 2 * 2**30
"""Bytes beyond those that the process has, for the same."""
EXAMPLES = 40


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


ODD: list[Any] = [
    *(None, True, False, 0, -1, -5, 2**31, 2**63, 10**18, 10**400, 22.0, 0.5, 1e308, float("nan"), float("inf")),
    *("", "x", "\0", "a\0b", "\ud800", "../evil.h5", "/etc", "/dev/zero", "é" * 3000, "9" * 5000, "=1+1", "a/b", "."),
    *([], {}, [[[]]], ["a"], [None], {"a": 1}, {"": {}}, nested(50), nested(400)),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with one valid file of every kind."""
    folder = tmp_path_factory.mktemp("fuzz") / "p"
    make(folder)
    return folder


@contextmanager
def bounded() -> Iterator[None]:
    """Bound what happens inside in time of the processor and in memory."""

    def stop(*_: object) -> None:
        raise AssertionError(f"more than {SECONDS} s")

    pages = int(Path("/proc/self/statm").read_text().split()[0]) if Path("/proc/self/statm").exists() else 0
    before, old = resource.getrlimit(resource.RLIMIT_AS), signal.signal(signal.SIGVTALRM, stop)
    if pages:
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    signal.setitimer(signal.ITIMER_VIRTUAL, SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, old)
        resource.setrlimit(resource.RLIMIT_AS, before)


def check(reader: Reader, folder: Path, data: bytes) -> None:
    """Read a file with other bytes; it is as it was afterwards."""
    file = folder / reader.file
    if not file.exists():
        pytest.skip("an extra is not installed")
    before = file.read_bytes()
    file.write_bytes(data)
    try:
        with bounded():
            reader.read(folder)
    except UserError as error:
        assert len(str(error)) < 4 * (LONGEST + 100)  # noqa: PT017 - no error is as good
    finally:
        file.write_bytes(before)
        shutil.rmtree(folder / "imported", ignore_errors=True)


@pytest.mark.parametrize("kind", READERS)
def test_a_whole_file_is_read(kind: str, whole: Path) -> None:
    if not (whole / READERS[kind].file).exists():
        pytest.skip("an extra is not installed")
    try:
        READERS[kind].read(whole)
    finally:
        shutil.rmtree(whole / "imported", ignore_errors=True)


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """Flip, cut out or put in a few bytes."""
    made = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        place = draw(st.integers(0, max(0, len(made) - 1)))
        how = draw(st.sampled_from(["flip", "cut", "put", "end"]))
        if how == "flip" and made:
            made[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "cut":
            del made[place : place + draw(st.integers(1, 60))]
        elif how == "put":
            bits = [
                b"\0",
                b'"',
                b"[",
                b"\xff\xfe",
                b"\xed\xa0\x80",
                b"9" * 5000,
                b'{"a":' * 2000,
                b"\n",
                b",,,,",
                b"\x80",
            ]
            made[place:place] = draw(st.one_of(st.sampled_from(bits), st.binary(min_size=1, max_size=8)))
        else:
            del made[place:]
    return bytes(made)


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=draws(EXAMPLES))
@given(st.data())
def test_damaged_bytes(kind: str, whole: Path, data: st.DataObject) -> None:
    reader = READERS[kind]
    check(reader, whole, data.draw(damaged((whole / reader.file).read_bytes())))


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Yield where the values of JSON are; of a list the first three."""
    yield at
    items = value.items() if isinstance(value, dict) else enumerate(value[:3]) if isinstance(value, list) else ()
    for name, inner in items:
        yield from places(inner, (*at, name))


def changed(value: Any, at: tuple[Any, ...], new: Any) -> Any:
    """Return a copy of JSON with another value in a place."""
    if not at:
        return new
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[at[0]] = changed(copy[at[0]], at[1:], new)
    return copy


def written(value: Any, signed: bool, *, as_yaml: bool) -> bytes:
    """Return the text of JSON or YAML, signed again where it was and can be."""
    if as_yaml:
        return yaml.dump(value, allow_unicode=False).encode("utf-8", "surrogatepass")
    if signed and isinstance(value, dict):
        with suppress(ValueError):
            return dump_signed(value)
    return json.dumps(value).encode()


@pytest.mark.parametrize("kind", [kind for kind, each in READERS.items() if each.file.endswith((".json", ".yaml"))])
@settings(max_examples=draws(3 * EXAMPLES))
@given(st.data())
def test_other_values(kind: str, whole: Path, data: st.DataObject) -> None:
    reader = READERS[kind]
    text, as_yaml = (whole / reader.file).read_bytes(), reader.file.endswith(".yaml")
    value = yaml.safe_load(text) if as_yaml else json.loads(text)
    signed = value.pop("self", None) is not None
    for _ in range(data.draw(st.integers(1, 2))):
        place = data.draw(st.sampled_from(list(places(value))))
        value = changed(value, place, data.draw(st.sampled_from(ODD)))
    check(reader, whole, written(value, signed, as_yaml=as_yaml))
