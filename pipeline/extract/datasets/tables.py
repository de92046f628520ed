"""Tables as people write them: what separates their fields and encodes their letters is found out, and said.

- CSV with any of four separators, in UTF-8, UTF-16 or a Western 8-bit encoding.
- The same separated by tabs, where a lone quote is a letter.
- Two columns without a header, one of which names pictures: `Flickr8k.token.txt` (`name.jpg#0<TAB>caption`).
- JSON, an object a line or one list of objects; Parquet.

Which files of a folder are tables is told here, too.
"""

import codecs
import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import IO, Any

from pipeline.errors import UserError
from pipeline.extract.datasets import archives
from pipeline.extract.datasets.image_files import PICTURE
from pipeline.extract.datasets.layout import csv_rows, wrong_width
from pipeline.extract.datasets.records import is_usual, named_splits, split_within
from pipeline.files import is_endless, one_line

Rows = Iterator[tuple[int, Mapping[str, Any]]]
"""(line number, column → value)."""
SEPARATORS = (",", ";", "\t", "|")
"""What may stand between the fields of a table of text."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),  # its mark begins with that of UTF-16
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
_NOT_WESTERN = re.compile(r"[^\W\d_][^\x00-\x7f’‘–—…·\w][^\W\d_]|[^\W\d_][¹²³¼½¾ª]|[a-zß-öø-ÿ][À-ÖØ-ÞŠŒŽŸ]")
"""Signs or capitals inside words: what other encodings look like that are read as cp1252."""


@dataclass(frozen=True)
class Table:
    """An open table."""

    path: Path
    """Its file."""
    columns: tuple[str, ...]
    """Their names, each once."""
    rows: Rows
    """Read once."""
    form: tuple[str, ...] = ()
    """What was found out about it, in words; empty where it is as usual."""


def open_table(path: Path, encoding: str = "") -> Table:
    """Open a table by its ending.

    Args:
        path: The file.
        encoding: How its letters are written; empty: found out.

    Raises:
        UserError: It is not there, not of a known kind, or not in the encoding; while rows are read: not what its
            ending says, a row with more or fewer fields than the header, a quote that is never closed.
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(expected=f"a table ({', '.join(READERS)})", found=path.name, where=str(path))
    if not path.is_file() or is_endless(path):
        raise UserError(expected=f"a table {path.name}", found="no such file", where=str(path.parent))
    return reader(path, encoding)


# ---- text ------------------------------------------------------------------------------------------------------------


def _open_text(path: Path, encoding: str) -> Table:
    encoding = encoding or _encoding(path)
    with _decoded(path, encoding) as file:
        sample = file.read(2**16)
    usual = "," if path.suffix.lower() == ".csv" else "\t"
    separator = _separator(sample, usual)
    rows = _fields(path, encoding, separator)
    _, first = next(rows, (1, []))
    form = [f"separator {separator!r}"] if separator != usual else []
    form += [] if encoding.startswith("utf-8") else [f"letters in {encoding}"]
    named = [place for place, value in enumerate(first) if PICTURE.fullmatch(value.strip())]
    if len(first) == 2 and len(named) == 1:
        header = ["filepath", "caption"][:: 1 - 2 * named[0]]
        rows = chain([(1, first)], rows)
        form.append(f"no header, read as {header[0]} and {header[1]}")
    else:
        header = _once(first)
    return Table(path, tuple(header), _checked(rows, header, path), tuple(form))


def _once(names: Sequence[str]) -> list[str]:
    """Return names of columns without spaces around them, a name that comes again with its number behind it."""
    seen: Counter[str] = Counter()
    found = []
    for name in map(str.strip, names):
        seen[name] += 1
        found.append(f"{name}_{seen[name]}" if name and seen[name] > 1 else name)
    return found


def _checked(rows: Iterator[tuple[int, list[str]]], header: Sequence[str], path: Path) -> Rows:
    for line, row in rows:
        if len(row) != len(header):
            raise wrong_width(row, header, f"{path}, line {line}")
        yield line, dict(zip(header, row, strict=True))


@contextmanager
def _decoded(path: Path, encoding: str, newline: str | None = "") -> Iterator[IO[str]]:
    """Open a file for its letters; in UTF-8 broken bytes become surrogates, which are listed later."""
    errors = "surrogateescape" if encoding.startswith("utf-8") else "strict"
    try:
        with path.open(newline=newline, encoding=encoding, errors=errors) as file:
            yield file
    except LookupError as error:
        raise UserError(expected="an encoding that Python knows", found=repr(encoding), where="--encoding") from error
    except UnicodeError as error:
        raise UserError(
            expected=f"letters in {encoding}",
            found=one_line(error),
            where=str(path),
            remedy="name their encoding with --encoding",
        ) from error


def _encoding(path: Path) -> str:
    """Return how a file's letters are written: by its mark, as UTF-8, or in the Western encoding of Windows.

    Raises:
        UserError: It is none of them, as far as words can tell.
    """
    with path.open("rb") as file:
        start = file.read(4)
        marked = next((name for mark, name in _MARKS if start.startswith(mark)), "")
        if marked or b"\0" in start[:2]:
            return marked or ("utf-16-be" if start[:1] == b"\0" else "utf-16-le")
        file.seek(0)
        decoder = codecs.getincrementaldecoder("utf-8")()
        try:
            for block in iter(partial(file.read, 2**20), b""):
                decoder.decode(block)
            decoder.decode(b"", final=True)
        except UnicodeDecodeError:
            file.seek(0)
            lines = iter(partial(file.readline, 2**16), b"")
            odd = b"".join(islice((line for line in lines if not line.isascii()), 1000))
            return _eight_bits(odd, path)
    return "utf-8-sig"


def _eight_bits(odd: bytes, path: Path) -> str:
    """Return the encoding of lines that are not all UTF-8: some broken letters among right ones, or cp1252."""
    right = sum(not letter.isascii() for letter in odd.decode("utf-8", "ignore"))
    if right > odd.decode("utf-8", "replace").count("\ufffd"):
        return "utf-8-sig"
    text = odd.decode("cp1252", "replace")
    plain, other = (sum(letter.isalpha() and letter.isascii() is way for letter in text) for way in (True, False))
    if "\ufffd" in text or other > plain or _NOT_WESTERN.search(text):
        raise UserError(
            expected="letters in UTF-8, UTF-16 or cp1252",
            found="another encoding",
            where=str(path),
            remedy="name it, for example --encoding cp1250 (Polish, Czech), cp1251 (Russian), gb18030 or shift_jis",
        )
    return "cp1252"


def _separator(sample: str, usual: str) -> str:
    """Return what splits the first line into the most known names, else the first lines into the same many fields."""

    def fit(separator: str) -> tuple[int, float, bool]:
        lines = io.StringIO(sample, newline="")
        rows = [line.split("\t") for line in lines] if separator == "\t" else csv.reader(lines, delimiter=separator)
        first, *others = [*islice((row for row in rows if row), 200)] or [[]]
        same = [len(row) == len(first) for row in (others[:-1] if len(sample) == 2**16 else others)]
        even = sum(same) / len(same) if same else 1.0
        return sum(map(is_usual, first)) * (len(first) > 1), even * (len(first) > 1), separator == usual

    return max(SEPARATORS, key=fit)


def _fields(path: Path, encoding: str, separator: str) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, fields) of the rows of a text."""
    if separator == "\t" and _is_even(path, encoding):
        with _decoded(path, encoding, newline=None) as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield number, [_unquoted(field) for field in line.rstrip("\n").split("\t")]
        return
    with _decoded(path, encoding) as file:
        yield from csv_rows(file, separator, str(path))


def _is_even(path: Path, encoding: str) -> bool:
    """Tell whether all lines have the same number of tabs: then each is a row, whatever quotes it holds."""
    with _decoded(path, encoding, newline=None) as file:
        return len({line.count("\t") for line in file if line.strip()}) == 1


def _unquoted(field: str) -> str:
    """Return a field without the quotes around it, where those inside are doubled; a lone quote stays."""
    inner = field[1:-1]
    enclosed = len(field) > 1 and field[0] == field[-1] == '"' and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if enclosed else field


# ---- JSON and Parquet ------------------------------------------------------------------------------------------------


def _open_json(path: Path, encoding: str) -> Table:
    encoding = encoding or _encoding(path)
    form = () if encoding.startswith("utf-8") else (f"letters in {encoding}",)
    with _decoded(path, encoding, newline="\n") as file:
        is_list = re.match(r"\s*\[\s*\{", file.read(2**16))
        file.seek(0)
        rows = _members(file.read(), path) if is_list else list(_lines(file, path))
    columns = dict.fromkeys(chain.from_iterable(row for _, row in rows))
    return Table(path, tuple(columns), iter(rows), form)


def _lines(file: IO[str], path: Path) -> Rows:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, _object(_parsed(line, "a JSON object a line", f"{path}, line {number}"), path, number)


def _members(text: str, path: Path) -> list[tuple[int, Mapping[str, Any]]]:
    values = _parsed(text, "a JSON list of objects", str(path))
    return [(number, _object(value, path, number, "object")) for number, value in enumerate(values, 1)]


def _parsed(text: str, expected: str, where: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(expected=expected, found=one_line(error), where=where) from error


def _object(value: Any, path: Path, number: int, what: str = "line") -> Mapping[str, Any]:
    if not isinstance(value, dict):
        where = f"{path}, {what} {number}"
        raise UserError(expected="a JSON object a line", found=type(value).__name__, where=where)
    return value


def _open_parquet(path: Path, encoding: str) -> Table:
    del encoding  # Parquet is UTF-8
    columns = tuple(archives.open_parquet(path).schema_arrow.names)
    return Table(path, columns, enumerate(archives.parquet_rows([path]), 1))


READERS: dict[str, Callable[[Path, str], Table]] = {
    ".csv": _open_text,
    ".tsv": _open_text,
    ".txt": _open_text,
    ".token": _open_text,
    ".json": _open_json,
    ".jsonl": _open_json,
    ".ndjson": _open_json,
    ".parquet": _open_parquet,
}
"""File name ending → reader."""


# ---- which tables a folder holds -------------------------------------------------------------------------------------

_USUAL = re.compile(r"(captions|metadata|results)\.\w+|(?!.*lemma).*\.token(\.txt)?", re.IGNORECASE)
"""What the one table of a folder is called."""


def is_table(path: Path) -> bool:
    """Tell whether a file is a table by its ending; JSON is one if it is a list, or an object a line."""
    if path.suffix.lower() != ".json":
        return path.suffix.lower() in READERS and path.is_file() and not is_endless(path)
    if not path.is_file() or is_endless(path):
        return False
    with path.open("rb") as file:
        start = file.read(2**16).removeprefix(codecs.BOM_UTF8).lstrip()
    try:
        return start.startswith(b"[") or bool(json.loads(start.partition(b"\n")[0]))
    except (ValueError, RecursionError):
        return False


def tables_of(folder: Path) -> list[tuple[str, Path]]:
    """Return (split, table) of the tables that a folder holds; the split without a name is that of the rows.

    They are its `captions.csv`, `captions.txt`, `metadata.jsonl` or the like; one such table in each folder of a split;
    `train.csv` and `test.csv` that name pictures; those of its folder `data`; or any with pictures and captions.
    """
    if own := _own_tables(folder):
        return [("", path) for path in own]
    folders = sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []
    splits = [(path.name, table) for path in folders if named_splits([path.name]) for table in _own_tables(path)]
    inner = tables_of(folder / "data") if folder / "data" in folders else []
    return splits or _tables_named_by_split(folder) or inner or [("", path) for path in _captioned_tables(folder)]


def _own_tables(folder: Path) -> list[Path]:
    """Return the tables of a folder that have the best of the usual names; several are for the user to choose from."""
    found: dict[int, list[Path]] = {}
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        match = _USUAL.fullmatch(path.name)
        if match and is_table(path):
            rank = ("captions", "metadata", "", "results").index((match[1] or "").lower())
            found.setdefault(rank, []).append(path)
    return found[min(found)] if found else []


def _tables_named_by_split(folder: Path) -> list[tuple[str, Path]]:
    found = [(split_within(path.stem), path) for path in _marked(folder)]
    return [(split, path) for split, path in found if split and _has_columns(path, "filepath")]


def _captioned_tables(folder: Path) -> list[Path]:
    return [path for path in _marked(folder) if _has_columns(path, "filepath", "caption")]


def _marked(folder: Path) -> list[Path]:
    """Return the tables of a folder that are known as such by their ending alone."""
    there = sorted(folder.iterdir()) if folder.is_dir() else ()
    return [path for path in there if path.suffix.lower() not in (".txt", ".json") and is_table(path)]


def _has_columns(path: Path, *fields: str) -> bool:
    """Tell whether a table has columns of the usual names; one that cannot be read complains where it is read."""
    try:
        columns = open_table(path).columns
    except UserError:
        return False
    return all(any(is_usual(name, field) for name in columns) for field in fields)
