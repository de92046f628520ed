"""Every way into the raw layout, one table. `pipeline data import` picks by name, or by what the source looks like."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import UnknownNameError, UserError
from pipeline.extract.datasets import (
    from_folder,
    from_huggingface,
    from_image_parquet,
    from_karpathy,
    from_table,
    from_webdataset,
)
from pipeline.extract.datasets.options import ImportOptions
from pipeline.extract.datasets.record import Source
from pipeline.extract.datasets.splits import SplitRule
from pipeline.extract.datasets.writing import Summary, write_dataset
from pipeline.progress import Progress, silent


@dataclass(frozen=True)
class Importer:
    """One way in."""

    about: str
    """What it reads, in a few words."""
    recognises: Callable[[str], bool]
    """Whether a source looks like it."""
    read: Callable[[str, ImportOptions], Source]
    """Open a source."""


IMPORTERS: dict[str, Importer] = {
    "huggingface": Importer(
        "folder of save_to_disk, or hf:ORG/NAME", from_huggingface.recognises, from_huggingface.read
    ),
    "webdataset": Importer(
        "tar, tars by {000..012} or a folder of tars", from_webdataset.recognises, from_webdataset.read
    ),
    "karpathy": Importer("JSON with images and sentences", from_karpathy.recognises, from_karpathy.read),
    "image-parquet": Importer("Parquet of image bytes", from_image_parquet.recognises, from_image_parquet.read),
    "table": Importer("CSV, TSV, JSONL or Parquet of image paths", from_table.recognises, from_table.read),
    "captions": Importer("images with same-stem .txt", from_folder.recognises_captions, from_folder.read_captions),
    "classes": Importer("a folder a class", from_folder.recognises_classes, from_folder.read_classes),
    "images": Importer("a folder of images", from_folder.recognises_images, from_folder.read_images),
}
"""Importers by name, asked in this order where the kind is `auto`."""


def import_dataset(
    source: str | Path,
    out: Path,
    options: ImportOptions | None = None,
    *,
    rule: SplitRule | None = None,
    replace_existing: bool = False,
    link: bool = False,
    progress: Progress = silent,
) -> Summary:
    """Make a raw data set of a user's table, folder or archive.

    Args:
        source: File, folder, or a pattern of tars.
        out: The new folder.
        options: Columns, root and the like.
        rule: Split of the images where the source has none (0.8/0.1/0.1 by sha256 of the id).
        replace_existing: Make the data set of this name again in its place.
        link: Hard-link image files instead of copying.
        progress: Is told how far it is.

    Raises:
        UserError: The source is not there or not understood, or the importer's own complaints.
        UnknownNameError: No such kind.
    """
    options = options or ImportOptions()
    importer = IMPORTERS[detect(str(source)) if options.kind == "auto" else _known(options.kind)]
    found = importer.read(str(source), options)
    found = replace(
        found,
        origin=options.origin or found.origin,
        licence=options.licence or found.licence,
        attribution=options.attribution or found.attribution,
    )
    return write_dataset(out, found, rule=rule or SplitRule(), replace=replace_existing, link=link, progress=progress)


def detect(source: str) -> str:
    """Return the name of the first importer that recognises a source.

    Raises:
        UserError: The source does not exist, or none does.
    """
    for name, importer in IMPORTERS.items():
        if importer.recognises(source):
            return name
    kinds = "; ".join(f"{name}: {importer.about}" for name, importer in IMPORTERS.items())
    raise UserError(
        expected=f"one of ({kinds})",
        found="something else" if Path(source).exists() else "nothing",
        where=source,
        remedy="name the kind with --kind, or bring the data into a CSV with the columns filepath,caption",
    )


def _known(kind: str) -> str:
    if kind not in IMPORTERS:
        raise UnknownNameError("kind of source", kind, IMPORTERS, "--kind")
    return kind
