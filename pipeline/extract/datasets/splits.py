"""Which split an item is in: the source's own word where there is one, a hash of its id otherwise.

The hash rule needs no random state and no list: an image keeps its split when others come or go.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.errors import UserError

SPLIT_NAMES = {
    "train": "train",
    "training": "train",
    "restval": "train",
    "val": "val",
    "valid": "val",
    "validation": "val",
    "dev": "val",
    "test": "test",
    "testing": "test",
}
"""How sources write the three splits; `restval` is Karpathy's name for validation images that everybody trains on."""


@dataclass(frozen=True)
class SplitRule:
    """Shares of train, val and test, drawn by the sha256 of the id.

    Raises:
        UserError: A share is negative or the three do not sum to 1.
    """

    train: float = 0.8
    val: float = 0.1
    test: float = 0.1

    def __post_init__(self) -> None:
        shares = (self.train, self.val, self.test)
        if min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise UserError(
                expected="three shares (train, val, test) that are not negative and sum to 1",
                found="/".join(f"{share:g}" for share in shares),
                where="--split",
                remedy="say for example --split 0.8/0.1/0.1",
            )

    @classmethod
    def parse(cls, text: str) -> "SplitRule":
        """Read `0.8/0.1/0.1` (or with commas).

        Raises:
            UserError: The text is not three numbers that sum to 1.
        """
        try:
            train, val, test = (float(part) for part in text.replace(",", "/").split("/"))
        except ValueError as error:
            raise UserError(expected="three shares such as 0.8/0.1/0.1", found=repr(text), where="--split") from error
        return cls(train, val, test)

    def of(self, item_id: str) -> str:
        """Return `train`, `val` or `test` for an id."""
        point = int.from_bytes(hashlib.sha256(item_id.encode("utf-8", "surrogateescape")).digest()[:8], "big") / 2**64
        return "train" if point < self.train else "val" if point < self.train + self.val else "test"

    def describe(self) -> str:
        """Return the rule in words, for dataset.json."""
        return f"sha256 of image_id: train {self.train:g}, val {self.val:g}, test {self.test:g}"


def official_split(name: str) -> str:
    """Return `train`, `val` or `test` for the names that mean them, any other name as it is."""
    return SPLIT_NAMES.get(name.strip().lower(), name.strip())


def named_splits(names: Sequence[str]) -> bool:
    """Tell whether all names (of folders, say) are names of splits, and at least one is there."""
    return bool(names) and all(name.lower() in SPLIT_NAMES for name in names)
