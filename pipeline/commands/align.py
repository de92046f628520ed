"""`pipeline align`: choose the layer pair and train small projectors on cached features."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.commands.checks import writable_folder
from pipeline.commands.output import emit_json, say
from pipeline.commands.urls import takes_urls
from pipeline.errors import UserError
from pipeline.progress import silent
from pipeline.words import on_stderr

if TYPE_CHECKING:
    from pipeline.align.config import AlignConfig


@takes_urls("image", "text", "out")
def align(
    image: Annotated[list[Path] | None, typer.Option(help="Image store; several are concatenated.")] = None,
    text: Annotated[list[Path] | None, typer.Option(help="Text store; several are concatenated.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run, data/2_projectors/<name>.")] = None,
    method: Annotated[
        list[str] | None,
        typer.Option(help="fewpairs (the default), cca, info_nce, structure, ...; an unknown one lists all."),
    ] = None,
    layers: Annotated[
        str | None, typer.Option(help="auto (what suits the method), pair, stack, last, grow, spread, or I,J.")
    ] = None,
    layer_metric: Annotated[
        str | None, typer.Option(help="What pair and stack compare layers by: mutual_knn or cka.")
    ] = None,
    pairs: Annotated[int | None, typer.Option(help="Number of training images; all if unsaid.")] = None,
    seed: Annotated[list[int] | None, typer.Option(help="Seed; several make several trainings.")] = None,
    setting: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change the recipe, such as training.epochs=40 or dim=128."),
    ] = None,
    device: Annotated[str | None, typer.Option(help="auto, cpu or cuda.")] = None,
    log_to: Annotated[
        str | None, typer.Option(help="Log each seed's history as well: dvclive, tensorboard or wandb (offline).")
    ] = None,
    params: Annotated[Path, typer.Option(help="Where what is not said comes from.")] = Path("params.yaml"),
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Say nothing on the way.")] = False,
) -> None:
    """Choose the layer pair on training pairs and train small projectors; finished seeds are not trained again.

    Without --image, --text and --out: every method that params.yaml names.

    Example: pipeline align --method structure

    Example: pipeline align --image STORE --text STORE --layers auto --seed 1 --seed 2 --out data/2_projectors/mine
    """
    from pipeline.align.run import align as run

    flags: dict[str, Any] = {
        "layers": layers,
        "layer_metric": layer_metric,
        "pairs": pairs,
        "seeds": seed or None,
        "device": device,
        "log_to": log_to,
        "settings": settings_of(setting or []) or None,
    }
    done = []
    for config in _configs(image, text, out, method or [], params, flags):
        folder = run(config, silent if quiet else on_stderr)
        done.append(folder)
        if not json:
            say(str(folder))
    if json:
        from pipeline.projectors.run_record import AlignedRun

        emit_json([{"path": str(folder), **AlignedRun.open(folder).record} for folder in done])


def _configs(
    image: list[Path] | None,
    text: list[Path] | None,
    out: Path | None,
    methods: list[str],
    params: Path,
    flags: dict[str, Any],
) -> "list[AlignConfig]":
    from pipeline.align.config import AlignConfig, align_config
    from pipeline.config import build, load_params, names, section

    said = {"--image": image, "--text": text, "--out": out}
    given = [name for name, value in said.items() if value]
    flags = {name: value for name, value in flags.items() if value is not None}
    if len(given) == len(said):
        if len(methods) > 1:
            raise UserError(expected="one --method with --out", found=", ".join(methods), where="pipeline align")
        writable_folder(out or Path(), "--out")
        values = {**flags, "image": image, "text": text, "out": out, "method": (methods or ["fewpairs"])[0]}
        return [build(AlignConfig, values, where="pipeline align")]
    if given:
        raise UserError(
            expected="--image, --text and --out together, or none of them (then params.yaml says)",
            found=f"only {' and '.join(given)}",
            where="pipeline align",
        )
    settings = load_params(params)
    asked = methods or names(settings, "methods", where=str(params))
    if not asked:
        raise UserError(expected="--method, or methods in params.yaml", found="neither", where=str(params))
    values = {**section(settings, "align", str(params)), **flags}
    return [align_config({**settings, "align": values}, method, where=str(params)) for method in asked]


def settings_of(assignments: list[str]) -> dict[str, Any]:
    """Return `a.b=1` as {"a": {"b": 1}}; values are read as YAML."""
    import yaml

    found: dict[str, Any] = {}
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals or not name:
            raise UserError(expected="name=value", found=repr(assignment), where="--set")
        *parents, last = name.split(".")
        inner = found
        for parent in parents:
            below = inner.setdefault(parent, {})
            if not isinstance(below, dict):
                raise UserError(expected=f"{parent} set once, whole or by its parts", found="both", where="--set")
            inner = below
        try:
            inner[last] = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise UserError(expected="a value as YAML writes it", found=repr(assignment), where="--set") from error
    return found
