"""Export a trained run: `export(Path("data/2_projectors/cca"), Path("model"))`. Run by `pipeline export`."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, cast

from pipeline.apps.export.card import model_card
from pipeline.apps.export.exported import MODEL, read_model, record_of, to_bytes
from pipeline.apps.export.formats import FORMATS
from pipeline.apps.own_folder import OwnFolder, files_of
from pipeline.errors import UnknownNameError, UserError
from pipeline.files import file_sha256
from pipeline.projectors.run_record import AlignedRun
from pipeline.projectors.table import read_json

CARD = "README.md"
EXPORT = OwnFolder(record=MODEL, read=read_model, what="an export", made_by="pipeline export", option="--to")
Write = Callable[[AlignedRun, int, dict[str, Any], dict[str, bytes], Path], str]
"""(run, seed, model.json, projector files, folder) → writes one form into the folder and returns how it is used."""


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What was written."""

    folder: Path
    format: str
    seed: int
    dim: int
    files: dict[str, int]
    """Name → bytes."""


def export(
    run: Path, to: Path, *, form: str = "folder", seed: int | None = None, report: Path | None = None
) -> Exported:
    """Write a run's seed as one folder that can be handed over.

    Args:
        run: The run's folder.
        to: Folder to write; may be there if it is empty or an older export.
        form: One of `FORMATS`.
        seed: Which of the run's seeds; the first where not given.
        report: Folder of `pipeline evaluate` whose numbers go into the card; where not given,
            `<run>/../../3_report` if it speaks of this run and is not older.

    Raises:
        UnknownNameError: No such form.
        MissingExtraError: The form needs a package that is not installed.
        UserError: The run, seed or report is missing, the target holds something else, or the run cannot take
            this form.
    """
    if form not in FORMATS:
        raise UnknownNameError("export format", form, FORMATS, "--format")
    EXPORT.check(to)
    opened = AlignedRun.open(run)
    chosen = opened.seeds[0] if seed is None else seed
    model, files = record_of(opened, chosen)
    numbers = measured(opened, report)
    model |= {"export": form, "evaluation": numbers}
    module, _, function = FORMATS[form].partition(":")
    write = cast(Write, getattr(import_module(module), function))
    with EXPORT.new(to) as folder:
        usage = write(opened, chosen, model, files, folder)
        (folder / CARD).write_text(model_card(opened, model, usage, numbers), encoding="utf-8")
        digests = {name: file_sha256(folder / name) for name in files_of(folder)}
        (folder / MODEL).write_bytes(to_bytes({**model, "files": digests}))
    sizes = {path.relative_to(to).as_posix(): path.stat().st_size for path in sorted(to.rglob("*")) if path.is_file()}
    return Exported(folder=to, format=form, seed=chosen, dim=opened.dim, files=sizes)


def measured(run: AlignedRun, report: Path | None) -> dict[str, float]:
    """Return what `pipeline evaluate` measured of a run: {} where nothing fits and no report was named.

    Raises:
        UserError: A report was named and does not speak of this run.
    """
    folder = (report or run.path.parent.parent / "3_report") / "metrics"
    names = list(dict.fromkeys((run.path.name, run.method)))
    found = [path for name in names if (path := folder / f"{name}.json").is_file()]
    if report is None:
        found = [path for path in found if path.stat().st_mtime >= (run.path / "run.json").stat().st_mtime]
    if found:
        entries = read_json(found[0], "metrics")
        return {name: float(value) for name, value in entries.items() if type(value) in (int, float)}
    if report is None:
        return {}
    known = sorted(path.name for path in folder.glob("*.json"))
    raise UserError(
        expected=f"{' or '.join(f'{name}.json' for name in names)} in the report's folder metrics",
        found=", ".join(known) or "none",
        where=str(report),
        remedy="evaluate this run first",
    )


def write_folder(run: AlignedRun, seed: int, model: dict[str, Any], files: dict[str, bytes], folder: Path) -> str:
    """Write the package's own form: the projectors; `model.json` names the encoders."""
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return f"""## Use

```python
from pipeline.apps.dual_encoder import load_model

model = load_model("{run.path.name}")  # this folder
image = model.encode_image(["photo.jpg"])  # unit vectors [1, {run.dim}]; PIL images or files
text = model.encode_text(["a dog on a beach", "two cats"])  # [2, {run.dim}]
print(image @ text.T)  # cosines
print(model.classify("photo.jpg", ["dog", "cat"]))  # probabilities [1, 2]
```

`pip install fewpairs` brings `pipeline`; {MODEL} holds the record."""
