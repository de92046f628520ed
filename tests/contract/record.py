"""Write the contract down anew: `python -m tests.contract.record`. Only where it is meant to change; say why.

`--written` makes the files of `written.zip` anew as well: they stand for stores, runs and indexes of older versions,
so a format that changes gets a second file beside it, never another first one.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.contract.making import make_project

HERE = Path(__file__).parent


def load(name: str) -> Any:
    """Return one file of the contract."""
    return json.loads((HERE / f"{name}.json").read_text(encoding="utf-8"))


def save(name: str, value: Any) -> None:
    """Write one file of the contract."""
    text = json.dumps(value, indent=1, ensure_ascii=False, sort_keys=True)
    (HERE / f"{name}.json").write_text(text + "\n", encoding="utf-8")


def main() -> None:
    """Make everything and write it down."""
    from tests.contract import exits, numbers, shapes, surface, written

    with tempfile.TemporaryDirectory() as place:
        project = Path(place) / "project"
        make_project(project)
        save("surface", surface.surface())
        save("numbers", numbers.measured(project))
        if "--written" in sys.argv:
            written.pack(project)
        save("exits", exits.codes(project))
        save("shapes", shapes.documents(project))


if __name__ == "__main__":
    main()
