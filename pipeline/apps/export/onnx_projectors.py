"""An export with the projectors as ONNX too: `image.onnx` and `text.onnx`, raw features [N, D] in, unit vectors out.

Each has two outputs, the vectors for retrieval and those for classification (`Projector.for_task`).

The encoders stay what they are; whoever serves them elsewhere needs only these files after them. Every file is run by
onnxruntime before it is handed over, and its answers are compared with the projector's own.
"""

import io
import logging
import warnings
from collections.abc import Callable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.apps.export.run import write_folder
from pipeline.errors import MissingExtraError, PipelineError
from pipeline.projectors.base import Projector, Task
from pipeline.projectors.run_record import SIDES, AlignedRun

INPUT = "features"
OUTPUTS: dict[str, Task] = {"embeddings": "retrieval", "class_embeddings": "classification"}
TOLERANCE = 1e-5
_PROBES = 17


class _Float(nn.Module):
    """A projector whose embeddings are float32, whatever its weights are."""

    def __init__(self, projector: Projector) -> None:
        super().__init__()
        self.projector = projector

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        embeddings: Tensor = self.projector(features).float()
        return tuple(self.projector.for_task(embeddings, task).clone() for task in OUTPUTS.values())


def write_onnx(run: AlignedRun, seed: int, files: Mapping[str, bytes], folder: Path) -> str:
    """Write the package's own form and one ONNX file a side.

    Raises:
        MissingExtraError: onnx, onnxscript or onnxruntime is not installed.
        PipelineError: What onnxruntime computes is not what the projector computes.
    """
    session = _runtime()
    usage = write_folder(run, seed, files, folder)
    for side in SIDES:
        projector = run.projector(side, seed)
        path = folder / f"{side}.onnx"
        _convert(projector, path)
        _compare(projector, path, session)
    return f"""{usage}

The projectors alone, without Python's torch:

```python
import onnxruntime

session = onnxruntime.InferenceSession("{run.root.name}/text.onnx")
features_in = {{"{INPUT}": features}}  # float32 [N, {run.projector("text", seed).d_in}]
(embeddings,) = session.run(["embeddings"], features_in)  # for retrieval
(class_embeddings,) = session.run(["class_embeddings"], features_in)  # to compare images with class prompts
```

`features` are those of the layers below, concatenated in this order, as the encoder gives them."""


def _runtime() -> Callable[[Path], Any]:
    for name in ("onnx", "onnxscript", "onnxruntime"):
        try:
            __import__(name)
        except ImportError:
            raise MissingExtraError(name, "pip install 'fewpairs[onnx]'", "projectors as ONNX") from None
    import onnxruntime

    return lambda path: onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _convert(projector: Projector, path: Path) -> None:
    example = torch.randn(2, projector.d_in, generator=torch.Generator().manual_seed(0))
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")  # the exporter speaks of its own future
            program = torch.onnx.export(
                _Float(projector).eval(),
                (example,),
                input_names=[INPUT],
                output_names=list(OUTPUTS),
                dynamic_shapes={INPUT: {0: torch.export.Dim("rows")}},
                dynamo=True,
                verbose=False,
            )
    finally:
        logging.disable(level)
    if program is None:
        raise PipelineError(expected="an ONNX graph", found="none", where=path.name)
    proto = program.model_proto
    for part in (*proto.graph.node, *proto.graph.value_info, *proto.graph.input, *proto.graph.output, proto.graph):
        part.ClearField("metadata_props")  # stack traces with this machine's paths
    path.write_bytes(proto.SerializeToString())


def _compare(projector: Projector, path: Path, session: Callable[[Path], Any]) -> None:
    features = torch.randn(_PROBES, projector.d_in, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = _Float(projector)(features)
    for values, found in zip(expected, session(path).run(list(OUTPUTS), {INPUT: features.numpy()}), strict=True):
        gap = float((torch.from_numpy(found) - values).abs().max())
        if not gap <= TOLERANCE:
            raise PipelineError(
                expected=f"the projector's embeddings within {TOLERANCE:g}",
                found=f"a gap of {gap:.1e}",
                where=path.name,
            )
