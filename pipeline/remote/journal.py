"""What the cache holds of a bound folder: name → the object's token and the file's time of change when it was noted.

A file of JSON lines that is only added to, one write a line, so that several processes share it. A line that was cut
short is passed over: what is not noted is brought again. A file that changed since counts as not noted.
"""

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path


class Journal:
    """The notes of one bound folder.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._notes = dict(_lines(path))

    def token(self, name: str, changed: int) -> str:
        """Return the token that a file of this time of change (ns) was noted with, "" where none is."""
        token, noted = self._notes.get(name, ("", 0))
        return token if noted == changed else ""

    def note(self, name: str, token: str, changed: int) -> None:
        """Note a file's token and its time of change (ns); "" where nothing is known of it any more."""
        line = json.dumps([name, token, changed], separators=(",", ":")) + "\n"
        with self._lock:
            if self._notes.get(name, ("", 0)) == (token, changed):
                return
            descriptor = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                os.write(descriptor, line.encode())
            finally:
                os.close(descriptor)
            self._notes[name] = (token, changed)


def _lines(path: Path) -> Iterator[tuple[str, tuple[str, int]]]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    for line in text.splitlines():
        try:
            name, token, changed = json.loads(line)
        except (ValueError, TypeError):
            continue
        if isinstance(name, str) and isinstance(token, str) and isinstance(changed, int):
            yield name, (token, changed)
