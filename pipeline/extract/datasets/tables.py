"""Tables and paths as users write them: nothing is dropped unseen, and no path leaves its folder.

Bytes of a table may be broken; a missing column is an error.
"""

import csv
import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from pipeline.errors import UserError

csv.field_size_limit(2**24)


def read_rows(path: Path, delimiter: str = ",", where: str = "") -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, column → text) of every row. Bytes that are not UTF-8 become surrogates (see `is_utf8`).

    Args:
        path: The file.
        delimiter: What separates its fields.
        where: What errors call the file; its path if unsaid.

    Raises:
        UserError: The file is missing, empty, not CSV, or a row has more or fewer fields than the header.
    """
    if not path.is_file():
        raise UserError(expected=f"a table {path.name}", found="no such file", where=str(path.parent))
    where = where or str(path)
    with path.open(newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(file, delimiter=delimiter)
        try:
            header = next(reader, [])
            yield 1, dict.fromkeys(header, "")
            for row in reader:
                if not row:
                    continue
                if len(row) != len(header):
                    raise UserError(
                        expected=f"{len(header)} fields ({', '.join(header)})",
                        found=f"{len(row)}",
                        where=f"{where}, line {reader.line_num}",
                        remedy="quote fields that hold the separator or line ends",
                    )
                yield reader.line_num, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise UserError(expected="CSV", found=str(error), where=f"{where}, line {reader.line_num}") from error


def read_columns(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), where: str = ""
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, values of the required and then the optional columns); an absent optional one is empty.

    Raises:
        UserError: A required column is missing (lists what was found), or what `read_rows` raises.
    """
    rows = read_rows(path, where=where)
    _, header = next(rows)
    missing = [name for name in required if name not in header]
    if missing:
        raise UserError(
            expected=f"the columns {', '.join(required)}",
            found=f"{', '.join(header) or 'no header'} (missing: {', '.join(missing)})",
            where=where or str(path),
        )
    for line, row in rows:
        yield line, [row[name] for name in required] + [row.get(name, "") for name in optional]


def is_utf8(text: str) -> bool:
    """Tell whether a text from a table was valid UTF-8."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def open_parquet(path: Path) -> Any:
    """Open a Parquet file.

    Raises:
        UserError: It is not there, or is none.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise UserError(expected="a Parquet file", found=" ".join(str(error).split()), where=str(path)) from error


# ---- paths ---------------------------------------------------------------------------------------------------------


class Fence:
    """Lets only those relative paths through that stay in a folder, links followed.

    Args:
        root: The folder.
        remedy: What the error advises.
        shown: What the error calls the folder; its path if unsaid.
    """

    def __init__(self, root: Path, remedy: str = "", shown: str = "") -> None:
        self.root = root
        self._shown = shown or str(root)
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
                expected=f"a path inside {self._shown}", found=f"{name!r} ({problem})", where=where, remedy=self._remedy
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
