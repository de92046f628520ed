"""`pipeline serve`: search trained runs in the browser, by sentence and by picture, and over a JSON API."""

from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from pipeline.commands.urls import takes_urls
from pipeline.errors import MissingExtraError, UserError

NEEDED = ("fastapi", "uvicorn", "python_multipart")
HIGHEST_PORT = 65535


@takes_urls("runs", "store", "text_store", "data")
def serve(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, data/2_projectors/<name>; the first is shown.")],
    port: Annotated[int, typer.Option(help="Port; 0 takes any that is free.")] = 8000,
    host: Annotated[
        str, typer.Option(help="Address to listen on; only this machine reaches the default.")
    ] = "127.0.0.1",
    allow_host: Annotated[
        list[str] | None, typer.Option(help="Name that the server is reached by, beside localhost and IP addresses.")
    ] = None,
    store: Annotated[list[Path] | None, typer.Option(help="Image store; the one of the training if unsaid.")] = None,
    text_store: Annotated[
        list[Path] | None, typer.Option(help="Store of the captions; the one of the training if unsaid.")
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the pictures; the one of the store if unsaid.")] = None,
    device: Annotated[str, typer.Option(help="cpu, cuda or auto.")] = "cpu",
) -> None:
    """Search runs in the browser and over a JSON API, until Ctrl-C.

    Example: pipeline serve data/2_projectors/fewpairs

    Example: pipeline serve data/2_projectors/fewpairs data/2_projectors/cca --port 8080
    """
    if not 0 <= port <= HIGHEST_PORT:
        raise UserError(expected=f"a port from 0 to {HIGHEST_PORT}", found=str(port), where="--port")
    if data is not None and not data.is_dir():
        raise UserError(expected="a folder of pictures", found="no such folder", where=f"--data {data}")
    for name in NEEDED:
        if find_spec(name) is None:
            raise MissingExtraError(name, "pip install 'fewpairs[serve]'", "pipeline serve")
    from pipeline.apps.serve.server import serve as run_server

    run_server(
        runs,
        host=host,
        port=port,
        names=allow_host or (),
        image=store or (),
        text=text_store or (),
        data=data,
        device=device,
    )
