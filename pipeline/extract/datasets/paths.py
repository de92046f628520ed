"""Paths that data files name: none of them leaves its folder."""

import os
import stat
from pathlib import Path, PureWindowsPath

from pipeline.errors import UserError


class Fence:
    """Lets only those relative paths through that stay in a folder, links followed.

    Args:
        root: The folder.
        remedy: What the error advises.
    """

    def __init__(self, root: Path, remedy: str = "") -> None:
        self.root = root
        self._real = os.path.realpath(root)
        self._remedy = remedy
        self._folders: dict[str, bool] = {}

    def path(self, name: str, where: str) -> Path:
        """Return `root / name`.

        Raises:
            UserError: The name is empty, absolute, climbs with `..`, or passes a link that leads out.
        """
        self.check(name, where)
        return self.root / name

    def check(self, name: str, where: str) -> None:
        """Raise where `path` would."""
        problem = self.problem(name)
        if problem:
            raise UserError(
                expected=f"a path inside {self.root}", found=f"{name!r} ({problem})", where=where, remedy=self._remedy
            )

    def problem(self, name: str) -> str:
        """Return why a name is not let through; empty where it is."""
        if not name or "\0" in name:
            return "empty" if not name else "it holds a zero byte"
        slashed = name.replace("\\", "/")
        if slashed.startswith("/") or (":" in name and PureWindowsPath(name).drive):
            return "it is absolute"
        if ".." in slashed.split("/"):
            return "it climbs out with .."
        return "" if self._stays(name) else "it is a link that leaves the folder"

    def _stays(self, name: str) -> bool:
        folder, _, _ = name.rpartition("/")
        if folder not in self._folders:
            self._folders[folder] = self._inside(self.root / folder)
        if not self._folders[folder]:
            return False
        path = os.path.join(self.root, name)  # noqa: PTH118 - called once a row of the data set
        try:
            is_link = stat.S_ISLNK(os.lstat(path).st_mode)
        except OSError:
            return True
        return not is_link or self._inside(Path(path))

    def _inside(self, path: Path) -> bool:
        return os.path.commonpath([os.path.realpath(path), self._real]) == self._real


def safe_name(name: str) -> str:
    """Return a name as a relative path that any file system takes: no `..`, no drive, no odd characters."""
    parts = (_safe_part(part) for part in name.replace("\\", "/").split("/"))
    return "/".join(part for part in parts if part not in ("", ".", "..")) or "unnamed"


def _safe_part(part: str) -> str:
    kept = "".join("_" if character in '<>:"|?*' or ord(character) < 32 else character for character in part.strip())
    kept = kept.encode("utf-8", "replace").decode("utf-8")
    stem, dot, suffix = kept.rpartition(".")
    return kept if len(kept.encode()) <= 200 else (stem if dot else kept)[:48] + dot + suffix[:8] * bool(dot)
