"""Every way into the raw layout, one table. `pipeline data import` picks by name, or by what the source looks like."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from pipeline.errors import UnknownNameError, UserError
from pipeline.extract.datasets import image_bytes, image_files, webdataset
from pipeline.extract.datasets.records import ImportOptions, Records, SplitRule
from pipeline.extract.datasets.writing import MadeDataset, write_dataset
from pipeline.progress import Progress, silent


@dataclass(frozen=True)
class Importer:
    """One way in."""

    about: str
    """What it reads, in a few words."""
    recognises: Callable[[str], bool]
    """Whether a source looks like it."""
    read: Callable[[str, ImportOptions], Records]
    """Open a source."""


IMPORTERS: dict[str, Importer] = {
    "huggingface": Importer(
        "folder of save_to_disk, or hf:ORG/NAME", image_bytes.recognises_hugging_face, image_bytes.read_hugging_face
    ),
    "webdataset": Importer("tar, tars by {000..012} or a folder of tars", webdataset.recognises, webdataset.read),
    "karpathy": Importer("JSON with images and sentences", image_files.recognises_karpathy, image_files.read_karpathy),
    "image-parquet": Importer("Parquet of image bytes", image_bytes.recognises_parquet, image_bytes.read_parquet),
    "table": Importer(
        "CSV, TSV, JSONL or Parquet of image paths", image_files.recognises_table, image_files.read_table
    ),
    "captions": Importer(
        "images with same-stem .txt", image_files.recognises_captions, partial(image_files.read_folder, captions=True)
    ),
    "classes": Importer(
        "a folder a class", image_files.recognises_classes, partial(image_files.read_folder, classes=True)
    ),
    "images": Importer("a folder of images", image_files.recognises_images, image_files.read_folder),
}
"""Importers by name, asked in this order where the kind is `auto`."""


def import_dataset(
    source: str | Path, out: Path, options: ImportOptions | None = None, *, progress: Progress = silent
) -> MadeDataset:
    """Make a raw data set of a user's table, folder or archive.

    Args:
        source: File, folder, or a pattern of tars.
        out: The new folder.
        options: Columns, root and the like.
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
    rule = options.rule or SplitRule()
    return write_dataset(out, found, rule=rule, replace=options.replace, link=options.link, progress=progress)


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
