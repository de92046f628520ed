"""`pipeline sweep`: method × pairs × captions × layers × seed as one command that can be killed and goes on."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.commands.options import PARAMS, Address, Engine, Jobs, Json, Params, Quiet, takes_settings, together
from pipeline.commands.output import at_least_one, emit_json, emit_table, writable_folder
from pipeline.errors import UserError
from pipeline.progress import progress_bar
from pipeline.sweep.config import SweepConfig
from pipeline.words import on_stderr

DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what there is to do and stop.")]


@takes_settings(SweepConfig)
def sweep(
    given: dict[str, Any],
    *,
    jobs: Jobs = None,
    dry_run: DryRun = False,
    engine: Engine = "local",
    address: Address = None,
    params: Params = PARAMS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Align and measure every combination of settings.

    What is finished is not done again. Without --image and --text: the stores, methods and lists that params.yaml
    names. Writes results.csv, .json and .parquet (a row a cell), and for every cell a JSON and the rank of every query.

    Example: pipeline sweep --image STORE --text STORE --method cca --method info_nce --pairs 250 --pairs 1000
    --seed 1 --seed 42 --split test --out data/4_study/mine
    """
    from pipeline.engines import open_engine
    from pipeline.sweep.cells import flat_row, summary
    from pipeline.sweep.run import sweep as run
    from pipeline.sweep.run import worklist

    if jobs is not None:
        at_least_one(jobs, "--jobs")
    config = _config(given, params)
    writable_folder(config.out, "--out")
    with open_engine(engine, address, config.device) as chosen, progress_bar(quiet=quiet) as progress:
        at_once = chosen.jobs(jobs)
        if dry_run:
            typer.echo(worklist(config).sentence(at_once))
            return
        if "image" not in given and not quiet:
            on_stderr(f"As {params} says: {worklist(config).sentence(at_once)}")
        results = run(config, jobs=at_once, progress=progress, side_by_side=chosen.side_by_side)
    if json:
        emit_json([flat_row(result) for result in results])
        return
    rows = summary(results)
    emit_table(rows, list(dict.fromkeys(name for row in rows for name in row)))
    typer.echo(f"\nPercent, mean ± s.d. over seeds. All numbers: {config.out / 'results.csv'}")


def _config(given: dict[str, Any], params: Path) -> SweepConfig:
    from pipeline.config import build, load_params
    from pipeline.sweep.config import sweep_config

    if "image" not in given and "text" not in given:  # --out alone is where the sweep of params.yaml goes
        return sweep_config(load_params(params), **given)
    together(given, ("image", "text", "out"), where="pipeline sweep")
    if "methods" not in given:
        raise UserError(expected="--method, once or several times", found="none", where="pipeline sweep")
    return build(SweepConfig, given, where="pipeline sweep")


def study() -> None:
    """Tell where the study is now.

    Raises:
        UserError: Always.
    """
    raise UserError(
        expected="python -m examples.study --page docs/study.md, in a checkout (it takes the same options)",
        found="pipeline study, which has left the package",
        remedy="pipeline sweep does the cells of a study of your own",
    )
