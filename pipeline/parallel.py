"""Small runs side by side: worker processes of one thread each, which give the same numbers as one after the other.

    results = run_side_by_side(train_one, configs, jobs=2, on_done=lambda position, result: ...)

`work` is a function of a module (no lambda), items and results are small: a worker reads big arrays from their stores.
Loads no torch by itself, so a worker can say how many threads it wants first.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from multiprocessing import get_context, parent_process
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, NamedTuple, Protocol, TypeVar

from pipeline.errors import PipelineError, UserError

Item = TypeVar("Item")
Result = TypeVar("Result")

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class SideBySide(Protocol):
    """What does small runs side by side, here or elsewhere, as `run_side_by_side` does."""

    def __call__(
        self,
        work: Callable[[Item], Result],
        items: Sequence[Item],
        *,
        jobs: int,
        on_done: Callable[[int, Result], None] = ...,
    ) -> list[Result]:
        """Return `work` of each item."""
        ...


class _Done(NamedTuple):
    """An item's result."""

    position: int
    result: Any


class _Failed(NamedTuple):
    """What stopped an item: the fields of a foreseen error."""

    position: int
    users_fault: bool
    fields: dict[str, str]


class _Worker(NamedTuple):
    process: BaseProcess
    pipe: Connection


def run_side_by_side(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    jobs: int,
    on_done: Callable[[int, Result], None] = lambda position, result: None,
) -> list[Result]:
    """Return `work` of each item, in the items' order.

    With one job (or one item) all of it happens here, in this process but with one thread, so that the number of jobs
    changes no digit. The first failure, and Ctrl-C, end the other workers at once; what they had written stays.

    Args:
        work: A function that a module holds; in a script, keep the call below `if __name__ == "__main__":`.
        items: What it is called with; small things that can be pickled.
        jobs: Worker processes, at most.
        on_done: Is told (position, result) in this process as each item ends, in the order of ending.

    Raises:
        UserError: `jobs` is below 1, or an item failed with one.
        PipelineError: An item failed with one, with an error that nobody foresaw, or with its worker's death.
    """
    if jobs < 1:
        raise UserError(expected="jobs of 1 or more", found=str(jobs))
    results: dict[int, Result] = {}

    def keep(position: int, result: Result) -> None:
        results[position] = result
        on_done(position, result)

    if min(jobs, len(items)) <= 1:
        with one_thread():
            for position, item in enumerate(items):
                keep(position, work(item))
    else:
        _run_in_workers(work, items, min(jobs, len(items)), keep)
    return [results[position] for position in range(len(items))]


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread inside: another number of threads adds up in another order and changes last digits."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _run_in_workers(
    work: Callable[[Item], Result], items: Sequence[Item], jobs: int, keep: Callable[[int, Result], None]
) -> None:
    workers: list[_Worker] = []
    try:
        workers += [_start(work) for _ in range(jobs)]
        at_work: dict[Connection, int] = {}
        left = iter(range(len(items)))
        for worker in workers:
            _hand_out(worker.pipe, items, left, at_work)
        while at_work:
            for pipe in wait(list(at_work)):
                if isinstance(pipe, Connection):
                    position = at_work.pop(pipe)
                    keep(position, _received(pipe, position))
                    _hand_out(pipe, items, left, at_work)
    finally:
        for worker in workers:
            worker.process.kill()
        for worker in workers:
            worker.process.join()
            worker.pipe.close()


def _start(work: Callable[[Any], Any]) -> _Worker:
    context = get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(theirs,), daemon=True)
    process.start()
    theirs.close()
    worker = _Worker(process, ours)
    _send(ours, work)
    return worker


def _hand_out(pipe: Connection, items: Sequence[Any], left: Iterator[int], at_work: dict[Connection, int]) -> None:
    position = next(left, None)
    if position is not None:
        at_work[pipe] = position
        _send(pipe, (position, items[position]))


def _send(pipe: Connection, message: Any) -> None:
    with suppress(BrokenPipeError):  # a dead worker; the next look into its pipe says so
        pipe.send(message)


def _received(pipe: Connection, position: int) -> Any:
    try:
        message = pipe.recv()
    except (EOFError, ConnectionResetError) as error:
        raise PipelineError(
            expected="a worker process that ends its work",
            found="that it died",
            where=f"item {position + 1}",
            remedy="where memory ran out use fewer jobs; a script has to call this below if __name__ == '__main__':",
        ) from error
    if isinstance(message, _Failed):
        raise (UserError if message.users_fault else PipelineError)(**message.fields)
    return message.result


def _serve(pipe: Connection) -> None:
    """Be a worker: take the function, then items, until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent decides
    threading.Thread(target=_end_with_parent, daemon=True).start()
    os.environ.update(dict.fromkeys(THREADS, "1"))
    try:
        work = pipe.recv()
        if "torch" in sys.modules:  # else the environment tells it
            sys.modules["torch"].set_num_threads(1)
        while True:
            position, item = pipe.recv()
            pipe.send(_attempt(work, position, item))
    except (EOFError, BrokenPipeError):
        return


def _attempt(work: Callable[[Any], Any], position: int, item: Any) -> _Done | _Failed:
    try:
        return _Done(position, work(item))
    except PipelineError as error:
        names = ("expected", "found", "where", "remedy")
        return _Failed(position, isinstance(error, UserError), {name: getattr(error, name) for name in names})
    except Exception as error:
        found = f"{type(error).__name__}: {error}"
        return _Failed(position, False, {"expected": "work that ends", "found": found, "where": f"item {position + 1}"})


def _end_with_parent() -> None:
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
