"""The stage on a CUDA device: it runs there, and learns what it learns on a CPU."""

from pathlib import Path

import pytest
import torch

from pipeline.align.config import AlignConfig
from pipeline.align.run import align
from pipeline.projectors.run_record import AlignedRun
from tests.align.conftest import Stores

pytestmark = pytest.mark.gpu


@pytest.mark.parametrize(
    "method", ["combined", "cca", "asif", "fusemix", "siglip", "fewpairs", "cca_then_train", "soft_targets"]
)
def test_learns_on_a_gpu(stores: Stores, tmp_path: Path, method: str) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    recalls = []
    for device in ("cuda", "cpu"):
        config = AlignConfig(
            image=(stores.image,),
            text=(stores.text,),
            out=tmp_path / device,
            method=method,
            settings={"dim": 8, "training": {"max_steps": 60, "learning_rate": 0.01}},
            seeds=(1,),
            device=device,
        )
        opened = AlignedRun.open(align(config))
        recalls.append(opened.trainings[0].validation["image_retrieval_recall@5"])
    assert recalls[0] == pytest.approx(recalls[1], abs=0.1)
