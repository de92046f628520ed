"""Digests, signed JSON, atomic writes; locks exclude each other, leave nothing behind and die with their process."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pipeline import files
from pipeline.errors import UserError
from pipeline.files import (
    canonical,
    dump_signed,
    file_sha256,
    is_locked,
    json_digest,
    lock,
    open_locked,
    read_json,
    read_signed,
    spaced_json_digest,
    write_atomically,
)


def test_digests_are_sha256_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"abc" * 10**6)
    assert file_sha256(tmp_path / "x") == hashlib.sha256(b"abc" * 10**6).hexdigest()


def test_two_json_texts_two_digests() -> None:
    value = {"b": [1, 2], "a": "ä"}
    assert canonical(value) == '{"a":"ä","b":[1,2]}'.encode()
    assert json_digest(value) == hashlib.sha256(canonical(value)).hexdigest()
    assert spaced_json_digest(value) == hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical(float("nan"))


@pytest.mark.parametrize("text", ["[" * 100_000, '{"n": ' + "1" * 5000 + "}", "{", "[]", "3", '{"a": 1} {}'])
def test_whatever_a_json_file_holds_is_one_sentence(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(UserError, match=r"x.json: expected (a JSON object|JSON) that describes a thing") as caught:
        read_json(tmp_path / "x.json", "a thing")
    assert len(str(caught.value)) < 1000


def test_signed_json_is_read_back_and_a_change_of_any_value_is_seen(tmp_path: Path) -> None:
    path, value = tmp_path / "x.json", {"b": [1, 2.5, None], "a": {"ä": True, "c": "x"}, "n": {10: 1, 9: 2}}
    path.write_bytes(dump_signed(value))
    read = {**value, "n": {"10": 1, "9": 2}}
    assert read_signed(path, "a thing") == read
    path.write_text(json.dumps(json.loads(path.read_text())))  # the digest is of what it says, not of how it is written
    assert read_signed(path, "a thing") == read
    for field, other in [
        ("b", [1, 2.5]),
        ("b", [1.0, 2.5, None]),
        ("a", {}),
        ("later", 1),
        ("self", "0"),
        ("self", None),
    ]:
        path.write_text(json.dumps({**json.loads(dump_signed(value)), field: other}))
        with pytest.raises(
            UserError, match=r"x.json: expected what its digest says \(.*\), found other content \(.*…\)"
        ):
            read_signed(path, "a thing")


@pytest.mark.parametrize("value", ["NaN", "1e999", '"\\ud800"', "[" * 900 + "]" * 900])
def test_what_is_never_signed_is_no_signed_json(value: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(f'{{"a": {value}, "self": "{"0" * 64}"}}')
    with pytest.raises(UserError, match=r"x.json: expected (what its digest says|JSON that describes)"):
        read_signed(tmp_path / "x.json", "a thing")


def test_a_pipe_is_no_file_to_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.json")
    with pytest.raises(UserError, match="expected a regular file, found a pipe or a device"):
        read_json(tmp_path / "x.json", "a thing")


def test_a_write_goes_step_by_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """File synced before its name is there, folder synced after: what a crash at any step leaves is old or new."""
    steps: list[tuple[str, str]] = []
    sync, publish = files.sync_file, files.publish
    target = tmp_path / "file"
    target.write_bytes(b"old")

    def note_sync(path: Path) -> None:
        steps.append(("sync", "folder" if path == tmp_path else "temp"))
        assert target.read_bytes() == (b"new" if path == tmp_path else b"old")
        sync(path)

    def note_publish(temp: Path, name: Path) -> None:
        steps.append(("publish", name.name))
        assert (temp.parent, temp.read_bytes()) == (tmp_path, b"new")
        publish(temp, name)

    monkeypatch.setattr(files, "sync_file", note_sync)
    monkeypatch.setattr(files, "publish", note_publish)
    write_atomically(target, b"new")
    assert steps == [("sync", "temp"), ("publish", "file"), ("sync", "folder")]
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, b"new")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_a_file_system_that_cannot_sync_folders_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sync = os.fsync

    def no_folders(descriptor: int) -> None:
        if Path(f"/proc/self/fd/{descriptor}").readlink() == tmp_path:
            raise OSError(22, "Invalid argument")
        sync(descriptor)

    monkeypatch.setattr("os.fsync", no_folders)
    write_atomically(tmp_path / "file", b"new")
    assert (tmp_path / "file").read_bytes() == b"new"


# ---- locks -----------------------------------------------------------------------------------------------------------


def test_a_taken_lock_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / ".00000.lock"
    with lock(path) as first:
        assert first
        assert is_locked(path)
        with lock(path, block=False) as second:
            assert not second
        assert path.exists()
    assert not path.exists()
    assert not is_locked(path)


def test_waiting_threads_enter_one_by_one(tmp_path: Path) -> None:
    inside, most = 0, 0

    def enter() -> None:
        nonlocal inside, most
        for _ in range(30):
            with lock(tmp_path / "lock"):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (inside, most) == (0, 1)
    assert not list(tmp_path.iterdir())


def test_a_dead_process_holds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = f"""if True:
        import sys, time
        from pathlib import Path
        from pipeline.files import open_locked
        open_locked(Path({str(path)!r}), block=True)
        print("held", flush=True)
        time.sleep(600)"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "held\n"
        assert is_locked(path)
        process.send_signal(signal.SIGKILL)
    assert not is_locked(path)
    descriptor = open_locked(path, block=False)
    assert descriptor is not None
    os.close(descriptor)
