"""Open several runs for the server, under names of their own and with each encoder loaded once."""

import json
from collections.abc import Sequence
from pathlib import Path

from pipeline.apps.encoders import load_recorded
from pipeline.apps.serve.served import ServedRun
from pipeline.encoders.base import Encoder
from pipeline.errors import UserError
from pipeline.projectors.run_record import StoreRecord


class SharedEncoders:
    """Loads every encoder once, for all runs whose features came from it."""

    def __init__(self) -> None:
        self._loaded: dict[tuple[str, str, str], Encoder] = {}

    def __call__(self, record: StoreRecord, side: str, device: str) -> Encoder:
        """Return a record's encoder; that of another data set's features will do."""
        options = {name: value for name, value in record.key.items() if name != "dataset_digest"}
        key = (record.spec, side, json.dumps(options, sort_keys=True))
        if key not in self._loaded:
            self._loaded[key] = load_recorded(record, side, device)
        return self._loaded[key]


def open_runs(
    paths: Sequence[Path], *, image: Sequence[Path], text: Sequence[Path], data: Path | None, device: str
) -> list[ServedRun]:
    """Open several runs under names of their own; they share encoders.

    Raises:
        UserError: A run is named twice.
        PipelineError: One does not open.
    """
    places = [path.resolve() for path in paths]
    if len(set(places)) < len(places):
        raise UserError(expected="different runs", found="one of them twice", where=", ".join(map(str, paths)))
    names = [place.name for place in places]
    unique = [
        name if names.count(name) == 1 else f"{place.parent.name}/{name}"
        for name, place in zip(names, places, strict=True)
    ]
    if len(set(unique)) < len(unique):
        unique = [str(place) for place in places]
    loader = SharedEncoders()
    return [
        ServedRun.open(path, name, image=image, text=text, data=data, device=device, loader=loader)
        for path, name in zip(paths, unique, strict=True)
    ]
