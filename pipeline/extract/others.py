"""What other workers commit while this one works: counted by the names of new commit records, which is cheap."""

import time
from collections.abc import Sequence
from pathlib import Path

from pipeline.store.layout import is_record, shard_index
from pipeline.store.records import PendingShard

_AGAIN = 1.0
"""Seconds between two looks into the folder."""


class Others:
    """Counts the rows of shards that were pending when this worker began and that others have committed since.

    Make it first and ask what is pending then: a shard that is committed in between is done, and not counted here.

    Args:
        root: The store.
        own: Shards that this worker committed; grows while it works.
    """

    def __init__(self, root: Path, own: set[int]) -> None:
        self._root, self._own = root, own
        self._rows: dict[int, int] = {}
        self._before = self._names()
        self._looked, self._found = time.monotonic(), 0

    def watch(self, pending: Sequence[PendingShard]) -> int:
        """Count these shards from now on; return how many rows they have."""
        self._rows = {shard.index: shard.stop - shard.start for shard in pending}
        return sum(self._rows.values())

    def rows(self, again: float = _AGAIN) -> int:
        """Return how many there are; what was found less than `again` seconds ago counts as now."""
        if time.monotonic() - self._looked >= again:
            self._looked = time.monotonic()
            new = {shard_index(name) for name in self._names() - self._before} - self._own
            self._found = sum(self._rows.get(index, 0) for index in new if index is not None)
        return self._found

    def _names(self) -> set[str]:
        return {path.name for path in self._root.iterdir() if is_record(path.name)}
