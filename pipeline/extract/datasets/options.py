"""What a user may say about an import; everything is found out where nothing is said."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.errors import UserError


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """Options of `pipeline data import`."""

    kind: str = "auto"
    """Importer (a name of `IMPORTERS`), or `auto`: by what the source looks like."""
    root: Path | None = None
    """Folder that the images' paths are relative to; None: the table's own folder."""
    filepath: str = ""
    """Column (or field) of the image's path; empty: `filepath` or another usual name."""
    caption: str = ""
    """Column of the caption; empty: `caption` or another usual name."""
    label: str = ""
    """Column of the label; empty: `label` or another usual name."""
    split: str = ""
    """Column of the split; empty: `split` or another usual name."""
    origin: str = ""
    """Where the data come from, for dataset.json; empty: the source's name."""
    licence: str = ""
    """Under which licence, for dataset.json."""
    attribution: str = ""
    """Whom to name, for dataset.json."""


COLUMNS = {
    "filepath": ("filepath", "file", "file_name", "filename", "image", "image_path", "path", "image_id"),
    "caption": ("caption", "captions", "text", "title", "sentence"),
    "label": ("label", "class", "category"),
    "split": ("split", "set"),
}
"""Usual names of columns, the first found wins."""


def find_column(options: ImportOptions, field: str, found: list[str], where: str, *, needed: bool = False) -> str:
    """Return the column that holds a field, or an empty name.

    Args:
        options: May name the column.
        field: A key of `COLUMNS`.
        found: The table's columns.
        where: The table, for the error.
        needed: Whether its absence is an error.

    Raises:
        UserError: The named column, or a needed one, is not there.
    """
    asked: str = getattr(options, field)
    if asked and asked not in found:
        raise UserError(expected=f"a column {asked!r}", found=", ".join(found) or "none", where=where)
    column = asked or next((name for name in COLUMNS[field] if name in found), "")
    if needed and not column:
        raise UserError(
            expected=f"a column {field!r}",
            found=", ".join(found) or "none",
            where=where,
            remedy=f"name the column with --{field}",
        )
    return column
