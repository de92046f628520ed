"""Projectors as ONNX: onnxruntime computes what torch computes, for any number of rows."""

import sys
from pathlib import Path

import pytest
import torch

from pipeline.apps.export.onnx_projectors import OUTPUTS
from pipeline.apps.export.run import export
from pipeline.errors import MissingExtraError
from pipeline.projectors.run_record import AlignedRun
from tests.apps.export.building import make_run
from tests.apps.export.test_run import KINDS
from tests.corrected import corrected_copy


@pytest.mark.parametrize("kind", [*KINDS, "csls"])
def test_onnxruntime_agrees_with_torch(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    corrected, kind = kind == "csls", "affine" if kind == "csls" else kind
    settings, dim = KINDS[kind]
    both = {"image": {**settings, "d_in": 6, "blocks": [2, 4]}, "text": settings}
    both = {"image": settings, "text": settings} if kind == "identity" else both
    kinds = {"image": kind, "text": kind}
    folder = make_run(tmp_path / "run", projectors=kinds, settings=both, dim=dim)
    run = AlignedRun.open(corrected_copy(folder, tmp_path / "corrected") if corrected else folder)
    export(run.folder, tmp_path / "model", form="onnx")
    for side in ("image", "text"):
        file = tmp_path / "model" / f"{side}.onnx"
        session = runtime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        for rows in (1, 2, 33):
            features = 3 * torch.randn(rows, both[side].get("d_in", 3))
            features[0] = features[0] if rows < 3 else 0  # a zero row stays one where the projector keeps it
            for name, task in OUTPUTS.items():
                (found,) = session.run([name], {"features": features.numpy()})
                expected = run.encode(side, features, task=task)
                torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=0)
        assert str(Path(sys.prefix)).encode() not in file.read_bytes()


def test_a_missing_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'fewpairs\[onnx\]'"):
        export(make_run(tmp_path / "run"), tmp_path / "model", form="onnx")
    assert not (tmp_path / "model").exists()
