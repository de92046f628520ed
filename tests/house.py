"""The house in numbers: how large the package is, how deep its rooms, and how many files a run enters.

    python -m tests.house            # sizes, functions, imports
    python -m tests.house --entered  # besides, runs the usual commands and counts the files that they enter
    python -m tests.house --entered --files  # and names them

`tests/test_architecture.py` holds the numbers to their bars.
"""

import ast
import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import median

ROOT = Path(__file__).resolve().parent.parent
Function = ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True)
class Measured:
    """One function: where it is, its lines of code without its docstring, how many parameters it takes."""

    name: str
    lines: int
    parameters: int


class House:
    """A Python package looked at through its source.

    Args:
        package: Its folder.
    """

    def __init__(self, package: Path = ROOT / "pipeline") -> None:
        self.package = package

    @cached_property
    def sources(self) -> dict[str, str]:
        """Return module → source."""
        found = {}
        for path in sorted(self.package.rglob("*.py")):
            parts = path.relative_to(self.package.parent).with_suffix("").parts
            name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
            found[name] = path.read_text(encoding="utf-8")
        return found

    @cached_property
    def trees(self) -> dict[str, ast.Module]:
        """Return module → syntax tree."""
        return {name: ast.parse(source) for name, source in self.sources.items()}

    def path(self, module: str) -> Path:
        """Return a module's file."""
        path = self.package.parent.joinpath(*module.split("."))
        return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")

    @cached_property
    def lines(self) -> dict[str, int]:
        """Return module → lines of its file."""
        return {name: len(source.splitlines()) for name, source in self.sources.items()}

    @cached_property
    def folders(self) -> Counter[Path]:
        """Return folder → files beside each other in it, `__init__` too."""
        return Counter(self.path(name).parent.relative_to(self.package.parent) for name in self.sources)

    @cached_property
    def imports(self) -> dict[str, set[str]]:
        """Return module → the package's modules that it imports anywhere, inside functions and type checks too."""
        return {name: self._imports(name) for name in self.sources}

    def _imports(self, module: str) -> set[str]:
        found: set[str] = set()
        for node in ast.walk(self.trees[module]):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                base = node.module or ""
                found |= {name if (name := f"{base}.{each.name}") in self.sources else base for each in node.names}
        top = self.package.name
        return {name for name in found if name == top or name.startswith(f"{top}.")}

    @cached_property
    def readers(self) -> dict[str, set[str]]:
        """Return module → the modules that import it; `__init__` files are left out on both sides."""
        whole = {name for name in self.sources if self.path(name).name != "__init__.py"}
        return {name: {other for other in whole - {name} if name in self.imports[other]} for name in whole}

    @cached_property
    def read_by_one(self) -> list[str]:
        """Return the modules that exactly one module imports."""
        return sorted(name for name, readers in self.readers.items() if len(readers) == 1)

    @cached_property
    def functions(self) -> list[Measured]:
        """Return every function and method, nested ones too."""
        return [
            Measured(f"{module}.{name}", _code_lines(node), _parameters(node))
            for module, tree in self.trees.items()
            for name, node in _functions(tree, "")
        ]

    @cached_property
    def documented(self) -> tuple[int, int]:
        """Return how many public modules, classes and functions there are, and how many have a docstring.

        Special methods count, but for `__init__`: the class says how it is made.
        """
        nodes = [node for tree in self.trees.values() for node in (tree, *_public(tree))]
        return len(nodes), sum(ast.get_docstring(node) is not None for node in nodes)

    @cached_property
    def typed(self) -> tuple[int, int]:
        """Return how many arguments and returns there are, and how many have a type."""
        slots = [slot for tree in self.trees.values() for _, node in _functions(tree, "") for slot in _slots(node)]
        return len(slots), sum(slot is not None for slot in slots)

    @cached_property
    def cycles(self) -> list[tuple[str, ...]]:
        """Return a path for each import that leads back to a module that is still being imported.

        The package itself is left out: it loads what it names when somebody asks for it.
        """
        found: list[tuple[str, ...]] = []
        done = {self.package.name}

        def visit(module: str, trail: tuple[str, ...]) -> None:
            if module in done:
                return
            if module in trail:
                found.append((*trail[trail.index(module) :], module))
            else:
                for other in sorted(self.imports[module] & set(self.sources) - {module}):
                    visit(other, (*trail, module))
                done.add(module)

        for module in self.sources:
            visit(module, ())
        return found

    def upward(self, floors: Mapping[str, float]) -> list[tuple[str, str]]:
        """Return (module, import) of each import that does not go down the floors of units."""
        found = []
        for module, others in self.imports.items():
            for other in sorted(others):
                own, target = unit(module), unit(other)
                if target is None or target == own:
                    continue
                if own is not None and floors[target] >= floors[own]:
                    found.append((module, other))
        return found

    def numbers(self) -> dict[str, float]:
        """Return the numbers that are held to bars."""
        lengths = sorted(each.lines for each in self.functions)
        public, documented = self.documented
        slots, typed = self.typed
        return {
            "lines": sum(self.lines.values()),
            "files": len(self.sources),
            "files in one folder, most": max(self.folders.values()),
            "lines of a file, most": max(self.lines.values()),
            "modules read by one module, percent": round(100 * len(self.read_by_one) / len(self.readers), 1),
            "lines of a function, median": median(lengths),
            "lines of a function, 90th percentile": lengths[int(0.9 * len(lengths))],
            "lines of a function, most": lengths[-1],
            "parameters of a function, most": max(each.parameters for each in self.functions),
            "documented, percent of public names": round(100 * documented / public, 1),
            "typed, percent of arguments and returns": round(100 * typed / slots, 1),
            "import cycles": len(self.cycles),
        }


def unit(module: str) -> str | None:
    """Return the unit of a module: the first name below the package."""
    parts = module.split(".")
    return parts[1] if len(parts) > 1 else None


def _functions(node: ast.AST, path: str) -> Iterator[tuple[str, Function]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, Function):
            yield f"{path}{child.name}", child
        inside = f"{path}{child.name}." if isinstance(child, Function | ast.ClassDef) else path
        yield from _functions(child, inside)


def _code_lines(node: Function) -> int:
    """Return the lines of a function, signature included, docstring and decorators left out."""
    whole = (node.end_lineno or node.lineno) - node.lineno + 1
    first = node.body[0]
    docstring = (first.end_lineno or first.lineno) - first.lineno + 1 if ast.get_docstring(node) is not None else 0
    return whole - docstring


def _arguments(node: Function) -> list[ast.arg]:
    each = node.args
    extra = [found for found in (each.vararg, each.kwarg) if found is not None]
    return [*each.posonlyargs, *each.args, *each.kwonlyargs, *extra]


def _parameters(node: Function) -> int:
    return len([each for each in _arguments(node) if each.arg not in ("self", "cls")])


def _slots(node: Function) -> list[ast.expr | None]:
    arguments = [each for each in _arguments(node) if each.arg not in ("self", "cls")]
    return [*(each.annotation for each in arguments), node.returns]


def _public(tree: ast.AST) -> Iterator[ast.ClassDef | Function]:
    for child in ast.iter_child_nodes(tree):
        dunder = child.name.startswith("__") and child.name != "__init__" if isinstance(child, Function) else False
        if isinstance(child, ast.ClassDef | Function) and (dunder or not child.name.startswith("_")):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from _public(child)


TRACE = """
import json, os, sys, threading
package, out, words = sys.argv[1], sys.argv[2], sys.argv[3:]
entered = set()


def note(frame, event, argument):
    if event == "call" and frame.f_code.co_flags & 1 and frame.f_code.co_filename.startswith(package):
        entered.add(frame.f_code.co_filename)


threading.setprofile(note)
sys.setprofile(note)
from pipeline.cli import main

sys.argv = ["pipeline", *words]
try:
    main()
except SystemExit as stop:
    code = stop.code
finally:
    sys.setprofile(None)
    with open(out, "w", encoding="utf-8") as file:
        json.dump(sorted(os.path.relpath(name, package) for name in entered), file)
sys.exit(code)
"""
"""Runs one command and notes the package's files whose functions it enters, in threads too (class bodies are none)."""
PICTURES = 40
IMAGE_ENCODER, TEXT_ENCODER = "package:efficientnet-lite0", "package:all-minilm-l6-v2"


def entered(package: Path = ROOT / "pipeline") -> dict[str, list[str]]:
    """Run the usual commands on 40 drawn pictures with packaged encoders; return command → files that it enters."""
    from tests.contract.making import draw_pictures

    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        draw_pictures(folder, PICTURES)
        image, text, run = (str(folder / name) for name in ("image", "text", "run"))
        stores = ("--image", image, "--text", text)
        extract = ("extract", "--dataset", str(folder / "data"), "--device", "cpu", "--quiet")
        images = (*extract, "--encoder", IMAGE_ENCODER, "--out", image)
        steps = {
            "": ("data", "import", str(folder / "pictures.csv"), "--out", str(folder / "data"), "--quiet"),
            f"extract of {PICTURES} pictures": images,
            "extract of their captions": (*extract, "--encoder", TEXT_ENCODER, "--out", text),
            "nothing to do": images,
            "align": ("align", *stores, "--out", run, "--quiet"),
            "align, a training": (
                "align",
                *stores,
                "--out",
                str(folder / "trained"),
                "--method",
                "combined",
                "--quiet",
            ),
            "evaluate one run": ("evaluate", run, *stores, "--out", str(folder / "report"), "--quiet"),
            "search one sentence": ("search", run, "a red circle"),
        }
        found = {name: _trace(package, folder, words) for name, words in steps.items()}
    return {name: files for name, files in found.items() if name}


def _trace(package: Path, folder: Path, words: tuple[str, ...]) -> list[str]:
    out = folder / "entered.json"
    environment = {**os.environ, "PYTHONPATH": str(package.parent)}
    command = [sys.executable, "-c", TRACE, str(package), str(out), *words]
    result = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if result.returncode:
        raise RuntimeError(f"{' '.join(words)}: {result.returncode}\n{result.stderr}")
    files: list[str] = json.loads(out.read_text(encoding="utf-8"))
    return files


def main() -> None:
    """Print the numbers; folders and functions at the far end by name."""
    house = House()
    say = sys.stdout.write
    for name, number in house.numbers().items():
        say(f"{number:>10,} {name}\n")
    for folder, files in sorted(house.folders.items()):
        say(f"{files:>10} files in {folder}\n")
    for each in sorted(house.functions, key=lambda each: -each.parameters)[:10]:
        say(f"{each.parameters:>10} parameters: {each.name}\n")
    for name in house.read_by_one:
        say(f"{house.lines[name]:>10} lines of {name}, read by {min(house.readers[name])} alone\n")
    if "--entered" in sys.argv:
        for command, names in entered().items():
            say(f"{len(names):>10} files entered by {command}\n")
            say("".join(f"{'':>11}{name}\n" for name in names) if "--files" in sys.argv else "")


if __name__ == "__main__":
    main()
