"""The house holds: floors, no cycles, light help, DVC deps cover the code, the wheel holds only `pipeline`."""

import ast
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

from pipeline.align.config import AlignConfig
from pipeline.evaluate.config import EvaluateConfig
from pipeline.extract.config import ExtractConfig
from pipeline.settings import declared
from tests.house import House, entered, unit

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "pipeline"
FLOORS = {
    "errors": 0,  # everybody raises them
    "settings": 1,
    "config": 2,
    "layers": 1,
    "runtime": 1,
    "words": 1,
    "files": 1,
    "heif": 1,
    "parallel": 1,
    "progress": 2,
    "storage": 2,
    "store": 3,
    "encoders": 3,
    "projectors": 3,
    "metrics": 3,
    "indexes": 4,
    "extract": 5,
    "align": 5,
    "evaluate": 5,
    "apps": 6,
    "engines": 6,
    "sweep": 6,
    "commands": 7,
    "cli": 8,
}
HEAVY = (
    "torch",
    "faiss",
    "h5py",
    "pyarrow",
    "numpy",
    "transformers",
    "timm",
    "open_clip",
    "matplotlib",
    "PIL",
    "ray",
    "fsspec",
    "s3fs",
)


HOUSE = House()
PATHS = {module: HOUSE.path(module) for module in HOUSE.sources}
AT_MOST = {
    "lines": 35500,
    "files": 165,
    "files in one folder, most": 15,
    "lines of a file, most": 450,
    "modules read by one module, percent": 20,
    "lines of a function, 90th percentile": 20,
    "parameters of a function, most": 10,
    "import cycles": 0,
}
AT_LEAST = {"documented, percent of public names": 98.5, "typed, percent of arguments and returns": 100}
"""The bars: a number may get better, and then its bar follows; `python -m tests.house` prints them all."""
ENTERED = {
    "extract of 40 pictures": 41,
    "extract of their captions": 40,
    "nothing to do": 25,
    "align": 36,
    "align, a training": 44,
    "evaluate one run": 44,
    "search one sentence": 38,
}
"""How many of the package's files a command enters, at most."""


@pytest.mark.parametrize("what", [*AT_MOST, *AT_LEAST])
def test_the_house_keeps_its_size(what: str) -> None:
    found = HOUSE.numbers()[what]
    assert found <= AT_MOST[what] if what in AT_MOST else found >= AT_LEAST[what], found


@pytest.mark.slow
def test_commands_enter_few_files() -> None:
    found = entered()
    assert sorted(found) == sorted(ENTERED)
    assert not {name: len(files) for name, files in found.items() if len(files) > ENTERED[name]}


def test_every_unit_has_a_floor() -> None:
    assert {name for module in HOUSE.sources if (name := unit(module))} <= set(FLOORS)


def test_imports_go_strictly_down() -> None:
    """Units import units of lower floors only; the package itself names its doors, whoever reads them."""
    assert not [f"{module} imports {other}" for module, other in HOUSE.upward(FLOORS)]


def test_imports_are_absolute() -> None:
    nodes = ((module, node) for module, tree in HOUSE.trees.items() for node in ast.walk(tree))
    assert not [module for module, node in nodes if isinstance(node, ast.ImportFrom) and node.level]


def test_there_are_no_import_cycles() -> None:
    assert not [" → ".join(cycle) for cycle in HOUSE.cycles]


@pytest.mark.parametrize("command", [[], ["extract"], ["align"], ["evaluate"], ["store", "ls"], ["search"], ["serve"]])
def test_help_loads_nothing_heavy(command: list[str]) -> None:
    script = (
        "import sys\n"
        "from pipeline.cli import main\n"
        f"sys.argv = ['pipeline', *{command!r}, '--help']\n"
        "try:\n    main()\nexcept SystemExit as stop:\n    assert not stop.code, stop.code\n"
        f"loaded = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not loaded, loaded\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=False)
    assert result.returncode == 0, result.stderr
    assert "Usage" in result.stdout


STAGES = {"extract": "extract", "align": "align", "evaluate": "evaluate"}
STAGES |= {"experiment": "align", "experiment-report": "evaluate"}


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_dependencies_cover_the_code_that_a_stage_runs(stage: str) -> None:
    """Follow the imports of the stage's script through the package; each file must lie in one of the stage's deps."""
    spec = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    deps = [ROOT / dep for dep in spec["deps"] if "$" not in dep]
    script = ROOT / "stages" / f"{STAGES[stage]}.py"
    assert spec["cmd"].startswith(f"python stages/{STAGES[stage]}.py ".strip())
    assert script in deps
    waiting, seen = [script], set[Path]()
    while waiting:
        path = waiting.pop()
        if path in seen or path == PACKAGE / "__init__.py":  # its public names load when asked for, and no stage asks
            continue
        seen.add(path)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
            waiting += [PATHS[name] for name in names if name in PATHS]
    uncovered = [path for path in seen if not any(path == dep or dep in path.parents for dep in deps)]
    assert not uncovered, f"{stage} runs code that its deps do not name: {uncovered}"


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_dependencies_name_nothing_unrelated(stage: str) -> None:
    spec = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"][stage]
    others = {"extract", "align", "evaluate"} - {STAGES[stage]}
    assert not [dep for dep in spec["deps"] if dep in {f"pipeline/{other}" for other in others}]
    assert "pipeline" not in spec["deps"]


def test_all_of_align_but_the_experiments_method_is_tracked() -> None:
    """A change of `align.method` must not train the methods of the report anew; a change of the rest must."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    paths_and_method = {"image", "text", "out", "replace", "method"}
    fields = set(declared(AlignConfig)) - paths_and_method | {"dataset"}
    assert set(stages["align"]["params"]) == {f"align.{name}" for name in fields}
    assert stages["experiment"]["params"] == ["align"]
    for path in (ROOT / "params.yaml", ROOT / "examples" / "flickr8k.yaml"):
        assert set(yaml.safe_load(path.read_text())["align"]) == fields | {"method"}


def test_all_of_extract_and_evaluate_is_tracked() -> None:
    """Both stages depend on their whole section, which holds nothing but declared settings (and data sets' names)."""
    stages = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
    for stage, declared_here, more in (("extract", ExtractConfig, set()), ("evaluate", EvaluateConfig, {"zero_shot"})):
        assert stage in stages[stage]["params"]
        for path in (ROOT / "params.yaml", ROOT / "examples" / "flickr8k.yaml"):
            assert set(yaml.safe_load(path.read_text())[stage]) <= set(declared(declared_here)) | more


def test_an_extraction_survives_a_failed_run() -> None:
    outs = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["extract"]["outs"]
    assert all(settings["persist"] for out in outs for settings in out.values())


def test_the_wheel_holds_the_package_alone(tmp_path: Path) -> None:
    """Build with the backend that is installed; no isolated environment, so no network."""
    pytest.importorskip("setuptools", reason="setuptools is needed to build a wheel without a network")
    script = (
        "import sys\nfrom setuptools import build_meta\n"
        f"build_meta.build_wheel({str(tmp_path)!r}, {{'--build-option': []}})\n"
    )
    copy = tmp_path / "tree"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        (copy / name).write_bytes((ROOT / name).read_bytes())
    for folder in ("pipeline", "stages", "tests"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                target = copy / path.relative_to(ROOT)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(path.read_bytes())
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=copy, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.split("/")[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"pipeline"}
    assert "pipeline/py.typed" in names
    assert any(name.startswith("pipeline/evaluate/templates/") for name in names)
    assert {f"pipeline/apps/serve/page/{name}" for name in ("index.html", "style.css", "main.js")} <= set(names)
    (entry,) = (name for name in names if name.endswith("entry_points.txt"))
    with zipfile.ZipFile(wheel) as archive:
        assert "pipeline = pipeline.cli:main" in archive.read(entry).decode()


def test_no_print_or_assert_in_shipped_code() -> None:
    for module, tree in HOUSE.trees.items():
        for node in ast.walk(tree):
            assert not isinstance(node, ast.Assert), f"{module}:{node.lineno} asserts"
            is_print = isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
            assert not is_print, f"{module} prints"
