"""What an extraction gives back."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pipeline.extract.cost import Cost


@dataclass(frozen=True, kw_only=True)
class ExtractResult:
    """One store, made or found."""

    path: Path
    """The feature store."""
    what: str
    """What its rows are: images, captions or class prompts."""
    rows: int
    """N rows in it; 0 after a dry run of a new store."""
    layers: tuple[str, ...]
    """Layers that were asked for."""
    computed_shards: int
    """Shards of which this run computed something."""
    skipped_shards: int
    """Shards that were there already or came from another process."""
    rejected: int
    """Items that were left out; rejected.csv lists them."""
    nonfinite: int
    """Values that are infinite or not a number: fp16 overflows at 65504."""
    nonfinite_layers: dict[str, int]
    """How many of them each layer has; layers without any are left out."""
    seconds: float
    """Time that this run took."""
    content_digest: str
    """Digest of ids and values; empty after a dry run."""
    cost: Cost | None = None
    """What was to be done; None where nothing was."""
    classes: "ExtractResult | None" = None
    """The nested store of class prompts, where a text encoder has made one as well."""

    def sentence(self) -> str:
        """Return what was done, for people; the class prompts' sentence on a line of its own."""
        return "\n".join([self._own_sentence(), *([self.classes.sentence()] if self.classes else [])])

    def _own_sentence(self) -> str:
        if self.cost is not None and not self.content_digest:
            return f"{self.path}: {self.cost.sentence()}"
        if not self.computed_shards:
            return f"{self.path}: nothing to do, {self.rows} {self.what} are there ({self.seconds:.1f} s)"
        parts = [
            f"{self.path}: {self.rows} {self.what}, {len(self.layers)} layers, {self.seconds:.1f} s",
            f"{self.computed_shards} shards computed, {self.skipped_shards} found",
        ]
        if self.rejected:
            parts.append(f"{self.rejected} items left out, see {self.path / 'rejected.csv'}")
        if self.nonfinite:
            layers = ", ".join(f"{name} {count}" for name, count in self.nonfinite_layers.items())
            parts.append(f"{self.nonfinite} values are no finite numbers ({layers})")
        return "; ".join(parts)

    def to_json(self) -> dict[str, Any]:
        """Return the result as plain JSON data."""
        classes = self.classes.to_json() if self.classes else None
        return {**asdict(self), "path": str(self.path), "layers": list(self.layers), "classes": classes}
