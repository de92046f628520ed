"""The study: prepare what is missing, do every cell of every grid, write one table of all. Killed, it goes on.

run_study(load_study(path), data=Path("data"), out=Path("data/4_study"), jobs=2, progress=print)
"""

import dataclasses
import json
import platform
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from examples.study.config import GridSweep, StudyConfig, sweeps_of
from examples.study.prepare import Extraction, missing_stores, prepare
from pipeline.errors import PipelineError
from pipeline.extract.run import extract
from pipeline.files import read_json, write_atomically
from pipeline.parallel import SideBySide, run_side_by_side
from pipeline.progress import Progress, silent
from pipeline.runtime import installed_version
from pipeline.storage.local import open_storage
from pipeline.sweep.cells import cells_of, flat_row, write_tables
from pipeline.sweep.config import Corruption
from pipeline.sweep.run import sweep, worklist
from pipeline.words import duration

RECORD = "study.json"
PACKAGES = ("fewpairs", "torch", "numpy", "timm", "transformers", "sentence-transformers", "scikit-learn")


def cost_sentences(config: StudyConfig, data: Path, out: Path, jobs: int) -> list[str]:
    """Say what there is to do, grid by grid, and what all of it will cost; nothing is computed.

    Raises:
        UserError: A store cannot be used or a setting is impossible.
    """
    missing = missing_stores(config, data, out)
    said = [f"To be extracted first: {open_storage(each.dataset).name} with {each.encoder}." for each in missing]
    unknown = {Path(str(each.out)) for each in missing}
    total, seen = 0.0, set()
    for part in sweeps_of(config, data, out):
        if unknown & _stores(part):
            cells = len(cells_of(part.sweep))
            said.append(
                f"{part.grid}, {part.encoders}: {cells} cells; their cost is known once the features are there."
            )
            continue
        lacking = bool(unknown & _changed(part))
        work = worklist(dataclasses.replace(part.sweep, corruption=Corruption()) if lacking else part.sweep)
        new = [cell for cell in work.left if (part.sweep.out, cell) not in seen]
        seen |= {(part.sweep.out, cell) for cell in new}
        seconds = sum(work.costs[cell] for cell in new)
        total += seconds
        said.append(
            f"{part.grid}, {part.encoders}: {len(work.cells)} cells, {len(new)} of them to do, "
            f"about {seconds:.0f} core-seconds."
        )
    said.append(f"In all about {total:.0f} core-seconds: {duration(total / jobs)} with {jobs} at once.")
    return said


def _stores(part: GridSweep) -> set[Path]:
    """Return the folders that a sweep reads, changed captions apart; class prompts lie in the text encoder's folder."""
    places = [*part.sweep.image, *part.sweep.text, *(place for each in part.sweep.classes for place in each.image)]
    return {Path(str(place)) for place in places} | {
        Path(str(place)).parent for each in part.sweep.classes for place in each.classes
    }


def _changed(part: GridSweep) -> set[Path]:
    """Return the folders of the changed captions that a sweep reads."""
    return {path for paths in part.sweep.corruption.texts.values() for path in paths}


def run_study(
    config: StudyConfig,
    *,
    data: Path,
    out: Path,
    jobs: int = 1,
    progress: Progress = silent,
    extraction: Extraction = extract,
    side_by_side: SideBySide = run_side_by_side,
) -> list[GridSweep]:
    """Do all that is not finished.

    Args:
        config: The study.
        data: Folder with `0_raw` and `1_features`.
        out: Folder of the results.
        jobs: Cells at once.
        progress: Gets a sentence for each thing decided.
        extraction: What makes the stores that are missing.
        side_by_side: What does the cells.

    Raises:
        UserError: Something of the study cannot be used.
        PipelineError: Cells failed; everything else is done and saved.
    """
    out.mkdir(parents=True, exist_ok=True)
    prepare(config, data, out, progress, extraction)
    done: list[GridSweep] = []
    problems: list[PipelineError] = []
    for part in sweeps_of(config, data, out):
        start, cpu = time.time(), _core_seconds(done)
        try:
            results = sweep(part.sweep, jobs=jobs, progress=progress, tables=False, side_by_side=side_by_side)
            done.append(dataclasses.replace(part, results=results))
        except PipelineError as error:
            if error.exit_code != 1:
                raise
            problems.append(error)
            continue
        _remember(out, part, time.time() - start, _core_seconds(done) - cpu, jobs)
    _write(out, done)
    if problems:
        raise problems[0]
    return done


def finished_sweeps(config: StudyConfig, data: Path, out: Path) -> list[GridSweep]:
    """Return what is finished of a study, as the page needs it; nothing is computed."""
    unknown = {Path(str(each.out)) for each in missing_stores(config, data, out)}
    found = []
    for part in sweeps_of(config, data, out):
        if unknown & (_stores(part) | _changed(part)):
            found.append(part)
            continue
        work = worklist(part.sweep)
        results = [work.finished[cell] for cell in work.cells if cell in work.finished]
        found.append(dataclasses.replace(part, results=results))
    return found


def _core_seconds(done: Sequence[GridSweep]) -> float:
    names = ("fit_cpu", "measure_cpu")
    return float(sum(result["seconds"][name] for part in done for result in part.results for name in names))


def _write(out: Path, done: Sequence[GridSweep]) -> None:
    """Write one table of all cells; a cell that several grids share stands there for each."""
    rows = [
        {"grid": each.grid, "image": each.image, "text": each.text, **flat_row(result)}
        for each in done
        for result in each.results
    ]
    write_tables(out, rows)


def _remember(out: Path, part: GridSweep, wall: float, core: float, jobs: int) -> None:
    """Add to study.json what a sweep took; a sweep that found all of it finished changes nothing."""
    path = out / RECORD
    record: dict[str, Any] = read_json(path, "a study") if path.is_file() else {}
    parts: dict[str, Any] = record.setdefault("parts", {})
    entry = parts.setdefault(f"{part.grid}, {part.encoders}", {"wall": 0.0})
    if entry.get("core") == round(core, 1):
        return
    entry["core"] = round(core, 1)
    entry["wall"] = round(entry["wall"] + wall, 1)
    entry["jobs"] = jobs
    record["versions"] = {name: installed_version(name) or "not installed" for name in PACKAGES} | {
        "python": platform.python_version()
    }
    record["machine"] = f"{platform.machine()}, {platform.system()}"
    record["finished"] = datetime.now(UTC).isoformat(timespec="seconds")
    write_atomically(path, (json.dumps(record, indent=1) + "\n").encode())
