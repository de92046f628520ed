"""A real Ray cluster of separate processes on one machine, in a network of its own that has nothing but loopback.

Run as `unshare --net python -m tests.engines.nodes FOLDER`: a head without CPUs and two nodes of one CPU each; 200
shards; a node is killed, then the driver is killed and started again. Then another node joins, one node encodes, one
only decodes, and the one that decodes is killed. Prints JSON. FOLDER holds the data sets `raw` and `few`.
"""

import fcntl
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.engines.processes import WORKER, below, committed, kill_all, named, until

PORT = 6399
ADDRESS = f"127.0.0.1:{PORT}"
_SET_FLAGS, _UP_AND_RUNNING = 0x8914, 0x41
RAY = str(Path(sys.executable).with_name("ray"))
WHOLE = ("raw", "mine:Mine", "out")
MEMORY = "--object-store-memory=80000000"


def bring_loopback_up() -> None:
    """Do what `ip link set lo up` does."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SET_FLAGS, struct.pack("16sh14x", b"lo", _UP_AND_RUNNING))


class Nodes:
    """Starts nodes, each in a session of its own, and ends them by their ids."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._started: list[subprocess.Popen[bytes]] = []

    def start_one_cpu(self) -> subprocess.Popen[bytes]:
        return self.start(f"--address={ADDRESS}", "--node-ip-address=127.0.0.1", "--num-cpus=1")

    def start(self, *words: str) -> subprocess.Popen[bytes]:
        """Start a node and wait for it: two that start at once may take the same port."""
        command = [RAY, "start", "--block", "--disable-usage-stats", MEMORY, *words]
        path = self._folder / f"node{len(self._started)}.log"
        log = path.open("wb")
        node = subprocess.Popen(command, cwd="/", stdout=log, stderr=log, start_new_session=True)
        self._started.append(node)
        until(lambda: "Ray runtime started" in path.read_text() or node.poll() is not None, "a node")
        if node.poll() is not None:
            raise RuntimeError(f"a node ended: {path.read_text()}")
        return node

    def kill(self, node: subprocess.Popen[bytes]) -> None:
        """Kill a node and everything on it."""
        kill_all([node.pid, *below(node.pid)])
        node.wait()

    def kill_what_is_left(self) -> None:
        for node in self._started:
            self.kill(node)


class Driver:
    """`pipeline extract --engine ray` in a process of its own."""

    def __init__(self, folder: Path, dataset: str, encoder: str, out: str, *more: str) -> None:
        words = ["--dataset", dataset, "--encoder", encoder, "--out", out, "--shard-rows", "4", "--batch-size", "2"]
        words += ["--engine", "ray", "--address", ADDRESS, "--workers", "1", "--json", *more]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline.cli", "extract", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=(folder / "driver.log").open("ab"),
        )

    def works(self) -> bool:
        """Return true; where it has ended too early, stop the test at once."""
        if self.process.poll() is not None:
            raise RuntimeError(f"the driver ended: {self.process.returncode}")
        return True

    def result(self) -> dict[str, Any]:
        said, _ = self.process.communicate(timeout=900)
        return {"code": self.process.returncode, **(json.loads(said) if said else {})}


def scenario(folder: Path, nodes: Nodes, sockets: str) -> dict[str, Any]:
    out = folder / "out"
    nodes.start(
        "--head",
        "--node-ip-address=127.0.0.1",
        f"--port={PORT}",
        "--num-cpus=0",
        "--include-dashboard=false",
        f"--temp-dir={sockets}",
    )
    workers = [nodes.start_one_cpu() for _ in range(2)]
    first = Driver(folder, *WHOLE)
    until(lambda: first.works() and all(named(node.pid, WORKER) for node in workers), "two workers")
    until(lambda: first.works() and committed(out) >= 20, "20 shards")
    at_work = len([process for node in workers for process in named(node.pid, WORKER)])
    nodes.kill(workers[0])
    at_node_kill = committed(out)
    until(lambda: first.works() and committed(out) >= at_node_kill + 20, "20 more shards by the worker that is left")
    first.process.kill()
    first.process.wait()
    at_driver_kill = committed(out)
    until(lambda: not named(workers[1].pid, WORKER), "that workers end with their driver")
    before = committed(out)
    result = Driver(folder, *WHOLE).result()
    lines = record(folder)
    return {
        "record": lines,
        "decoding": decoding(folder, nodes, workers[1]),
        "workers": at_work,
        "at_node_kill": at_node_kill,
        "at_driver_kill": at_driver_kill,
        "before": before,
        "after": committed(out),
        "result": result,
    }


def decoding(folder: Path, nodes: Nodes, left: subprocess.Popen[bytes]) -> dict[str, Any]:
    """Encode on one node and decode on the other, which is killed once it has made eight images ready."""
    pair = [left, nodes.start_one_cpu()]
    before = len(record(folder))
    driver = Driver(folder, "few", "mine:MineAll", "decoded", "--decode-cpus", "1")

    def at_decoder() -> list[int]:
        lines = record(folder)[before:]
        encoders = {process for process, word in lines if word.isdecimal()}
        return [process for process, word in lines if word == "prepare" and process not in encoders and encoders]

    until(lambda: driver.works() and len(at_decoder()) >= 8, "eight images by the decoder")
    decoder = at_decoder()[0]
    (at,) = (node for node in pair if decoder in below(node.pid))
    nodes.kill(at)
    return {"result": driver.result(), "decoder": decoder, "record": record(folder)[before:]}


def record(folder: Path) -> list[tuple[int, str]]:
    """Return (process, word) of each line that an encoder wrote down."""
    lines = [line.split() for line in (folder / "record").read_text().splitlines()]
    return [(int(process), word) for process, word in lines]


def main() -> None:
    folder = Path(sys.argv[1])
    bring_loopback_up()
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "f" * 64, "RAY_USAGE_STATS_ENABLED": "0"}
    nodes = Nodes(folder)
    sockets = tempfile.mkdtemp(prefix="r", dir="/tmp")  # the path of a socket has 107 bytes at most
    try:
        answer = scenario(folder, nodes, sockets)
    finally:
        nodes.kill_what_is_left()
        shutil.rmtree(sockets, ignore_errors=True)
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main()
