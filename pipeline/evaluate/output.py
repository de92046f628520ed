"""A report's folder: its tables and numbers, the ranks of every query, and how all of its files change as a whole.

with fresh_output(folder) as new: write into `new`; at the end its files take the place of the old ones.

The new files are written into a hidden folder beside the old ones and renamed to `.report.ready` when they are whole:
from then on the new report counts. Then the old files go, `metrics.json` first, and the new ones come, `metrics.json`
last: where it stands, everything stands. A process that is killed in between leaves a part of one report at most, and
the next evaluation into that folder finishes the change before it does anything else. Whatever else lies in the folder
is left alone.

JSON and CSV hold fractions; percent is for metrics.md, which people read. `per_query.parquet` is the table of ranks;
`compare` reads it back and joins two of them by query id. `report.html` loads nothing: its content policy allows no
request at all, and of scripts only the one whose digest it names. `report.md` is for reading and pasting;
`tables/<chapter>-<number>.csv` holds what the tables are sorted by, unrounded, and the shown text where there is none.
"""

import base64
import csv
import hashlib
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray

from pipeline.errors import UserError, naming
from pipeline.evaluate.features import Duplicates, Probe, Twin, probe_metrics, without
from pipeline.evaluate.leaderboard import Difference, Leaderboard, headline_names
from pipeline.evaluate.report.page import Cell, Page, Table
from pipeline.evaluate.results import RETRIEVAL, QueryRanks, RunResult, set_prefix
from pipeline.files import lock, publish, sync_file, sync_folder
from pipeline.words import inert

TEMPLATES = Path(__file__).resolve().parent / "templates"
TIE_RULE = "ties count against the query"
Row = dict[str, Any]
FILE = "per_query.parquet"
SCHEMA = pa.schema(
    [
        ("query_id", pa.string()),
        ("image_id", pa.string()),
        ("label", pa.string()),
        ("direction", pa.string()),
        ("run", pa.string()),
        ("seed", pa.int64()),
        ("rank", pa.int64()),
    ]
)
LOCK, WRITING, READY, MOVING = ".report.lock", ".report.writing", ".report.ready", ".report.moving"
MARK = "metrics.json"
"""Comes last and goes first: where it stands, the report is whole."""
OWN = (
    MARK,
    "metrics.csv",
    "metrics.md",
    "metrics/*.json",
    "headline/*.json",
    "differences.csv",
    "duplicates.csv",
    "per_query.parquet",
    "plots/recall_at_k.csv",
    "plots/history.csv",
    "plots/layer_pairs.csv",
    "plots/reliability.csv",
    "probes.csv",
    "report.html",
    "report.md",
    "tables/*.csv",
)
"""What a report is made of; anything else in its folder is somebody else's."""


@contextmanager
def fresh_output(folder: Path) -> Iterator[Path]:
    """Yield an empty folder whose files become the report of `folder` when all of them are written.

    An error or an interrupt while they are written leaves the old report as it was; one that comes later waits until
    the new report is in its place. Two evaluations into one folder take turns.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with lock(folder / LOCK), naming(folder):
        finish(folder)
        writing = folder / WRITING
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir()
        try:
            yield writing
            _sync(writing)
            publish(writing, folder / READY)
        except BaseException:
            shutil.rmtree(writing, ignore_errors=True)
            _settle(folder)
            raise
        _settle(folder)


def finish(folder: Path) -> None:
    """Finish a change that was cut short; nothing where there is none. Repeating it does no harm."""
    ready, moving = folder / READY, folder / MOVING
    if ready.is_dir() and not moving.is_dir():
        for old in _own_files(folder):
            remove(old)
        sync_folder(folder)
        publish(ready, moving)
    if moving.is_dir():
        for new in sorted(_files(moving), key=lambda path: path.name == MARK):
            target = folder / new.relative_to(moving)
            target.parent.mkdir(exist_ok=True)
            publish(new, target)
        sync_folder(folder)
        shutil.rmtree(moving)


def remove(path: Path) -> None:
    """Remove an old file; a step of its own, so that tests can kill the process at each."""
    path.unlink(missing_ok=True)


def _settle(folder: Path) -> None:
    """Finish the change; an interrupt in the middle is heeded afterwards."""
    try:
        finish(folder)
    except KeyboardInterrupt:
        finish(folder)
        raise


def _own_files(folder: Path) -> list[Path]:
    found = [path for pattern in OWN for path in sorted(folder.glob(pattern)) if path.is_file() or path.is_symlink()]
    return sorted(found, key=lambda path: path != folder / MARK)


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def _sync(folder: Path) -> None:
    for path in _files(folder):
        sync_file(path)
    for inner in [path for path in folder.rglob("*") if path.is_dir()]:
        sync_folder(inner)
    sync_folder(folder)


def metrics(
    board: Leaderboard, counts: Mapping[str, Any], duplicates: Duplicates, probes: Sequence[Probe] = ()
) -> dict[str, Any]:
    """Return what metrics.json holds: one flat mapping for one run, run → mapping for several.

    Args:
        board: The runs.
        counts: What every number stands on: test images, captions, galleries.
        duplicates: What the test split shares with the training split.
        probes: What labels can be read off the features.
    """
    tables = {
        run.name: {
            **_numbers(run, board),
            **_without_seen(run, board, duplicates),
            **probe_metrics(probes, run.name),
            "seeds": len(run.seeds),
            "training_images": run.training_images,
            **counts,
        }
        for run in board.runs
    }
    return next(iter(tables.values())) if len(tables) == 1 else tables


def _numbers(run: RunResult, board: Leaderboard) -> Row:
    table: Row = {}
    for measure in board.measures:
        table[measure.name] = run.mean(measure.name)
        table[f"{measure.name}_std"] = run.deviation(measure.name)
    for direction, answered in run.answers.items():
        table |= {f"{direction}_{name}": value for name, value in answered.ranking().items()}
    under_csls = {f"{measure.name}_csls": run.under_csls(measure) for measure in board.measures}
    table |= {name: value for name, value in under_csls.items() if value is not None}
    for direction, answered in run.answers.items():
        prefix = f"{direction}_" if direction in RETRIEVAL else set_prefix(direction)
        for suffix, each in (("", answered.calibration), ("_scaled", answered.calibration.scaled)):
            if each is not None:
                for name in ("ece", "mean_max_probability", "temperature"):
                    table[f"{prefix}{name}{suffix}"] = getattr(each, name)
    return table


def _without_seen(run: RunResult, board: Leaderboard, found: Duplicates) -> dict[str, float | None]:
    """Return every measure once more without the queries that training has seen; equal where it has seen none."""
    return {
        f"{each.name}_without_{kind}": without(each, run.answers[each.direction].queries, touched[each.direction])
        for kind, touched in found.touched.items()
        for each in board.measures
        if each.direction in touched
    }


def write_tables(
    out: Path, board: Leaderboard, values: Mapping[str, Any], duplicates: Duplicates, probes: Sequence[Probe]
) -> None:
    """Write all files but the report."""
    for folder in (out / "metrics", out / "headline", out / "plots"):
        folder.mkdir(exist_ok=True)
    write_queries(out / FILE, ((run.name, each.queries) for run in board.runs for each in run.answers.values()))
    _write_json(out / "metrics.json", values)
    headline, alone = (*headline_names(board.k), "acc1"), len(board.runs) == 1
    for run in board.runs:  # DVC makes a row of each headline, which has to fit a terminal, and a column of each path
        means = {each.name: run.mean(each.name) for each in board.measures}
        _write_json(out / "metrics" / f"{run.name}.json", means)
        name = "run" if alone else run.name
        _write_json(out / "headline" / f"{name}.json", {each: means[each] for each in headline if each in means})
    (out / "metrics.md").write_text(metrics_table(board), encoding="utf-8")
    probed = [vars(each) | {"runs": " ".join(each.runs)} for each in probes]
    bins = ("run", "direction", "temperature", "confidence", "accuracy", "answers")
    tables: dict[str, tuple[Sequence[str], Iterable[Row]]] = {
        "metrics.csv": ((), long_rows(board)),
        "differences.csv": (_names(Difference), map(vars, board.differences())),
        "duplicates.csv": (_names(Twin), map(vars, duplicates.twins)),
        "probes.csv": (_names(Probe), probed),
        "plots/recall_at_k.csv": (("run", "direction", "k", "recall"), _curve_rows(board.runs)),
        "plots/history.csv": (("run", "seed", "step"), _history_rows(board.runs)),
        "plots/reliability.csv": (bins, _reliability_rows(board.runs)),
        "plots/layer_pairs.csv": (("run", "image_layer", "text_layer", "score"), _layer_rows(board.runs)),
    }
    for name, (first, rows) in tables.items():
        held = list(rows)
        columns = list(dict.fromkeys([*first, *(column for row in held for column in row)]))
        write_csv(out / name, columns, ([row.get(column, "") for column in columns] for row in held))


def _names(record: type) -> list[str]:
    return [each.name for each in fields(record)]


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def long_rows(board: Leaderboard) -> Iterator[Row]:
    """Yield the rows of metrics.csv: one a run and measure, fractions."""
    for run in board.runs:
        for name in board.names:
            low, high = board.interval(run, name)
            row = {"run": run.name, "metric": name, "mean": run.mean(name), "std": run.deviation(name)}
            yield row | {"low": low, "high": high, "chance": board.chance[name], "seeds": len(run.seeds)}


def _curve_rows(runs: Sequence[RunResult]) -> Iterator[Row]:
    for run in runs:
        for direction in RETRIEVAL:
            for k, value in run.answers[direction].recall_curve().items():
                yield {"run": run.name, "direction": direction, "k": k, "recall": value}


def _history_rows(runs: Sequence[RunResult]) -> Iterator[Row]:
    for run in runs:
        for seed, steps in run.history.items():
            yield from ({"run": run.name, "seed": seed} | step for step in steps)


def _reliability_rows(runs: Sequence[RunResult]) -> Iterator[Row]:
    for run in runs:
        for direction, answered in run.answers.items():
            own = answered.calibration
            for kind, each in (("own", own), ("scaled", own.scaled)):
                for confidence, accuracy, answers in each.bins if each is not None else ():
                    row = {"run": run.name, "direction": direction, "temperature": kind, "confidence": confidence}
                    yield row | {"accuracy": accuracy, "answers": answers}


def _layer_rows(runs: Sequence[RunResult]) -> Iterator[Row]:
    for run in runs:
        table = run.layer_pairs or {}
        for i, image in enumerate(table.get("image_layers", [])):
            for j, text in enumerate(table.get("text_layers", [])):
                values = {name: table[name][i][j] for name in ("score", "calibrated", "p_value") if table.get(name)}
                yield {"run": run.name, "image_layer": image, "text_layer": text, **values}


def metrics_table(board: Leaderboard) -> str:
    """Return what metrics.md holds: a row a run, percent with spread and interval."""
    rows = [["run", *board.names]]
    for run in board.runs:
        cells = [" ".join(run.name.split()).replace("|", "\\|")]
        for name in board.names:
            low, high = board.interval(run, name)
            deviation = run.deviation(name)
            spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
            cells.append(f"{100 * run.mean(name):.1f}{spread} [{100 * low:.1f}, {100 * high:.1f}]")
        rows.append(cells)
    rows.append(["chance", *(f"{100 * board.chance[name]:.1f}" for name in board.names)])
    lines = [f"| {' | '.join(row)} |" for row in rows]
    said = f"Percent, mean ± s.d. over seeds, [{100 * board.confidence:.0f} % interval over test images]."
    return "\n".join([said, "", lines[0], "|---" * len(rows[0]) + "|", *lines[1:]]) + "\n"


def render(page: Page) -> str:
    """Return the report as HTML."""
    style, script, template = (
        (TEMPLATES / name).read_text(encoding="utf-8") for name in ("report.css", "report.js", "report.html.j2")
    )
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["drawing"] = Markup  # only for Picture.svg
    return environment.from_string(template).render(
        page=page,
        style=Markup(style),  # noqa: S704
        script=Markup(script),  # noqa: S704
        script_digest=digest,
    )


def write_report(out: Path, page: Page) -> None:
    """Write `report.html`, `report.md` and `tables/` into a folder."""
    (out / "report.html").write_text(render(page), encoding="utf-8")
    (out / "report.md").write_text(markdown(page), encoding="utf-8")
    folder = out / "tables"
    folder.mkdir(exist_ok=True)
    for section in page.sections:
        for number, table in enumerate(section.tables, 1):
            shown = ([cell.text if cell.value is None else cell.value for cell in row] for row in table.rows)
            write_csv(folder / f"{section.id}-{number}.csv", table.head, shown)


def markdown(page: Page) -> str:
    """Return the words and tables of a report as Markdown; nothing in them is read as markup."""
    blocks = [f"# {plain(page.verdict)}", plain(page.eyebrow), *map(plain, page.reasons)]
    if page.caveats:
        blocks.append("## Caveats")
        blocks.append("\n".join(f"- **{plain(each.title)}.** {plain(each.text)}" for each in page.caveats))
    for section in page.sections:
        if section.tables or section.facts:
            blocks += [f"## {plain(section.title)}", *map(plain, section.lead)]
            blocks += [block for table in section.tables for block in (_table(table), plain(table.caption))]
        if section.facts:
            blocks.append("\n".join(f"- {plain(name)}: {plain(text)}" for name, text in section.facts))
    return "\n\n".join(blocks) + "\n"


def plain(text: str) -> str:
    """Return a text on one line with Markdown's and HTML's marks escaped."""
    return re.sub(r"([\\`*_\[\]<>|#~])", r"\\\1", " ".join(text.split()))


def _table(table: Table) -> str:
    lines = ["| " + " | ".join(map(plain, table.head)) + " |", "|---" + "|---:" * (len(table.head) - 1) + "|"]
    lines += ["| " + " | ".join(map(_shown, row)) + " |" for row in table.rows]
    if table.foot:
        lines.append("| " + " | ".join(map(plain, table.foot)) + " |")
    return "\n".join(lines)


def _shown(cell: Cell) -> str:
    text = f"**{plain(cell.text)}**" if cell.best else plain(cell.text)
    return f"{text} ({plain(cell.sub)})" if cell.sub else text


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write rows as CSV."""
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(map(inert, rows))


def write_queries(path: Path, tables: Iterable[tuple[str, QueryRanks]]) -> None:
    """Write (run, ranks) pairs as one table, a row a query and seed."""
    with pq.ParquetWriter(path, SCHEMA) as writer:
        for run, queries in tables:
            count = len(queries.ids)
            columns = [queries.ids, queries.image_ids, queries.labels, [queries.direction] * count, [run] * count]
            for seed, ranks in zip(queries.seeds, queries.ranks, strict=True):
                writer.write_table(pa.table([*columns, np.full(count, seed), ranks], schema=SCHEMA))


def read_queries(folder: Path, where: str = "") -> dict[str, dict[str, QueryRanks]]:
    """Read `per_query.parquet` of an evaluation's folder (`where` in errors): run → direction → ranks.

    Raises:
        UserError: The file is missing, damaged or of another make.
    """
    path = folder / FILE
    if not path.is_file():
        remedy = "run `pipeline evaluate` into that folder first"
        raise UserError(expected=f"the file {FILE}", found="none", where=where or str(folder), remedy=remedy)
    try:
        table = pq.ParquetFile(path).read(columns=SCHEMA.names).cast(SCHEMA)
    except (pa.ArrowException, ValueError, OSError) as error:
        found = " ".join(str(error).split())[:200]
        raise UserError(expected="a table of ranks by query", found=found, where=str(path)) from error
    columns = {name: table.column(name).to_numpy(zero_copy_only=False) for name in SCHEMA.names}
    result: dict[str, dict[str, QueryRanks]] = {}
    for run, direction in dict.fromkeys(zip(columns["run"].tolist(), columns["direction"].tolist(), strict=True)):
        held = (columns["run"] == run) & (columns["direction"] == direction)
        rows = {name: column[held] for name, column in columns.items()}
        result.setdefault(run, {})[direction] = _stack(rows, direction, path)
    return result


def _stack(rows: dict[str, NDArray[np.generic]], direction: str, path: Path) -> QueryRanks:
    seeds = tuple(dict.fromkeys(rows["seed"].tolist()))
    parts = [rows["seed"] == seed for seed in seeds]
    ids = rows["query_id"][parts[0]].tolist()
    if any(rows["query_id"][part].tolist() != ids for part in parts) or len(set(ids)) < len(ids):
        found = f"other queries or repeated ones in direction {direction}"
        raise UserError(expected="the same queries for every seed", found=found, where=str(path))
    return QueryRanks(
        direction=direction,
        ids=ids,
        image_ids=rows["image_id"][parts[0]].tolist(),
        labels=rows["label"][parts[0]].tolist(),
        seeds=seeds,
        ranks=np.stack([rows["rank"][part] for part in parts]).astype(np.int64),
    )
