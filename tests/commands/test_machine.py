"""What the machine lacks (space, memory, open files) is one sentence with the place and what is needed, exit code 1.

A limit of the process (RLIMIT_FSIZE) stands for the full disk: the system refuses the same writes, without their path.
"""

import errno
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.commands.encoders import PIXELS
from tests.commands.project import DATA, IMAGE, RUN, TEXT, snapshot
from tests.commands.running import done, pipeline
from tests.test_errors import program

WRITERS: dict[str, tuple[list[str], str]] = {
    "data import": (["data", "import", "shapes.csv", "--out", "x/raw"], "x/raw"),
    "extract": (["extract", "--dataset", DATA, "--encoder", PIXELS, "--out", "x/store"], "x/store"),
    "align": (["align", "--image", IMAGE, "--text", TEXT, "--method", "cca", "--out", "x/run"], "x/run"),
    "evaluate": (["evaluate", RUN, "--image", IMAGE, "--text", TEXT, "--out", "x/report"], "x/report"),
    "export": (["export", RUN, "--to", "x/model"], "x/model"),
    "index": (["index", RUN, "--kind", "hnsw", "--out", "x/index"], "x/index"),
    "search": (["search", RUN, "red", "--show", "x/sheet.png"], "x/sheet.png"),
    "convert": (["store", "convert", IMAGE, "--out", "x/npy"], "x/npy"),
    "sweep": (["sweep", "--image", IMAGE, "--text", TEXT, "--method", "cca", "--out", "x/sweep"], "x/sweep"),
}
"""A command that writes, and where to."""


@contextmanager
def limited(what: int, soft: int) -> Iterator[None]:
    """Set a soft limit of this process for a while."""
    before = resource.getrlimit(what)
    resource.setrlimit(what, (soft, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(what, before)


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk(writer: str, own: Path) -> None:
    words, place = WRITERS[writer]
    before = snapshot(own)
    with limited(resource.RLIMIT_FSIZE, 300):
        result = pipeline(*words)
    assert result.code == 1, result.err
    sentence = result.err.splitlines()[-1]
    assert sentence.startswith("Error: ")
    assert place in sentence
    assert "File too large" in sentence or "requested and" in sentence  # the second is numpy's word for it
    assert "again" in sentence
    assert "Traceback" not in result.err
    kept = {name: found for name, found in snapshot(own).items() if not name.startswith("x/")}
    assert kept == {name: found for name, found in before.items() if not name.startswith("x/")}


LACKS: dict[str, tuple[BaseException, str]] = {
    "space": (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), "expected free space, found No space left on device"),
    "quota": (OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)), "expected free space, found Disk quota exceeded"),
    "read-only": (
        OSError(errno.EROFS, os.strerror(errno.EROFS)),
        "expected a place that can be written, found Read",
    ),
    "files": (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), "expected one more open file, found Too many open"),
    "memory": (MemoryError("Unable to allocate 9 TiB"), "expected more memory, found Cannot allocate memory"),
}


@pytest.mark.parametrize("lack", LACKS)
@pytest.mark.parametrize("writer", ["align", "evaluate", "export"])
def test_whatever_the_machine_lacks(writer: str, lack: str, own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words, place = WRITERS[writer]
    error, expected = LACKS[lack]

    def fail(*_: Any, **__: Any) -> None:
        raise type(error)(*error.args)

    monkeypatch.setattr(Path, "write_bytes", fail)
    monkeypatch.setattr(Path, "write_text", fail)
    result = pipeline(*words)
    assert result.code == 1, result.err
    sentence = result.err.splitlines()[-1]
    assert expected in sentence
    assert lack == "memory" or place in sentence


def test_pictures_are_not_left_out_for_want_of_open_files(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store without them would be finished, and nobody would look for them again."""
    read = Path.read_bytes

    def fail(path: Path) -> bytes:
        if path.suffix == ".png":
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE), str(path))
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", fail)
        result = pipeline(*WRITERS["extract"][0])
    assert result.code == 1
    assert ".png: expected one more open file, found Too many open files; raise the limit (`ulimit -n`)" in result.err
    assert done(*WRITERS["extract"][0], "--json").json()["rejected"] == 0


def test_a_shard_is_not_called_damaged_for_want_of_open_files(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its remedy would be to delete it."""
    import h5py

    def fail(path: Path, *_: Any, **__: Any) -> None:
        raise OSError(errno.EMFILE, f"Unable to open file (name = '{path}', errno = {errno.EMFILE})")

    monkeypatch.setattr(h5py, "File", fail)
    result = pipeline(*WRITERS["align"][0])
    assert result.code == 1
    assert f"{IMAGE}/" in result.err
    assert "expected one more open file, found Too many open files" in result.err
    assert "delete" not in result.err


@pytest.mark.parametrize("words", [["store", "ls", IMAGE, "--json"], ["--version"]])
def test_standard_output_on_a_full_disk(words: list[str], project: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full")
    with Path("/dev/full").open("w") as full:
        result = program("-m", "pipeline.cli", *words, cwd=project, stdout=full)
    assert result.returncode == 1
    assert result.stderr.endswith(
        "expected free space, found No space left on device; make room, or choose another place, and run the same "
        "command again.\n"
    )
    assert result.stderr.startswith("Error: standard output: " if "store" in words else "Error: ")
    assert result.stderr.count("\n") == 1


def test_memory_is_bounded_from_outside(project: Path) -> None:
    """Under `ulimit -v` numpy, torch or Python itself says that there is no memory: no traceback whoever it is."""
    script = (
        "import resource, sys\n"
        "import torch, numpy\n"
        "from pipeline.errors import exit_with_sentence\n"
        "resource.setrlimit(resource.RLIMIT_AS, (2 << 40, 2 << 40))\n"
        "with exit_with_sentence():\n"
        "    {numpy: lambda: numpy.ones(1 << 43), torch: lambda: torch.ones(1 << 43)}[globals()[sys.argv[1]]]()\n"
    )
    for library in ("numpy", "torch"):
        result = subprocess.run(
            [sys.executable, "-c", script, library], capture_output=True, text=True, check=False, cwd=project
        )
        assert (result.returncode, result.stdout) == (1, "")
        assert result.stderr == (
            "Error: expected more memory, found Cannot allocate memory; free some, or ask for less at once: smaller "
            "batches, fewer workers (see --help), and run the same command again.\n"
        )
