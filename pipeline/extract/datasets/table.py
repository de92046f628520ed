"""Read CSV and TSV tables whose bytes may be broken: nothing is dropped unseen, a missing column is an error."""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import UserError

csv.field_size_limit(2**24)


def read_rows(path: Path, delimiter: str = ",") -> Iterator[tuple[int, dict[str, str]]]:
    """Yield (line number, column → text) of every row. Bytes that are not UTF-8 become surrogates (see `is_utf8`).

    Raises:
        UserError: The file is missing, empty, not CSV, or a row has more or fewer fields than the header.
    """
    if not path.is_file():
        raise UserError(expected=f"a table {path.name}", found="no such file", where=str(path.parent))
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
                        where=f"{path}, line {reader.line_num}",
                        remedy="quote fields that hold the separator or line ends",
                    )
                yield reader.line_num, dict(zip(header, row, strict=True))
        except csv.Error as error:
            raise UserError(expected="CSV", found=str(error), where=f"{path}, line {reader.line_num}") from error


def read_columns(
    path: Path, required: Sequence[str], optional: Sequence[str] = (), delimiter: str = ","
) -> Iterator[tuple[int, list[str]]]:
    """Yield (line number, values of the required and then the optional columns); an absent optional one is empty.

    Raises:
        UserError: A required column is missing (lists what was found), or what `read_rows` raises.
    """
    rows = read_rows(path, delimiter)
    _, header = next(rows)
    require_columns(header, required, str(path))
    for line, row in rows:
        yield line, [row[name] for name in required] + [row.get(name, "") for name in optional]


def require_columns(found: Sequence[str] | dict[str, str], required: Sequence[str], where: str) -> None:
    """Check that a table has some columns.

    Raises:
        UserError: Names the missing ones and lists those that were found.
    """
    missing = [name for name in required if name not in found]
    if missing:
        raise UserError(
            expected=f"the columns {', '.join(required)}",
            found=f"{', '.join(found) or 'no header'} (missing: {', '.join(missing)})",
            where=where,
        )


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
