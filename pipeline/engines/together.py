"""What many workers on one store tell, told as one: rows add up, and a sentence that all of them say is heard once."""

from dataclasses import dataclass, replace

from pipeline.progress import Progress, Update


@dataclass
class _Share:
    """What one worker said of one kind of work."""

    first: Update
    last: Update

    @property
    def own(self) -> int:
        """Rows that it did itself; what it saw others do is counted where they tell it."""
        return (self.last.done - self.last.others) - (self.first.done - self.first.others)


class Together:
    """Adds up the updates of workers.

    A worker's count starts at what was done as it looked first; its own rows alone are added up. What a lost worker
    had not committed is counted again by whoever does it again, so the sum is cut at the total.

    Args:
        progress: Who is told.
    """

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._speaker: int | None = None
        self._shares: dict[str, dict[int, _Share]] = {}

    def tell(self, worker: int, update: Update) -> None:
        """Take what a worker says; its sentences count if it was the first to say one."""
        if update.message:
            if self._speaker in (None, worker):
                self._speaker = worker
                self._progress(update)
            return
        shares = self._shares.setdefault(update.what, {})
        shares.setdefault(worker, _Share(update, update)).last = update
        self._progress(self._sum(update))

    def forget(self, worker: int) -> None:
        """Take note that a worker is lost: what it did stays counted, its speed does not, and another may speak."""
        if self._speaker == worker:
            self._speaker = None
        for shares in self._shares.values():
            if worker in shares:
                shares[worker].last = replace(shares[worker].last, rate=0.0)

    def _sum(self, update: Update) -> Update:
        shares = self._shares[update.what].values()
        before = min(share.first.done for share in shares)
        done = before + sum(share.own for share in shares)
        done = min(done, update.total) if update.total else done
        rate = sum(share.last.rate for share in shares)
        eta = (update.total - done) / rate if rate and update.total else None
        return replace(update, done=done, rate=rate, others=0, eta=eta)
