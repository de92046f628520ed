"""A sweep's files: a JSON and an npz of ranks for each cell, `queries.json` beside them, and the tables made of all.

`cells/<row>/<name>.json` is written last: a cell without one is not finished.
"""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.errors import UserError
from pipeline.evaluate.data import TestPairs
from pipeline.files import read_json, write_atomically
from pipeline.layers import LayerRef
from pipeline.sweep.bench import Workbench
from pipeline.sweep.cells import Cell

FORMAT = 1
QUERIES = "queries.json"
SHOWN = {
    "mean_recall": "mean recall",
    "text_retrieval_recall@1": "R@1 i→t",
    "image_retrieval_recall@1": "R@1 t→i",
}
"""Metrics of the summary, and their columns."""

Result = dict[str, Any]


def cell_path(out: Path, cell: Cell) -> Path:
    """Return the path of a cell's JSON."""
    return out / "cells" / f"{cell.name}.json"


def finished_cell(out: Path, cell: Cell, digest: str) -> Result | None:
    """Return the result of a cell that was finished with the same settings, features and code, or None."""
    path = cell_path(out, cell)
    if not path.is_file():
        return None
    try:
        result = read_json(path, "a finished cell")
    except UserError:
        return None
    whole = not result.get("ranks") or ranks_path(path).is_file()
    return result if result.get("digest") == digest and whole else None


def save_cell(out: Path, cell: Cell, result: Result, ranks: Mapping[str, NDArray[np.int64]]) -> None:
    """Write a cell's ranks and, last, its JSON."""
    path = cell_path(out, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    if ranks:
        buffer = BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{name: _narrow(held) for name, held in ranks.items()})
        write_atomically(ranks_path(path), buffer.getvalue())
    text = json.dumps({"format": FORMAT, **result, "cell": asdict(cell), "ranks": sorted(ranks)}, allow_nan=False)
    write_atomically(path, f"{text}\n".encode())


def _narrow(ranks: NDArray[np.int64]) -> NDArray[Any]:
    return ranks.astype(np.uint16 if int(ranks.max(initial=0)) < 2**16 else np.uint32)


def ranks_path(path: Path) -> Path:
    """Return the file of ranks that lies beside a cell's JSON."""
    return path.with_suffix(".npz")


def read_ranks(out: Path, cell: Cell) -> dict[str, NDArray[np.int64]]:
    """Return direction → rank of every query [Q], in the order of `queries.json`; 1 is best, ties count against it.

    Raises:
        UserError: The file is missing or damaged.
    """
    path = ranks_path(cell_path(out, cell))
    try:
        with np.load(path, allow_pickle=False) as held:
            return {name: held[name].astype(np.int64) for name in held.files}
    except (OSError, ValueError, EOFError) as error:
        remedy = "remove the cell's JSON and run the sweep again"
        raise UserError(expected="ranks of a cell", found=str(error), where=str(path), remedy=remedy) from error


def save_queries(out: Path, bench: Workbench) -> None:
    """Write which queries the ranks belong to: ids of test images and captions, zero-shot images and labels."""
    if bench.test is None:
        return
    data: dict[str, Any] = {
        "split": bench.test.split,
        "images": bench.test.image_ids,
        "captions": bench.test.caption_ids,
        "caption_image": bench.test.pairs.caption_image.tolist(),
        "agreement": [round(value, 5) for value in _agreement(bench.test)],
        "classes": {each.name: {"images": each.image_ids, "labels": each.labels} for each in bench.class_sets},
    }
    text = (json.dumps(data, ensure_ascii=False) + "\n").encode()
    if not (out / QUERIES).is_file() or (out / QUERIES).read_bytes() != text:
        write_atomically(out / QUERIES, text)


def _agreement(data: TestPairs) -> list[float]:
    """Return how far each measured caption [P] says what the other captions of its image say.

    It is the mean cosine of the frozen text embeddings (last layers, centred) to those others, 0 where there is none;
    no method decides it. A caption that agrees little is matched weakly with its image.
    """
    last = [LayerRef(index, store.layers[-1].name) for index, store in enumerate(data.text.stores)]
    features = data.text.read(last, data.pairs.caption_rows, constant_allowed=True).double()
    unit = torch.nn.functional.normalize(features - features.mean(dim=0), dim=1)
    owner = torch.from_numpy(data.pairs.caption_image)
    total = torch.zeros(len(data.pairs.image_rows), unit.shape[1], dtype=torch.float64).index_add_(0, owner, unit)
    rest = torch.bincount(owner)[owner] - 1
    cosine = ((total[owner] - unit) * unit).sum(dim=1) / rest.clamp(min=1)
    found: list[float] = cosine.tolist()
    return found


def flat_row(result: Result) -> dict[str, Any]:
    """Return a cell as one row of a table: what it is, then validation, test, seconds."""
    cell = {name: "all" if value is None else value for name, value in result["cell"].items()}
    rest = {
        "method": result["method"],
        "image_layers": "+".join(result["layers"]["image"]),
        "text_layers": "+".join(result["layers"]["text"]),
        **{f"val_{name}": value for name, value in result["validation"].items()},
        **result["test"],
        **{f"seconds_{name}": value for name, value in result["seconds"].items()},
        **{name: result[name] for name in ("steps", "temperature", "ridge", "lambda_first", "lambda_last")},
    }
    return cell | rest


def write_tables(out: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write results.csv, results.json and results.parquet: a row a cell (see `flat_row`), fractions and seconds."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = list(dict.fromkeys(name for row in rows for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomically(out / "results.csv", text.getvalue().encode())
    write_atomically(out / "results.json", (json.dumps(rows, indent=1, allow_nan=False) + "\n").encode())
    whole = [{name: str(v) if name in ("pairs", "captions") else v for name, v in row.items()} for row in rows]
    table = pa.table({name: pa.array([row.get(name) for row in whole]) for name in columns})
    buffer = BytesIO()
    pq.write_table(table, buffer)
    write_atomically(out / "results.parquet", buffer.getvalue())


def summary(results: Sequence[Result]) -> list[dict[str, str]]:
    """Return a row for each method and data, for people: means ± s.d. over seeds, percent."""
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for result in results:  # those that differ in nothing but the seed
        groups.setdefault(tuple(value for name, value in result["cell"].items() if name != "seed"), []).append(result)
    return [_summary_row(group) for group in groups.values()]


def _summary_row(group: Sequence[Result]) -> dict[str, str]:
    cell, test = group[0]["cell"], group[0]["test"]
    swapped = {"swapped": f"{100 * cell['swapped']:g} %"} if cell["swapped"] else {}
    shown = {metric: short for metric, short in SHOWN.items() if metric in test}
    shown |= {metric: metric for metric in test if metric.endswith("/acc1")}
    return {
        "method": cell["row"],
        "pairs": str(cell["pairs"] or "all"),
        "captions": str(cell["captions"] or "all"),
        "layers": cell["layers"],
        **swapped,
        "seeds": str(len(group)),
        "val mean recall": _percent([score_of(each) for each in group]),
        **{short: _percent([each["test"][metric] for each in group]) for metric, short in shown.items()},
        "CPU s": f"{np.mean([each['seconds']['fit_cpu'] for each in group]):.1f}",
    }


def score_of(result: Result) -> float:
    """Return a cell's mean recall on validation pairs."""
    return float(np.mean([value for name, value in result["validation"].items() if "_recall@" in name]))


def _percent(values: Sequence[float]) -> str:
    """Return fractions as percent: mean ± sample standard deviation."""
    mean = f"{100 * float(np.mean(values)):.1f}"
    return f"{mean} ± {100 * float(np.std(values, ddof=1)):.1f}" if len(values) > 1 else mean
