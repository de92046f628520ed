"""Locks exclude each other, leave nothing behind, and die with their process."""

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from pipeline.storage.locks import is_locked, lock, open_locked


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
        from pipeline.storage.locks import open_locked
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
