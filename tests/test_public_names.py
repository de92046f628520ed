"""The names of `from pipeline import …`: whatever was imported before, lazily, and as the type checker knows them."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

import pipeline
from pipeline.store.samples import Samples
from tests.apps.colours import make_run

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("align", "evaluate", "extract", "sweep")


def run(*lines: str) -> str:
    """Run lines of Python in a process of their own and return what they print."""
    command = [sys.executable, "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(
    "before",
    [
        "",
        "import pipeline.{0}.run",
        "from pipeline.{0}.run import {0} as other",
        "from pipeline import {0}\nimport pipeline.{0}.config",
    ],
)
def test_a_stage_is_called_whatever_was_imported_before(before: str) -> None:
    said = run(
        *(
            line
            for stage in STAGES
            for line in (
                before.format(stage),
                f"from pipeline import {stage}",
                f"import pipeline.{stage}.run",
                f"assert pipeline.{stage} is {stage}",
                f"pipeline.{stage}.run.{stage} = lambda *given, **options: (given, options)",
                f"print({stage}(1, two=2), pipeline.{stage}(3))",
            )
        )
    )
    assert said.splitlines() == ["((1,), {'two': 2}) ((3,), {})"] * len(STAGES)


def typed(config: pipeline.AlignConfig) -> Path:
    """Call a stage as the type checker sees it; never run."""
    return pipeline.align(config)


def test_every_public_name_is_what_its_own_module_holds() -> None:
    for name in pipeline.__all__:
        found = getattr(pipeline, name)
        if name in STAGES:
            assert found is sys.modules[f"pipeline.{name}"]
        else:
            assert found is getattr(sys.modules[found.__module__], name)
            assert found.__module__.startswith("pipeline.")
    assert set(pipeline.__all__) <= set(dir(pipeline))


def test_the_names_are_those_that_the_type_checker_sees() -> None:
    """The block for the type checker, and the table that loads: a name that only one of them knows is a mistake."""
    lines = (ROOT / "pipeline" / "__init__.py").read_text(encoding="utf-8").splitlines()
    typed = [line.split(" import ") for line in lines if line.startswith("    from pipeline.")]
    homes = {name: home.split()[-1] for home, names in typed for name in names.split(", ")}
    assert sorted(homes) == sorted(pipeline.__all__)
    for name, home in homes.items():
        expected = f"pipeline.{name}.run" if name in STAGES else f"pipeline.{pipeline._HOMES[name]}"
        assert home == expected


def test_the_package_itself_goes_to_the_modules() -> None:
    """So that who imports what stays visible: public names are for those outside."""
    for path in [*(ROOT / "pipeline").rglob("*.py"), *(ROOT / "stages").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "pipeline":
                used = {alias.name for alias in node.names} & {*pipeline._HOMES, *STAGES}
                assert not used, f"{path}:{node.lineno} imports {used}"


def test_importing_the_package_loads_nothing_else() -> None:
    loaded = json.loads(
        run(
            "import sys, json, types, typing, importlib",
            "before = set(sys.modules)",
            "import pipeline",
            "print(json.dumps(sorted(set(sys.modules) - before)))",
        )
    )
    assert loaded == ["pipeline"]


def test_a_wrong_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'pipeline' has no attribute 'FeatureStores'"):
        pipeline.FeatureStores  # noqa: B018
    with pytest.raises(ImportError, match="cannot import name 'FeatureStores'"):
        exec("from pipeline import FeatureStores")


def test_objects_are_short_in_a_notebook(tmp_path: Path) -> None:
    """A store's samples once printed 830 kB; a table shows the first rows, and what it shows is escaped."""
    names = [f"<i{number}>" for number in range(500)]
    samples = Samples(names, names, ["train", "test"] * 250, [""] * 500, ["a & b"] * 500)
    assert repr(samples) == "<Samples: 500 rows of 500 images, splits: test, train>"
    shown = samples._repr_html_()
    assert shown.count("<tr>") == 11
    assert "<td>&lt;i0&gt;</td>" in shown
    assert "<td>a &amp; b</td>" in shown
    run = pipeline.AlignedRun.open(make_run(tmp_path))
    assert repr(run) == f"<AlignedRun identity: 1 seed, 3 dimensions; {tmp_path / 'run'}>"
    store = pipeline.FeatureStore.open(tmp_path / "image")
    said = f"FeatureStore {tmp_path.name}, tests.apps.tiny:Colours: {store.rows} image rows, 1 layer (output)"
    assert repr(store) == f"<{said}>"
    assert f"<caption>{said}</caption>" in store._repr_html_()
    assert "<td>output</td><td>3</td><td>float16</td>" in store._repr_html_()
