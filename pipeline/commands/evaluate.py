"""`pipeline evaluate` and `pipeline compare`: retrieval, zero-shot and a report; two reports query by query."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import PARAMS, Json, Params, Quiet, takes_settings, takes_urls
from pipeline.commands.output import emit_json, emit_table, say, writable_folder
from pipeline.errors import UserError
from pipeline.evaluate.config import EvaluateConfig
from pipeline.storage.local import open_storage
from pipeline.words import listing, on_stderr


@takes_settings(EvaluateConfig)
def evaluate(given: dict[str, Any], *, params: Params = PARAMS, json: Json = False, quiet: Quiet = False) -> None:
    """Evaluate runs on a test split and write one report.

    Retrieval both ways, zero-shot classification, intervals, calibration. Without a run: every method that params.yaml
    names, into data/3_report.

    Example: pipeline evaluate

    Example: pipeline evaluate data/2_projectors/cca --image STORE --text STORE --out report --json
    """
    from pipeline.evaluate.run import evaluate as run

    config = _config(given, params)
    if "runs" not in given and not quiet:
        names = listing([open_storage(run).name for run in config.runs])
        on_stderr(f"As {params} says: evaluate {names} on split {config.split} into {config.out}")
    report = open_storage(config.out)
    writable_folder(report.here, "--out")
    data = given.get("data")
    if data is not None and open_storage(data).absent():
        raise UserError(expected="the data set folder that holds the pictures", found="none", where=f"--data {data}")
    found = run(config) if quiet else run(config, on_stderr)
    if not json:
        say(found)
        return
    if found.warning and not quiet:
        on_stderr(found.warning)
    emit_json(found)


@takes_urls("first", "second")
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a report.")],
    second: Annotated[Path, typer.Argument(help="Folder of another report on the same queries.")],
    json: Json = False,
) -> None:
    """Compare two reports query by query.

    Every difference (second minus first) has an interval and a p-value by a paired bootstrap over images. The table
    shows percent and points; --json has fractions, unrounded.

    Example: pipeline compare report-lite0 report-lite2
    """
    from pipeline.evaluate.compare import compare as run

    rows = run(first, second)
    if json:
        emit_json(rows)
    else:
        shown = list(map(_rounded, rows))
        columns = [name for name in shown[0] if name != "left out" or any(row["left_out"] for row in rows)]
        emit_table(shown, columns)


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Return a row of a comparison for people: percent, points, p to three places."""
    points = {name: f"{100 * row[name]:+.1f}".replace("-", "−") for name in ("difference", "low", "high")}
    return {
        "run": row["run"],
        "metric": row["metric"],
        "a, %": f"{100 * row['a']:.1f}",
        "b, %": f"{100 * row['b']:.1f}",
        "b − a": points["difference"],
        "interval": f"{points['low']} to {points['high']}",
        "p": f"{row['p_value']:.3f}",
        "queries": row["queries"],
        "left out": row["left_out"],
    }


def _config(given: dict[str, Any], params: Path) -> EvaluateConfig:
    from pipeline.config import build, load_params, section
    from pipeline.evaluate.config import evaluate_config

    if "runs" in given:
        missing = [f"--{name}" for name in ("image", "text", "out") if name not in given]
        if missing:
            raise UserError(
                expected="--image, --text and --out with a run",
                found=f"no {' and no '.join(missing)}",
                where="pipeline evaluate",
            )
        return build(EvaluateConfig, given, where="pipeline evaluate")
    settings = load_params(params)
    values = {**section(settings, "evaluate", str(params)), **given}
    return evaluate_config({**settings, "evaluate": values}, where=str(params))
