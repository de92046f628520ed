"""Oracles that are optional packages."""

from collections.abc import Callable
from typing import Any

import pytest

from pipeline.encoders.libraries import make_torchvision_loadable


@pytest.fixture
def torchmetrics() -> Callable[[str], Any]:
    """Return a door to torchmetrics' modules, or skip; importing it needs a torchvision that loads."""
    make_torchvision_loadable()
    pytest.importorskip("torchmetrics", exc_type=ImportError)
    return lambda module: pytest.importorskip(f"torchmetrics.{module}", exc_type=ImportError)
