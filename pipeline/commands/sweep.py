"""`pipeline sweep`: method × pairs × captions × layers × seed as one command that can be killed and goes on."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands import engine as engines
from pipeline.commands.checks import at_least_one, writable_folder
from pipeline.commands.output import emit_json, emit_table
from pipeline.commands.urls import takes_urls
from pipeline.config import assignments
from pipeline.errors import UserError
from pipeline.progress import progress_bar

if TYPE_CHECKING:
    from pipeline.sweep.config import SweepConfig


@takes_urls("image", "text")
def sweep(
    image: Annotated[list[Path] | None, typer.Option(help="Image store; several are concatenated.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Text store; several are concatenated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results.")] = None,
    method: Annotated[list[str] | None, typer.Option(help="Method; repeat for several.")] = None,
    pairs: Annotated[
        list[str] | None, typer.Option(help="Number of training images, or all; repeat for several.")
    ] = None,
    captions_per_image: Annotated[
        list[str] | None, typer.Option(help="Captions of a training image, or all; repeat for several.")
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="auto (what suits the method), pair, stack, last, grow, spread, or I,J; repeat."),
    ] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed; repeat for several.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to measure on, such as test; only validation if unsaid.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option(help="Zero-shot set as NAME=IMAGE_STORE:PROMPT_STORE (of several encoders with commas); repeat."),
    ] = None,
    setting: Annotated[
        list[str] | None, typer.Option("--set", help="Change every recipe, such as training.epochs=40.")
    ] = None,
    jobs: engines.Jobs = None,
    device: Annotated[str | None, typer.Option(help="cpu, auto or cuda.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Keep each cell's projectors below <out>/runs.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what there is to do and stop.")] = False,
    engine: engines.Name = "local",
    address: engines.Address = None,
    params: Annotated[Path, typer.Option(help="Where what is not said comes from.")] = Path("params.yaml"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress.")] = False,
) -> None:
    """Align and measure every combination of the values given; what is finished is not done again.

    Writes results.csv, .json and .parquet (a row a cell), and for every cell a JSON and the rank of every query.

    Example: pipeline sweep --image STORE --text STORE --method cca --method info_nce --pairs 250 --pairs 1000
    --seed 1 --seed 42 --split test --out data/4_study/mine
    """
    from pipeline.engines import open_engine
    from pipeline.sweep.results import flat_row, summary
    from pipeline.sweep.run import sweep as run
    from pipeline.sweep.run import worklist

    if jobs is not None:
        at_least_one(jobs, "--jobs")
    flags: dict[str, Any] = {
        "image": image,
        "text": text,
        "out": out,
        "methods": method,
        "pairs": counts(pairs, "--pairs"),
        "captions": counts(captions_per_image, "--captions-per-image"),
        "layers": layers,
        "seeds": seed,
        "split": split,
        "classes": [_class_set(value) for value in classes or []],
        "settings": assignments(setting or []),
        "device": device,
        "keep": keep,
    }
    config = _config({name: value for name, value in flags.items() if value}, params)
    writable_folder(config.out, "--out")
    with open_engine(engine, address, config.device) as chosen, progress_bar(quiet=quiet) as progress:
        at_once = chosen.jobs(jobs)
        if dry_run:
            typer.echo(worklist(config).sentence(at_once))
            return
        results = run(config, jobs=at_once, progress=progress, side_by_side=chosen.side_by_side)
    if json:
        emit_json([flat_row(result) for result in results])
        return
    rows = summary(results)
    emit_table(rows, list(dict.fromkeys(name for row in rows for name in row)))
    typer.echo(f"\nPercent, mean ± s.d. over seeds. All numbers: {config.out / 'results.csv'}")


ANY_WORDS: dict[str, Any] = {"allow_extra_args": True, "ignore_unknown_options": True, "help_option_names": []}
"""Settings of a command that takes whatever is typed behind it."""


def study() -> None:
    """Say where the study is now.

    Raises:
        UserError: Always.
    """
    raise UserError(
        expected="python -m examples.study --page docs/study.md, in a checkout (it takes the same options)",
        found="pipeline study, which has left the package",
        remedy="pipeline sweep does the cells of a study of your own",
    )


def counts(values: list[str] | None, option: str) -> list[int | None]:
    """Return numbers, None for `all`.

    Raises:
        UserError: A value is neither.
    """
    wrong = [value for value in values or [] if value != "all" and not value.isdecimal()]
    if wrong:
        raise UserError(expected="a number or all", found=repr(wrong[0]), where=option)
    return [None if value == "all" else int(value) for value in values or []]


def _class_set(value: str) -> dict[str, Any]:
    name, _, stores = value.partition("=")
    image, _, prompts = stores.partition(":")
    if not (name and image and prompts):
        expected = "NAME=IMAGE_STORE:PROMPT_STORE"
        raise UserError(expected=expected, found=repr(value), where="--classes")
    return {"name": name, "image": image.split(","), "classes": prompts.split(",")}


def _config(flags: dict[str, Any], params: Path) -> "SweepConfig":
    from pipeline.config import build, load_params
    from pipeline.sweep.config import SweepConfig, methods_of, sweep_config

    said = {"--image": "image", "--text": "text", "--out": "out"}
    given = [option for option, name in said.items() if name in flags]
    if len(given) == len(said):
        methods = methods_of(flags.get("methods", []), "--method")
        if not methods:
            raise UserError(expected="--method, once or several times", found="none", where="pipeline sweep")
        return build(SweepConfig, {**flags, "methods": methods}, where="pipeline sweep")
    if "--image" in given or "--text" in given:
        found = f"only {' and '.join(given)}"
        expected = "--image, --text and --out together, or neither store (then params.yaml says)"
        raise UserError(expected=expected, found=found, where="pipeline sweep")
    return sweep_config(load_params(params), **flags)
