"""`pipeline align`: choose the layer pair and train small projectors on cached features."""

from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.align.config import AlignConfig
from pipeline.commands.checks import writable_folder
from pipeline.commands.options import PARAMS, Json, Params, Quiet, takes_settings, together
from pipeline.commands.output import emit_json, say
from pipeline.commands.urls import takes_urls
from pipeline.errors import UserError
from pipeline.progress import silent
from pipeline.settings import declared
from pipeline.words import on_stderr

METHOD = f"{declared(AlignConfig)['method'].help} Repeat for several. [default: those of params.yaml, or fewpairs]"


@takes_urls("image", "text", "out")
@takes_settings(AlignConfig)
def align(
    *,
    method: Annotated[list[str] | None, typer.Option(help=METHOD)] = None,
    given: dict[str, Any],
    params: Params = PARAMS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Choose the layer pair on training pairs and train small projectors; finished seeds are not trained again.

    Without --image, --text and --out: every method that params.yaml names.

    Example: pipeline align --method structure

    Example: pipeline align --image STORE --text STORE --layers auto --seed 1 --seed 2 --out data/2_projectors/mine
    """
    from pipeline.align.run import align as run
    from pipeline.projectors.run_record import AlignedRun

    done = []
    for config in _configs(given, method or [], params):
        folder = run(config, silent if quiet else on_stderr)
        done.append(folder)
        if not json:
            say(str(folder))
    if json:
        emit_json([{"path": str(folder), **AlignedRun.open(folder).record} for folder in done])


def _configs(given: dict[str, Any], methods: list[str], params: Path) -> list[AlignConfig]:
    from pipeline.align.config import align_config
    from pipeline.config import build, load_params, names, section

    if together(given, ("image", "text", "out"), where="pipeline align"):
        if len(methods) > 1:
            raise UserError(expected="one --method with --out", found=", ".join(methods), where="pipeline align")
        writable_folder(given["out"], "--out")
        chosen = {"method": methods[0]} if methods else {}
        return [build(AlignConfig, given | chosen, where="pipeline align")]
    settings = load_params(params)
    asked = methods or names(settings, "methods", where=str(params))
    if not asked:
        raise UserError(expected="--method, or methods in params.yaml", found="neither", where=str(params))
    values = {**section(settings, "align", str(params)), **given}
    return [align_config({**settings, "align": values}, method, where=str(params)) for method in asked]
