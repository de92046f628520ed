"""`pipeline evaluate` and `pipeline compare`: retrieval, zero-shot and a report; two reports query by query."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.checks import writable_folder
from pipeline.commands.output import emit_json, emit_table, say
from pipeline.commands.urls import takes_urls
from pipeline.errors import UserError
from pipeline.words import on_stderr

if TYPE_CHECKING:
    from pipeline.evaluate.config import EvaluateConfig


@takes_urls("runs", "image", "text", "out", "classes", "data")
def evaluate(
    runs: Annotated[list[Path] | None, typer.Argument(help="Folders of runs; several stand side by side.")] = None,
    image: Annotated[list[Path] | None, typer.Option(help="Image store.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Text store.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the report.")] = None,
    split: Annotated[str | None, typer.Option(help="Split to evaluate.")] = None,
    classes: Annotated[list[Path] | None, typer.Option(help="Store of class prompts for zero-shot.")] = None,
    k: Annotated[list[int] | None, typer.Option(help="Cut-offs of recall@k; 1, 5 and 10 if unsaid.")] = None,
    data: Annotated[Path | None, typer.Option(help="Data set folder that holds the pictures.")] = None,
    probes: Annotated[
        bool | None, typer.Option("--probes/--no-probes", help="kNN and linear probes on labels; on if unsaid.")
    ] = None,
    csls: Annotated[int | None, typer.Option(help="Count retrieval with CSLS too, K neighbours.")] = None,
    params: Annotated[Path, typer.Option(help="Where what is not said comes from.")] = Path("params.yaml"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Evaluate runs on a test split: retrieval both ways, zero-shot, intervals, calibration, one HTML report.

    Without a run: every method that params.yaml names, into data/3_report.

    Example: pipeline evaluate

    Example: pipeline evaluate data/2_projectors/cca --image STORE --text STORE --out report --json
    """
    from pipeline.evaluate.run import evaluate as run

    flags: dict[str, Any] = {"split": split, "classes": classes, "ks": k, "data": data, "csls": csls}
    said = {name: value for name, value in flags.items() if value} | ({} if probes is None else {"probes": probes})
    config = _config(runs or [], image, text, out, params, said)
    writable_folder(config.out, "--out")
    if data is not None and not data.is_dir():
        raise UserError(expected="the data set folder that holds the pictures", found="none", where=f"--data {data}")
    metrics = run(config) if quiet else run(config, on_stderr)
    if json:
        emit_json(metrics)
    else:
        say((config.out / "metrics.md").read_text(encoding="utf-8"))
        say(f"Report: {config.out / 'report.html'}")


@takes_urls("first", "second")
def compare(
    first: Annotated[Path, typer.Argument(help="Folder of a report.")],
    second: Annotated[Path, typer.Argument(help="Folder of another report on the same queries.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare two evaluations query by query: paired bootstrap of every difference.

    Example: pipeline compare report-lite0 report-lite2
    """
    from pipeline.evaluate.compare import compare as run

    rows = run(first, second)
    if json:
        emit_json(rows)
    else:
        emit_table(rows, list(rows[0]) if rows else [])


def _config(
    runs: list[Path],
    image: list[Path] | None,
    text: list[Path] | None,
    out: Path | None,
    params: Path,
    flags: dict[str, Any],
) -> "EvaluateConfig":
    from pipeline.config import build, load_params, section
    from pipeline.evaluate.config import EvaluateConfig
    from pipeline.evaluate.params import evaluate_config

    if runs:
        said = {"--image": image, "--text": text, "--out": out}
        missing = [name for name, value in said.items() if not value]
        if missing:
            raise UserError(
                expected="--image, --text and --out with a run",
                found=f"no {' and no '.join(missing)}",
                where="pipeline evaluate",
            )
        return build(
            EvaluateConfig,
            {**flags, "runs": runs, "image": image, "text": text, "out": out},
            where="pipeline evaluate",
        )
    settings = load_params(params)
    values = {**section(settings, "evaluate", str(params)), **flags}
    if out:
        values["out"] = out
    return evaluate_config({**settings, "evaluate": values}, where=str(params))
