"""What one of several encoders on a cluster is asked for, and what it does with that in its worker.

A store or data set at a URL goes there as the URL: every machine has a cache of its own, wherever it lies.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipeline.engines.cluster import load_ray
from pipeline.engines.decoding import Decoding, Hand
from pipeline.engines.worker import Seat
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import ExtractResult
from pipeline.remote.binding import address, bind, bound, urls_in_errors


@dataclass(frozen=True)
class Part:
    """One encoder's part of an extraction."""

    config: ExtractConfig
    """The settings, with the paths of who asks."""
    urls: Mapping[str, str]
    """Field of the settings → URL that its folder stands for."""
    hands: Sequence[Hand] = ()
    """Decoders that it may use."""


def part(config: ExtractConfig, hands: Sequence[Hand] = ()) -> Part:
    """Return what is sent to a worker."""
    folders = {"dataset": config.dataset, "out": config.out}
    return Part(config, {name: address(path) for name, path in folders.items() if bound(path)}, hands)


def extract_part(asked: Part, seat: Seat) -> ExtractResult:
    """Extract in a worker; the result names the folders of who asked."""
    from pipeline.extract.run import extract

    config = replace(_config_here(asked), workers=asked.config.workers or seat.threads)
    decoding = Decoding(load_ray(), config, config.workers or seat.threads, asked.hands) if asked.hands else None
    with urls_in_errors():
        return _result_there(extract(config, seat.tell, decoding), config.out, asked.config.out)


def make_room(asked: Part, seat: Seat) -> None:
    """Remove a store of another key in a worker, as `replace` asks for."""
    from pipeline.extract.run import make_room

    with urls_in_errors():
        make_room(_config_here(asked))


def _config_here(asked: Part) -> ExtractConfig:
    changes: dict[str, Any] = {name: bind(url) for name, url in asked.urls.items()}
    return replace(asked.config, **changes)


def _result_there(result: ExtractResult, ours: Path, theirs: Path) -> ExtractResult:
    classes = _result_there(result.classes, ours, theirs) if result.classes else None
    return replace(result, path=theirs / result.path.relative_to(ours), classes=classes)
