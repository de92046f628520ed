"""What every test shares: no hub, no colour, no chance, and where the shared research data lies if it is there."""

import os
import signal
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("NO_COLOR", "1")
# Small tensors gain nothing from threads, and threads that wait for each other on a busy machine lose minutes.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A shell that starts this in the background lets it and its children ignore Ctrl-C: tests of that would wait for ever.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples at every run, and none fails for a slow machine. "explore" draws others each time, and five times as
# many: `pytest -m "hypothesis and not gpu" --hypothesis-profile explore`, as the scheduled workflow does. What it finds
# is printed as a `@reproduce_failure` line.
settings.register_profile("steady", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile(
    "explore",
    settings.get_profile("steady"),
    derandomize=False,
    max_examples=5 * settings.get_profile("steady").max_examples,
    print_blob=True,
)
settings.load_profile("steady")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def _seed() -> None:
    """Let torch draw the same in a test, whichever tests ran before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].default_generator.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of research data beside the checkout, or skip where it is absent."""
    folder = Path(os.environ.get("FEWPAIRS_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"research data not found at {folder} (set FEWPAIRS_SHARED to point at it)")
    return folder
