"""`pipeline search`: type a sentence, or give a picture, and see which images fit best."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.commands.checks import at_least_one, writable_file
from pipeline.commands.output import emit_json, emit_table
from pipeline.commands.urls import takes_urls
from pipeline.errors import UserError

if TYPE_CHECKING:
    from pipeline.apps.search import SearchResult


@takes_urls("run", "store", "text_store")
def search(
    run: Annotated[Path, typer.Argument(help="Folder of a run, data/2_projectors/<name>.")],
    query: Annotated[str | None, typer.Argument(help="What to look for.")] = None,
    image: Annotated[
        Path | None, typer.Option("--image", help="A picture to look for, in place of a sentence.")
    ] = None,
    top: Annotated[int, typer.Option(help="How many to show.")] = 10,
    split: Annotated[str | None, typer.Option(help="Only images of this split.")] = None,
    seed: Annotated[int | None, typer.Option(help="Which of the run's seeds; the first if unsaid.")] = None,
    store: Annotated[list[Path] | None, typer.Option(help="Image store; the one of the training if unsaid.")] = None,
    text_store: Annotated[
        list[Path] | None, typer.Option(help="Store of the captions; the one of the training if unsaid.")
    ] = None,
    captions: Annotated[bool, typer.Option("--captions", help="List captions in place of images.")] = False,
    index: Annotated[
        Path | None, typer.Option("--index", help="Folder of `pipeline index`; images are indexed anew if unsaid.")
    ] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
    show: Annotated[Path | None, typer.Option("--show", help="Write the found images as one PNG to this file.")] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON: a list of images (or captions), best first.")
    ] = False,
) -> None:
    """Find the images that fit a sentence (or a picture) best.

    Example: pipeline search data/2_projectors/combined "a red heart"

    Example: pipeline search data/2_projectors/combined --image photo.jpg --top 5 --captions
    """
    if (query is None) == (image is None):
        raise UserError(
            expected='a sentence or --image FILE, such as pipeline search RUN "a red heart"',
            found="neither" if query is None else "both",
            where="pipeline search",
        )
    at_least_one(top, "--top")
    if show:
        writable_file(show, "--show")
    from pipeline.apps.search import Searcher

    searcher = Searcher.open(
        run, image=store or (), text=text_store or (), seed=seed, split=split, stored=index, device=device
    )
    if captions:
        searcher.require_captions()
    found = searcher.by_image(image, top) if image else searcher.by_text(query or "", top, captions=captions)
    if show:
        from pipeline.apps.search import contact_sheet

        contact_sheet(found, show)
    if json:
        emit_json([asdict(hit) for hit in (found.captions if captions else found.images)])
        return
    if not captions:
        _show_images(found)
    if found.captions:
        typer.echo(nl=not captions)
        _show_captions(found)


def _show_images(found: "SearchResult") -> None:
    emit_table(
        (
            {
                "score": f"{hit.score:.3f}",
                "image": hit.image_id,
                "file": Path(found.data) / hit.file,
                "captions": "; ".join(hit.captions),
            }
            for hit in found.images
        ),
        ("score", "image", "file", "captions"),
    )


def _show_captions(found: "SearchResult") -> None:
    emit_table(
        ({"score": f"{hit.score:.3f}", "caption": hit.caption, "image": hit.image_id} for hit in found.captions),
        ("score", "caption", "image"),
    )
