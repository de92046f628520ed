"""`pipeline layers`: which image layer agrees most with which text layer."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.checks import at_least_one
from pipeline.commands.output import emit_json, emit_table
from pipeline.commands.urls import takes_urls
from pipeline.words import on_stderr

if TYPE_CHECKING:
    from pipeline.align.layer_scores import LayerCheck, LayerScores


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
    """Rank all pairs of layers by how alike they are on training pairs, against shuffled pairs.

    With --check a linear projector is trained on some pairs, on training rows, and validated on validation rows.

    Example: pipeline layers data/1_features/openmoji/efficientnet-lite0 data/1_features/openmoji/all-minilm-l6-v2
    """
    from pipeline.align.layer_scores import layers as score

    at_least_one(top, "--top")
    at_least_one(check_pairs, "--check-pairs")
    scores = score(image, text, split=split, seed=seed, metric=metric)
    checked = _check(image, text, scores, split, seed, check_pairs) if check else None
    if json:
        emit_json({**scores.to_json(), **({"check": checked.to_json()} if checked else {})})
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
    typer.echo(f"\n{scores.rows} images{f', k = {scores.k}' if scores.k else ''}. {scores.advice}")
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
