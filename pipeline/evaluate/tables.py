"""The files beside the report: metrics.json, metrics.csv, metrics.md, differences.csv; metrics/ and plots/ for DVC.

JSON and CSV hold fractions; percent is for metrics.md, which people read.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.evaluate.duplicates import Duplicates, Twin, without
from pipeline.evaluate.leaderboard import Leaderboard
from pipeline.evaluate.probes import Probe, probe_metrics
from pipeline.evaluate.queries import IMAGE_RETRIEVAL, TEXT_RETRIEVAL, ZERO_SHOT, Measure
from pipeline.evaluate.single import RunResult

TIE_RULE = "ties count against the query"
CURVE = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 15, 20, 25, 30, 40, 50, 75, 100)
Row = dict[str, Any]


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
            "training_images": training_images(run.record),
            **counts,
        }
        for run in board.runs
    }
    return next(iter(tables.values())) if len(tables) == 1 else tables


def _without_seen(run: RunResult, board: Leaderboard, found: Duplicates) -> dict[str, float | None]:
    """Return every measure once more without the queries that training has seen; equal where it has seen none."""
    return {
        f"{each.name}_without_{kind}": without(each, run.queries[each.direction], touched[each.direction])
        for kind, touched in found.touched.items()
        for each in board.measures
        if each.direction in touched
    }


def training_images(record: Mapping[str, Any]) -> int | None:
    """Return how many images a run was trained on; None where its record does not say."""
    pairs = record.get("pairs")
    found = pairs.get("training_images") if isinstance(pairs, Mapping) else None
    return found if isinstance(found, int) else None


def _numbers(run: RunResult, board: Leaderboard) -> Row:
    table: Row = {}
    for measure in board.measures:
        table[measure.name] = run.mean(measure.name)
        table[f"{measure.name}_std"] = run.deviation(measure.name)
    for direction in (TEXT_RETRIEVAL, IMAGE_RETRIEVAL):
        table |= {f"{direction}_{name}": value for name, value in ranking(run, direction).items()}
    for measure in board.measures:
        if measure.direction in run.csls:
            table[f"{measure.name}_csls"] = csls_value(run, measure)
    for direction, calibration in run.calibration.items():
        zero_shot = direction.removeprefix(ZERO_SHOT).removeprefix(":")
        prefix = f"{direction}_" if zero_shot == direction else f"{zero_shot}/" if zero_shot else ""
        for suffix, each in (("", calibration), ("_scaled", calibration.scaled)):
            if each is not None:
                for name in ("ece", "mean_max_probability", "temperature"):
                    table[f"{prefix}{name}{suffix}"] = getattr(each, name)
    return table


def csls_value(run: RunResult, measure: Measure) -> float:
    """Return a measure of retrieval under CSLS, mean over seeds."""
    return float((run.csls[measure.direction] <= measure.k).mean())


def ranking(run: RunResult, direction: str) -> dict[str, float]:
    """Return mean and median rank and mean average precision of a direction of retrieval, means over seeds."""
    ranks = run.queries[direction].ranks
    return {
        "mean_rank": float(ranks.mean()),
        "median_rank": float(np.median(ranks, axis=1).mean()),
        "mAP": float(run.precision[direction].mean()),
    }


def recall_curve(run: RunResult, direction: str, largest: int) -> list[tuple[int, float]]:
    """Return (k, recall@k) up to a cut-off, mean over seeds."""
    ranks = run.queries[direction].ranks
    return [(k, float((ranks <= k).mean())) for k in CURVE if k <= largest]


def write_tables(
    out: Path, board: Leaderboard, values: Mapping[str, Any], duplicates: Duplicates, probes: Sequence[Probe]
) -> None:
    """Write all files but the report and the table of queries."""
    for folder in (out / "metrics", out / "plots"):
        folder.mkdir(exist_ok=True)
    _write_json(out / "metrics.json", values)
    for run in board.runs:  # the means alone: `dvc metrics show` makes a row of each file
        _write_json(out / "metrics" / f"{run.name}.json", {each.name: run.mean(each.name) for each in board.measures})
    (out / "metrics.md").write_text(_markdown(board), encoding="utf-8")
    _write_csv(out / "metrics.csv", _long_rows(board))
    differences = ("run", "against", "measure", "value", "low", "high", "p_value")
    _write_csv(out / "differences.csv", map(vars, board.differences()), differences)
    _write_csv(out / "duplicates.csv", map(vars, duplicates.twins), [each.name for each in fields(Twin)])
    rows = (vars(each) | {"runs": " ".join(each.runs)} for each in probes)
    _write_csv(out / "probes.csv", rows, [each.name for each in fields(Probe)])
    plots, runs = out / "plots", board.runs
    _write_csv(plots / "recall_at_k.csv", _curve_rows(runs), ("run", "direction", "k", "recall"))
    _write_csv(plots / "history.csv", _history_rows(runs), ("run", "seed", "step"))
    bins = ("run", "direction", "temperature", "confidence", "accuracy", "answers")
    _write_csv(plots / "reliability.csv", _reliability_rows(runs), bins)
    _write_csv(plots / "layer_pairs.csv", _layer_rows(runs), ("run", "image_layer", "text_layer", "score"))


def _write_json(path: Path, value: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]], names: Sequence[str] = ()) -> None:
    """Write rows as CSV; columns are those of all rows, the named ones first."""
    held = list(rows)
    columns = list(dict.fromkeys([*names, *(name for row in held for name in row)]))
    with path.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(held)


def _long_rows(board: Leaderboard) -> Iterator[Row]:
    for run in board.runs:
        for measure in board.measures:
            low, high = board.interval(run, measure.name)
            row = {"run": run.name, "metric": measure.name, "mean": run.mean(measure.name)}
            row |= {"std": run.deviation(measure.name), "low": low, "high": high}
            yield row | {"chance": board.chance[measure.name], "seeds": len(run.seeds)}


def _curve_rows(runs: Sequence[RunResult]) -> Iterator[Row]:
    for run in runs:
        for direction in (TEXT_RETRIEVAL, IMAGE_RETRIEVAL):
            for k, value in recall_curve(run, direction, CURVE[-1]):
                yield {"run": run.name, "direction": direction, "k": k, "recall": value}


def _history_rows(runs: Sequence[RunResult]) -> Iterator[Row]:
    for run in runs:
        for seed, steps in run.history.items():
            for step in steps:
                numbers = {name: value for name, value in step.items() if type(value) in (int, float)}
                yield {"run": run.name, "seed": seed} | numbers


def _reliability_rows(runs: Sequence[RunResult]) -> Iterator[Row]:
    for run in runs:
        for direction, own in run.calibration.items():
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


def _markdown(board: Leaderboard) -> str:
    names = [measure.name for measure in board.measures]
    lines = [
        f"Percent, mean ± s.d. over seeds, [{100 * board.confidence:.0f} % interval over test images].",
        "",
        "| run | " + " | ".join(names) + " |",
        "|---" * (len(names) + 1) + "|",
    ]
    for run in board.runs:
        cells = [" ".join(run.name.split()).replace("|", "\\|")]
        for name in names:
            low, high = board.interval(run, name)
            deviation = run.deviation(name)
            spread = "" if deviation is None else f" ± {100 * deviation:.1f}"
            cells.append(f"{100 * run.mean(name):.1f}{spread} [{100 * low:.1f}, {100 * high:.1f}]")
        lines.append("| " + " | ".join(cells) + " |")
    lines.append("| chance | " + " | ".join(f"{100 * board.chance[name]:.1f}" for name in names) + " |")
    return "\n".join(lines) + "\n"
