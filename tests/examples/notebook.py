"""Run a notebook's cells in this process: `python -m tests.examples.notebook FILE` runs it and keeps what it shows.

A cell's outputs are what it prints and what its last expression shows in a notebook.
"""

import ast
import io
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import chdir, redirect_stdout
from pathlib import Path
from typing import Any

QUICKSTART = Path(__file__).resolve().parents[2] / "examples" / "quickstart.ipynb"
Output = dict[str, Any]


def cells_of(path: Path) -> list[dict[str, Any]]:
    """Return the code cells of a notebook."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def execute(path: Path, folder: Path) -> list[list[Output]]:
    """Return the outputs of each code cell, run one after another in a folder."""
    names: dict[str, Any] = {"__name__": "__main__"}
    with chdir(folder):
        return [list(_run("".join(cell["source"]), names)) for cell in cells_of(path)]


def _run(source: str, names: dict[str, Any]) -> Iterator[Output]:
    tree, shown, printed = ast.parse(source), None, io.StringIO()
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    with redirect_stdout(printed):
        exec(compile(tree, "cell", "exec"), names)
        if isinstance(last, ast.Expr):
            shown = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    if printed.getvalue():
        yield {"output_type": "stream", "name": "stdout", "text": printed.getvalue().splitlines(keepends=True)}
    if shown is not None:
        data = {"text/plain": repr(shown).splitlines(keepends=True)}
        if hasattr(shown, "_repr_html_"):
            data["text/html"] = shown._repr_html_().splitlines(keepends=True)
        yield {"output_type": "execute_result", "data": data, "metadata": {}, "execution_count": None}


def main() -> None:
    """Run a notebook in a new folder and write its outputs into it."""
    path = Path(sys.argv[1]).resolve()
    notebook = json.loads(path.read_text(encoding="utf-8"))
    with tempfile.TemporaryDirectory() as folder:
        found = execute(path, Path(folder))
    cells = (cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    for number, (cell, outputs) in enumerate(zip(cells, found, strict=True), 1):
        shown = [output | ({"execution_count": number} if "execution_count" in output else {}) for output in outputs]
        cell |= {"outputs": shown, "execution_count": number}
    path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
