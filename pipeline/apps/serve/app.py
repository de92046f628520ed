"""The ASGI application: API, page and guard put together. `create_app(runs)`; run by `server.serve`."""

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI, Response
from starlette.types import ASGIApp

from pipeline import __version__
from pipeline.apps.serve.api import Api
from pipeline.apps.serve.guard import Guard
from pipeline.apps.serve.limits import BATCH, QUEUE
from pipeline.apps.serve.problems import ApiError, add_handlers
from pipeline.apps.serve.served import ServedRun
from pipeline.apps.serve.worker import Worker

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}


def create_app(runs: Sequence[ServedRun], names: Collection[str] = (), *, queue: int = QUEUE) -> ASGIApp:
    """Return the application over some runs.

    Args:
        runs: The runs, the default first.
        names: Host names that are allowed beside `localhost` and IP addresses.
        queue: How many questions may wait.
    """
    return Guard(inner_app(runs, queue=queue), names)


def inner_app(runs: Sequence[ServedRun], *, queue: int = QUEUE) -> FastAPI:
    """Return the application without its guard."""
    worker = Worker(queue, BATCH)
    api = Api(runs, worker)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        worker.close()
        api.decoders.shutdown(cancel_futures=True)

    app = FastAPI(
        title="fewpairs",
        version=__version__,
        description="Search images by text and by picture, and classify them by class names.",
        docs_url=None,  # these pages load scripts from elsewhere
        redoc_url=None,
        lifespan=lifespan,
    )
    add_handlers(app)
    app.include_router(api.router)
    _add_page(app)
    return app


def _add_page(app: FastAPI) -> None:
    """Serve the page's files from memory: no path of a request reaches the disk."""
    files = {path.name: (path.read_bytes(), KINDS[path.suffix]) for path in PAGE.iterdir() if path.suffix in KINDS}

    async def index() -> Response:
        return Response(files["index.html"][0], media_type="text/html", headers={"Cache-Control": "no-cache"})

    async def file(name: str) -> Response:
        if name not in files:
            raise ApiError(404, expected="a file of the page", found=ascii(name)[:100], where="request")
        data, kind = files[name]
        return Response(data, media_type=kind, headers={"Cache-Control": "no-cache"})

    app.get("/", include_in_schema=False)(index)
    app.get("/page/{name}", include_in_schema=False)(file)
