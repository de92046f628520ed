"""The numbers that every method gives on the tiny project, to the last digit."""

import json
import platform
from pathlib import Path
from typing import Any

import torch

from tests.contract.making import REPORT


def machine() -> dict[str, str]:
    """Return what decides the last digits of floating point arithmetic."""
    return {
        "torch": torch.__version__,
        "machine": platform.machine(),
        "instructions": torch.backends.cpu.get_cpu_capability(),
    }


def measured(project: Path) -> dict[str, Any]:
    """Return all metrics of all runs of the project, and where they were counted."""
    metrics = json.loads((project / REPORT / "metrics.json").read_text(encoding="utf-8"))
    return {"machine": machine(), "metrics": metrics}
