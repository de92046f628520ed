"""CONTRIBUTING's four promises, walked: a loss, an encoder, a format and a setting are added in one place each.

The first three are a class and one line of a table, so here a class below and one entry; nothing else of the package is
touched, and the command line takes the new name. A setting is one field of a class: it is written into a copy of the
package, and its option, its check, its place in params.yaml and in the receipt's request follow.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml
from torch import Tensor

from pipeline.align.losses import LOSSES
from pipeline.align.losses.contrastive import ContrastiveLoss, Directions
from pipeline.align.losses.targets import Targets
from pipeline.encoders.base import Encoder, LoadOptions, Spec
from pipeline.encoders.load import ENCODERS
from pipeline.store.formats import FORMATS, Hdf5Format
from tests.commands.encoders import Pixels
from tests.commands.project import DATA, IMAGE, IMAGES, TEXT
from tests.commands.running import done, refused
from tests.conftest import ROOT

STORES = ("--image", IMAGE, "--text", TEXT)


class Hinge(ContrastiveLoss):
    """How far each mismatch is within 0.2 of the match."""

    def forward(self, similarity_NN: Tensor, targets: Targets, allowed_NN: Tensor | None = None) -> Directions:
        within_NN = (0.2 + similarity_NN - similarity_NN.diagonal()[:, None]).clamp_min(0)
        return Directions(within_NN.mean() / self.temperature(), within_NN.T.mean() / self.temperature())


class Brightness(Pixels):
    """The pixels of another encoder, each of them twice as bright."""

    def encode(self, prepared: Sequence[Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        return {name: 2 * values for name, values in super().encode(prepared, layers).items()}


def load(spec: Spec, options: LoadOptions) -> Encoder:
    """Load the one model of the family."""
    return Brightness(options)


class OwnFormat(Hdf5Format):
    """HDF5 under another name and another ending."""

    suffix = ".own"


def test_a_loss_is_a_class_and_a_line_of_its_table(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("align", *STORES, "--method", "info_nce", "--set", "loss=hinge", "--set", "training.epochs=2")
    assert "expected a known loss (info_nce, siglip, dcl), found 'hinge'" in refused(*words, "--out", "run")
    monkeypatch.setitem(LOSSES, "hinge", Hinge)
    done(*words, "--out", "run", "--seed", 1, "--quiet")
    record = json.loads((own / "run/run.json").read_text(encoding="utf-8"))
    assert record["config"]["recipe"]["loss"] == "hinge"
    assert "hinge" in refused(*words[:-4], "--set", "loss=nothing", "--out", "other")


def test_an_encoder_is_a_module_and_a_line_of_its_table(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ("extract", "--dataset", DATA, "--encoder", "bright:any", "--out", "x", "--quiet")
    assert "known encoder family" in refused(*words)
    monkeypatch.setitem(ENCODERS, "bright", "tests.commands.test_contributing:load")
    done(*words)
    assert done("store", "ls", "x", "--json").json()["rows"] == IMAGES
    done("store", "convert", "x", "--layers", "mean", "--format", "safetensors", "--out", "values")


def test_a_format_is_a_class_and_a_line_of_its_table(own: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Written, listed, verified to the last byte, found complete, and of the same content as in another format."""
    words = ("extract", "--dataset", DATA, "--encoder", "tests.commands.encoders:Pixels", "--out", "x", "--quiet")
    assert "expected a known file format (hdf5, parquet), found 'own'" in refused(*words, "--format", "own")
    monkeypatch.setitem(FORMATS, "own", OwnFormat())
    done(*words, "--format", "own")
    assert list((own / "x").glob("*.own"))
    found, known = (done("store", "ls", store, "--json").json() for store in ("x", IMAGE))
    assert found["content_digest"] == known["content_digest"]
    assert done("store", "verify", "--deep", "x", "--json").json() == []
    assert done("store", "gc", "x", "--json").json() == []
    assert all(shard["state"] == "done" for shard in done("store", "status", "x", "--json").json())
    assert "nothing to do" in done(*words, "--format", "own").out


FIELD = """    shade: str = setting(
        default="none", check=one_of(("none", "dark"), "shade"), changes_bytes=True, help="How dark: none or dark."
    )
"""
SCRIPT = """
import io, sys
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from pipeline import cli
from pipeline.config import load_params
from pipeline.extract.config import ExtractConfig, extract_config
from pipeline.settings import bytes_settings


def said(*words):
    out = io.StringIO()
    sys.argv = ["pipeline", *words]
    with redirect_stdout(out), redirect_stderr(out):
        try:
            cli.main()
        except SystemExit as stop:
            return stop.code, out.getvalue()
    return 0, out.getvalue()


code, text = said("extract", "--help")
assert code == 0 and "--shade" in text and "How dark: none or dark." in text, text
code, text = said("extract", "--shade", "pale")
assert code == 2 and "--shade: expected a known shade (none, dark), found 'pale'" in text, text
configs = [ExtractConfig(dataset=Path("d"), encoder="e:x", out=Path("o"), shade=shade) for shade in ("none", "dark")]
assert bytes_settings(configs[0]) != bytes_settings(configs[1])
assert bytes_settings(configs[1])["shade"] == "dark"
params = load_params(Path("params.yaml"))
assert extract_config(params, "shapes", "pixels", where="params.yaml").shade == "dark"
"""


def test_a_setting_is_a_field_of_its_class(own: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(ROOT / "pipeline", copy / "pipeline", ignore=shutil.ignore_patterns("__pycache__"))
    path = copy / "pipeline/extract/config.py"
    source = path.read_text(encoding="utf-8")
    anchor = "    prompt: str = setting("
    assert source.count(anchor) == 1
    path.write_text(source.replace(anchor, FIELD + anchor), encoding="utf-8")
    params = yaml.safe_load((own / "params.yaml").read_text(encoding="utf-8"))
    params["extract"]["shade"] = "dark"
    (own / "params.yaml").write_text(yaml.safe_dump(params), encoding="utf-8")
    environment = {**os.environ, "PYTHONPATH": f"{copy}{os.pathsep}{ROOT}"}
    command = [sys.executable, "-c", SCRIPT]
    result = subprocess.run(command, cwd=own, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
