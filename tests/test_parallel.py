"""Runs side by side: the same numbers as one after the other, failures in a sentence, no worker left behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pipeline.align.fit import initial_projectors
from pipeline.align.pairs import PairFeatures
from pipeline.align.recipe import make_recipe
from pipeline.align.train import train
from pipeline.errors import PipelineError, UserError
from pipeline.parallel import one_thread, run_side_by_side
from tests.misbehaving import misbehave

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def _tests_are_importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let workers find this module: they get the path of now, and other packages install a `tests` too."""
    monkeypatch.syspath_prepend(ROOT)


def pairs(images: int, captions: int = 2) -> PairFeatures:
    generator = torch.Generator().manual_seed(images)
    image = torch.randn(images, 12, generator=generator)
    text = torch.randn(images * captions, 10, generator=generator)
    return PairFeatures(image, text, torch.arange(images + 1) * captions)


def train_seed(item: tuple[int, int]) -> tuple[list[float], int, int]:
    """Return the losses of a short run, the process and its number of threads."""
    data = pairs(item[0])
    recipe = make_recipe("combined", {"dim": 6, "training": {"max_steps": 6, "validations": 2, "batch_size": 40}})
    projectors = initial_projectors(data, data, recipe, item[1])
    found = train(data, data, recipe, projectors, seed=item[1])
    return [row["loss"] for row in found.history], os.getpid(), torch.get_num_threads()


def test_same_numbers_as_one_after_the_other() -> None:
    items = [(90, seed) for seed in (1, 2, 3)]
    ended: list[int] = []
    beside = run_side_by_side(train_seed, items, jobs=2, on_done=lambda position, result: ended.append(position))
    alone = run_side_by_side(train_seed, items, jobs=1)
    assert [losses for losses, _, _ in beside] == [losses for losses, _, _ in alone]
    assert len({tuple(losses) for losses, _, _ in beside}) == 3
    assert sorted(ended) == [0, 1, 2]
    assert {threads for _, _, threads in beside + alone} == {1}
    assert os.getpid() not in {process for _, process, _ in beside}
    assert {process for _, process, _ in alone} == {os.getpid()}


@pytest.mark.parametrize(
    ("how", "kind", "message"),
    [
        ("user", UserError, r"^--method: expected a known method \(info_nce\), found 'infonce'"),
        ("work", PipelineError, "^step 3: expected a finite loss, found nan; lower the rate$"),
        ("unforeseen", PipelineError, "^item 2: expected work that ends, found ZeroDivisionError: division by zero$"),
        ("die", PipelineError, "^item 2: expected a worker process that ends its work, found that it died; .*memory"),
    ],
)
def test_failure_is_one_sentence_and_ends_the_others(how: str, kind: type[PipelineError], message: str) -> None:
    with pytest.raises(PipelineError, match=message) as caught:
        run_side_by_side(misbehave, ["hang", how], jobs=2)
    assert type(caught.value) is kind


def test_nothing_to_do_and_no_jobs() -> None:
    assert run_side_by_side(misbehave, [], jobs=4) == []
    with pytest.raises(UserError, match="expected jobs of 1 or more, found 0"):
        run_side_by_side(misbehave, ["fine"], jobs=0)


SCRIPT = """
import sys
from tests.misbehaving import write_and_hang
from pipeline.parallel import run_side_by_side
if __name__ == "__main__":
    try:
        run_side_by_side(write_and_hang, [sys.argv[1] + "/a", sys.argv[1] + "/b"], jobs=2)
    except KeyboardInterrupt:
        sys.exit(130)
"""


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_interruption_leaves_no_worker(tmp_path: Path, sent: signal.Signals, code: int) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], env=environment, stderr=subprocess.PIPE, start_new_session=True
    ) as process:
        workers = [int(_content(tmp_path / name)) for name in ("a", "b")]
        if sent == signal.SIGINT:
            os.killpg(process.pid, sent)  # as a terminal does: to the whole group
        else:
            process.send_signal(sent)
        _, said = process.communicate(timeout=120)
    assert process.returncode == code
    assert said == b""
    _wait_until(lambda: not any(map(_runs, workers)))


def _content(path: Path) -> str:
    _wait_until(lambda: path.is_file() and bool(path.read_text()))
    return path.read_text()


def _runs(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def _wait_until(holds: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            pytest.fail("waited too long")
        time.sleep(0.02)


def test_one_thread_gives_the_threads_back() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    with one_thread():
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)
