"""The engine of this machine: one process that extracts, worker processes for small runs."""

from pipeline.align.parallel import run_side_by_side
from pipeline.engines.base import Engine
from pipeline.extract.config import ExtractConfig
from pipeline.extract.run import ExtractResult
from pipeline.progress import Progress, silent


class LocalEngine(Engine):
    """Works here."""

    def jobs(self, said: int | None) -> int:
        """Return what was said, else one."""
        return said or 1

    def extract(self, config: ExtractConfig, progress: Progress = silent) -> ExtractResult:
        """Extract in this process."""
        from pipeline.extract.run import extract

        return extract(config, progress)

    side_by_side = staticmethod(run_side_by_side)
    """Does the items in this process or in `jobs` processes."""
