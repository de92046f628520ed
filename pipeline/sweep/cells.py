"""The cells of a sweep: what each one is, the digest of all that its result depends on, its files, and their tables.

`cells/<row>/<name>.json` is written last, beside an npz of ranks: a cell without one is not finished. `queries.json`
says which queries the ranks belong to.
"""

import csv
import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.align.config import AlignConfig
from pipeline.align.run import REVISION as ALIGN_REVISION
from pipeline.align.run import side_digest
from pipeline.errors import UserError, machine_error
from pipeline.evaluate.data import TestPairs, ZeroShotSet
from pipeline.files import dump_signed, read_signed, spaced_json_digest, write_atomically
from pipeline.layers import LayerRef
from pipeline.storage.contract import Place
from pipeline.store.views import Side
from pipeline.sweep.config import SweepConfig
from pipeline.words import inert

FORMAT = 1
REVISION = 1
"""Raised whenever the same projectors would be measured otherwise: cells of older code are then redone."""
QUERIES = "queries.json"
SHOWN = {
    "mean_recall": "mean recall",
    "text_retrieval_recall@1": "R@1 i→t",
    "image_retrieval_recall@1": "R@1 t→i",
}
"""Metrics of the summary, and their columns."""

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One run of one seed."""

    row: str
    """Name of the method in the tables."""
    pairs: int | None
    """Training images; None is all."""
    captions: int | None
    """Captions of each; None is all."""
    layers: str
    """As the sweep says it; a row with layers of its own stands with the first of the sweep's."""
    swapped: float
    """Share of the training images that got another's captions."""
    seed: int
    """The seed."""

    @property
    def name(self) -> str:
        """Its file's name, without ending: `cca/n1000-c5-auto-seed1`."""
        swapped = f"-swap{100 * self.swapped:g}" if self.swapped else ""
        return (
            f"{_slug(self.row)}/n{self.pairs or 'all'}-c{self.captions or 'all'}-{_slug(self.layers)}{swapped}"
            f"-seed{self.seed}"
        )

    def config(self, sweep: SweepConfig) -> AlignConfig:
        """Return the `align` settings that the cell is a seed of."""
        return sweep.align(self.row, self.pairs, self.captions, self.layers)


def _slug(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9._=-]", "_", text).lstrip(".") or "_"


def cells_of(config: SweepConfig) -> list[Cell]:
    """Return every cell, those that share layers and data side by side.

    Raises:
        UserError: Two cells would share a file.
    """
    lists = (config.layers, config.captions, config.pairs, config.swapped, config.methods, config.seeds)
    cells = dict.fromkeys(
        Cell(
            row=row,
            pairs=pairs,
            captions=captions,
            layers=config.layers[0] if config.methods[row].layers else layers,
            swapped=swapped,
            seed=seed,
        )
        for layers, captions, pairs, swapped, row, seed in product(*lists)
    )
    seen: dict[str, Cell] = {}
    for cell in cells:
        if seen.setdefault(cell.name.lower(), cell) is not cell:
            found = f"two that are both written as {cell.name}"
            raise UserError(expected="methods and layers of different names", found=found, where="sweep")
    return list(cells)


class Digests:
    """Digests of cells; the stores are looked at once.

    Args:
        config: The sweep.
        sides: Its opened image and text sides.
    """

    def __init__(self, config: SweepConfig, sides: tuple[Side, Side]) -> None:
        self._config = config
        measured: list[Any] = []
        if config.split is not None:
            measured = [config.split, list(config.corruption.image_noise), *_measured_stores(config)]
        features = [side_digest(side, side.layers()) for side in sides]
        self._shared = spaced_json_digest([REVISION, ALIGN_REVISION, features, measured])

    def of(self, cell: Cell) -> str:
        """Return the digest of all that a cell's result depends on."""
        align = cell.config(self._config)
        names = ("layers", "layer_metric", "stack", "train_split", "validation_split")
        settings = {name: getattr(align, name) for name in names}
        recipe = asdict(align.recipe())
        drawn: list[Any] = [cell.pairs, cell.captions, cell.swapped, cell.seed, align.seeds[0]]
        if self._config.classes and align.recipe().hubness.neighbours:
            drawn.append("classes are not corrected")  # in earlier versions they were
        return spaced_json_digest([self._shared, settings, recipe, drawn])


def _measured_stores(config: SweepConfig) -> Iterator[list[Any]]:
    """Yield what the result depends on beside the two sides: zero-shot sets and changed captions."""
    for each in config.classes:
        yield [each.name, each.split, *_stores("image", each.image), *_stores("text", each.classes)]
    for name, paths in config.corruption.texts.items():
        yield [name, *_stores("text", paths)]


def _stores(modality: str, paths: tuple[Place, ...]) -> Iterator[Any]:
    side = Side.open(modality, paths)
    yield side_digest(side, side.layers())


def cell_path(out: Path, cell: Cell) -> Path:
    """Return the path of a cell's JSON."""
    return out / "cells" / f"{cell.name}.json"


def finished_cell(out: Path, cell: Cell, digest: str) -> Result | None:
    """Return the result of a cell that was finished with the same settings, features and code, or None."""
    path = cell_path(out, cell)
    if not path.is_file():
        return None
    try:
        result = read_signed(path, "a finished cell")
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
        buffer = io.BytesIO()
        np.savez_compressed(buffer, allow_pickle=False, **{name: _narrow(held) for name, held in ranks.items()})
        write_atomically(ranks_path(path), buffer.getvalue())
    write_atomically(path, dump_signed({"format": FORMAT, **result, "cell": asdict(cell), "ranks": sorted(ranks)}))


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
        damaged = UserError(expected="ranks of a cell", found=str(error), where=str(path), remedy=remedy)
        raise machine_error(error, str(path)) or damaged from error


def save_queries(out: Path, test: TestPairs, class_sets: Sequence[ZeroShotSet]) -> None:
    """Write which queries the ranks belong to: ids of test images and captions, zero-shot images and labels."""
    data: dict[str, Any] = {
        "split": test.split,
        "images": test.image_ids,
        "captions": test.caption_ids,
        "caption_image": test.pairs.caption_image.tolist(),
        "agreement": [round(value, 5) for value in _agreement(test)],
        "classes": {each.name: {"images": each.image_ids, "labels": each.labels} for each in class_sets},
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
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(inert(row.get(name, "") for name in columns) for row in rows)
    write_atomically(out / "results.csv", text.getvalue().encode())
    write_atomically(out / "results.json", (json.dumps(rows, indent=1, allow_nan=False) + "\n").encode())
    whole = [{name: str(v) if name in ("pairs", "captions") else v for name, v in row.items()} for row in rows]
    table = pa.table({name: pa.array([row.get(name) for row in whole]) for name in columns})
    buffer = io.BytesIO()
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
