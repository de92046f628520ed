"""Import a Karpathy split file: JSON with `images`, each with `filename`, `split` and `sentences` (`raw`).

As used for Flickr8k, Flickr30k and COCO (arXiv:1412.2306); `filepath` is the folder inside the images' root.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import UserError
from pipeline.extract.datasets.layout import read_json
from pipeline.extract.datasets.options import ImportOptions
from pipeline.extract.datasets.paths import Fence
from pipeline.extract.datasets.record import Record, Skipped, Source


def recognises(source: str) -> bool:
    """Tell whether the source is a JSON file with `images` that have `sentences`."""
    path = Path(source)
    if path.suffix.lower() != ".json" or not path.is_file():
        return False
    with path.open("rb") as file:
        return b'"images"' in file.read(2**16) and b'"sentences"' in path.read_bytes()


def read(source: str, options: ImportOptions) -> Source:
    """Open a Karpathy file; images are looked for beside it, in `images/`, or under `--root`.

    Raises:
        UserError: It is not such a file, or a path leaves the folder.
    """
    path = Path(source)
    entries = read_json(path).get("images")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) and "filename" in entry for entry in entries):
        raise UserError(
            expected='{"images": [{"filename", "sentences", "split"}]}',
            found=json.dumps(entries, ensure_ascii=False)[:80] if entries is not None else "no images",
            where=source,
        )
    has_splits = any("split" in entry for entry in entries)
    records = _records(path, options.root or path.parent, entries)
    return Source(records=records, total=len(entries), has_splits=has_splits, origin=path.name)


def _records(path: Path, root: Path, entries: list[dict[str, Any]]) -> Iterator[Record | Skipped]:
    fence = Fence(root, remedy="say --root DIR, the folder that the images lie in")
    for number, entry in enumerate(entries):
        where = f"{path}, image {number}"
        inner = f"{entry['filepath']}/{entry['filename']}" if entry.get("filepath") else str(entry["filename"])
        places = [fence.path(name, where) for name in (inner, entry["filename"], f"images/{entry['filename']}")]
        sentences = entry.get("sentences") or []
        yield Record(
            image_id=inner,
            source=next((place for place in places if place.is_file()), places[0]),
            name=inner,
            split=str(entry.get("split") or ""),
            captions=tuple(str(item.get("raw", "")) if isinstance(item, dict) else str(item) for item in sentences),
        )
