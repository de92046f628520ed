"""`pipeline align`: choose the layer pair and train small projectors; `pipeline layers`: which layers agree most."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipeline.align.config import AlignConfig
from pipeline.commands.options import PARAMS, Json, Params, Quiet, takes_settings, takes_urls, together
from pipeline.commands.output import at_least_one, emit_json, emit_table, say, writable_folder
from pipeline.errors import UserError
from pipeline.progress import silent
from pipeline.settings import declared
from pipeline.storage.local import open_storage
from pipeline.words import count, listing, on_stderr

if TYPE_CHECKING:
    from pipeline.align.layer_scores import LayerCheck, LayerScores

METHOD = f"{declared(AlignConfig)['method'].help} Repeat for several. [default: those of params.yaml, or fewpairs]"


@takes_settings(AlignConfig)
def align(
    *,
    method: Annotated[list[str] | None, typer.Option(help=METHOD)] = None,
    given: dict[str, Any],
    params: Params = PARAMS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Choose layers and make projectors from training pairs.

    Finished seeds are not done again. Without --image, --text and --out: every method that params.yaml names.

    Example: pipeline align --method structure

    Example: pipeline align --image STORE --text STORE --layers auto --seed 1 --seed 2 --out data/2_projectors/mine
    """
    from pipeline.align.run import align as run
    from pipeline.projectors.run_record import AlignedRun

    done, configs = [], _configs(given, method or [], params)
    if "out" not in given and not quiet:
        first = configs[0]
        stores = listing([str(place) for place in (*first.image, *first.text)])
        methods = listing([config.method for config in configs])
        on_stderr(f"As {params} says: align {stores} by {methods} into {open_storage(first.out).here.parent}")
    for config in configs:
        run(config, silent if quiet else on_stderr)
        done.append(config.out)
        if not json:
            say(config.out)
    if json:
        emit_json([{"path": str(folder), **AlignedRun.open(folder).record} for folder in done])


def _configs(given: dict[str, Any], methods: list[str], params: Path) -> list[AlignConfig]:
    from pipeline.align.config import align_config
    from pipeline.config import build, load_params, names, section

    if together(given, ("image", "text", "out"), where="pipeline align"):
        if len(methods) > 1:
            raise UserError(expected="one --method with --out", found=", ".join(methods), where="pipeline align")
        writable_folder(open_storage(given["out"]).here, "--out")
        chosen = {"method": methods[0]} if methods else {}
        return [build(AlignConfig, given | chosen, where="pipeline align")]
    settings = load_params(params)
    asked = methods or names(settings, "methods", where=str(params))
    if not asked:
        raise UserError(expected="--method, or methods in params.yaml", found="neither", where=str(params))
    values = {**section(settings, "align", str(params)), **given}
    return [align_config({**settings, "align": values}, method, where=str(params)) for method in asked]


@takes_urls("image", "text")
def layers(
    image: Annotated[Path, typer.Argument(help="Image store.")],
    text: Annotated[Path, typer.Argument(help="Text store of the same data set.")],
    split: Annotated[str, typer.Option(help="Split whose images are compared.")] = "train",
    metric: Annotated[str, typer.Option(help="mutual_knn, or cka (unbiased linear CKA).")] = "mutual_knn",
    seed: Annotated[int, typer.Option(help="Seed of the sample of images (at most 5000) and of the shuffles.")] = 0,
    top: Annotated[int, typer.Option(help="How many pairs to show.")] = 10,
    check: Annotated[
        bool, typer.Option("--check", help="Train on some pairs too, to see whether the score predicts recall.")
    ] = False,
    check_pairs: Annotated[int, typer.Option(help="How many pairs --check trains on.")] = 20,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Rank pairs of layers by how alike they are.

    They are compared on training pairs, and against shuffled pairs. With --check a linear projector is trained on some
    pairs, on training rows, and validated on validation rows.

    Example: pipeline layers data/1_features/openmoji/efficientnet-lite0 data/1_features/openmoji/all-minilm-l6-v2
    """
    from pipeline.align.layer_scores import layers as score

    at_least_one(top, "--top")
    at_least_one(check_pairs, "--check-pairs")
    scores = score(image, text, split=split, seed=seed, metric=metric)
    checked = _check(image, text, scores, split, seed, check_pairs) if check else None
    if json:
        emit_json({**asdict(scores), **({"check": asdict(checked)} if checked else {})})
        return
    pairs = [(i, j) for i in range(len(scores.image_layers)) for j in range(len(scores.text_layers))]
    pairs.sort(key=lambda pair: -scores.calibrated[pair[0]][pair[1]])
    emit_table(
        (
            {
                "image layer": scores.image_layers[i],
                "text layer": scores.text_layers[j],
                scores.metric: f"{scores.score[i][j]:.4f}",
                "calibrated": f"{scores.calibrated[i][j]:.4f}",
                "p": f"{scores.p_value[i][j]:.3f}",
            }
            for i, j in pairs[:top]
        ),
        ("image layer", "text layer", scores.metric, "calibrated", "p"),
    )
    typer.echo(f"\n{count(scores.rows, 'image')}{f', k = {scores.k}' if scores.k else ''}. {scores.advice}")
    if checked:
        typer.echo(checked.sentence)


def _check(image: Path, text: Path, scores: "LayerScores", split: str, seed: int, pairs: int) -> "LayerCheck":
    from pipeline.align.layer_scores import check_layers

    return check_layers(
        image,
        text,
        scores,
        pairs=pairs,
        split=split,
        seed=seed,
        progress=on_stderr,
    )
