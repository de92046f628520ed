"""Labels as sources write them, numbers or names, made into class names."""

from pathlib import Path

from pipeline.errors import UserError
from pipeline.extract.datasets.layout import read_classes
from pipeline.extract.datasets.record import Classes


class LabelNames:
    """Class names by number, if the source has a list of them.

    Args:
        classes: The list; None: labels are kept as they are written.
        where: The list's file, for the error.
    """

    def __init__(self, classes: Classes | None, where: str) -> None:
        self.classes = classes
        self._where = where

    @classmethod
    def beside(cls, table: Path) -> "LabelNames":
        """Read classes.json next to a table, if it is there."""
        path = table.parent / "classes.json"
        return cls(read_classes(path) if path.is_file() else None, str(path))

    def of(self, label: object) -> str:
        """Return the class name of a label; empty for none, which a list of classes also lets be written as -1.

        Raises:
            UserError: A list of classes is there and the label is not in it.
        """
        text = "" if label is None else str(label).strip()
        if not text or self.classes is None or text in self.classes.names:
            return text
        names = self.classes.names
        if text == "-1":
            return ""
        if text.isdecimal() and int(text) < len(names):
            return names[int(text)]
        raise UserError(expected=f"a label of 0..{len(names) - 1} or a class name", found=repr(text), where=self._where)
