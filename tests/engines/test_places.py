"""Which workers fit where, counted by hand."""

import pytest

from pipeline.engines.places import Node, Place, cell_places, encoder_places, extraction_places
from pipeline.errors import UserError

HEAD = Node(name="head", cpus=0)
SMALL, LARGE = Node(name="small", cpus=4), Node(name="large", cpus=16)
GPUS = Node(name="gpus", cpus=64, gpus=8)


@pytest.mark.parametrize(
    ("nodes", "device", "workers", "expected"),
    [
        ([HEAD, SMALL, LARGE], "auto", None, [(4, 0, "small"), (16, 0, "large")]),
        ([HEAD, SMALL, LARGE], "cpu", 8, [(4, 0, "small"), (8, 0, "large"), (8, 0, "large")]),
        ([SMALL], "auto", 3, [(3, 0, "small")]),
        ([SMALL, GPUS], "auto", None, [(8, 1, "gpus")] * 8),
        ([SMALL, GPUS], "cuda", 2, [(2, 1, "gpus")] * 8),
        ([SMALL, GPUS], "cuda", 20, [(8, 1, "gpus")] * 8),
        ([SMALL, GPUS], "cpu", None, [(4, 0, "small"), (64, 0, "gpus")]),
        ([Node(name="one", cpus=96, gpus=1)], "auto", None, [(32, 1, "one")]),
        ([Node(name="few", cpus=2, gpus=4)], "auto", None, [(1, 1, "few")] * 2),
    ],
)
def test_one_encoder_a_gpu_or_a_slot_of_cpus(
    nodes: list[Node], device: str, workers: int | None, expected: list[tuple[int, int, str]]
) -> None:
    found = encoder_places(nodes, device, workers)
    assert [(place.cpus, place.gpus, place.node) for place in found] == expected


@pytest.mark.parametrize(
    ("nodes", "device", "decode_cpus", "encoders", "decoders"),
    [
        ([SMALL, LARGE], "auto", None, [(4, 0, "small"), (16, 0, "large")], []),
        ([HEAD, SMALL, LARGE, GPUS], "auto", None, [(8, 1, "gpus")] * 8, [(4, "small"), (16, "large")]),
        ([SMALL, GPUS], "cuda", 0, [(8, 1, "gpus")] * 8, []),
        ([GPUS, SMALL], "auto", 3, [(8, 1, "gpus")] * 8, [(3, "small")]),
        ([GPUS, SMALL], "auto", 20, [(6, 1, "gpus")] * 8, [(4, "small"), (16, "gpus")]),
        ([GPUS], "auto", 56, [(1, 1, "gpus")] * 8, [(32, "gpus"), (24, "gpus")]),
        ([SMALL, LARGE], "cpu", 5, [(15, 0, "large")], [(4, "small"), (1, "large")]),
        ([SMALL, GPUS], "cpu", 4, [(64, 0, "gpus")], [(4, "small")]),
        (
            [SMALL, Node(name="more", cpus=96), GPUS],
            "auto",
            None,
            [(8, 1, "gpus")] * 8,
            [(4, "small"), *[(32, "more")] * 3],
        ),
    ],
)
def test_decoders_take_what_encoders_can_spare(
    nodes: list[Node],
    device: str,
    decode_cpus: int | None,
    encoders: list[tuple[int, int, str]],
    decoders: list[tuple[int, str]],
) -> None:
    found, others = extraction_places(nodes, device, None, decode_cpus)
    assert [(place.cpus, place.gpus, place.node) for place in found] == encoders
    assert [(place.cpus, place.node) for place in others] == decoders
    assert all(place.gpus == 0 for place in others)


@pytest.mark.parametrize(
    ("nodes", "device", "asked", "words"),
    [
        ([SMALL], "auto", 4, "--decode-cpus: expected 3 or fewer, found 4; the others are for the encoders"),
        ([SMALL, GPUS], "auto", 61, "--decode-cpus: expected 60 or fewer, found 61"),
        ([HEAD], "cpu", 1, "--decode-cpus: expected 0 or fewer, found 1"),
        ([HEAD], "cpu", 0, "a cluster with CPUs for workers, found none"),
    ],
)
def test_encoders_keep_a_cpu_each(nodes: list[Node], device: str, asked: int, words: str) -> None:
    with pytest.raises(UserError, match=words):
        extraction_places(nodes, device, None, asked)


def test_one_small_run_a_gpu_or_a_cpu() -> None:
    assert cell_places([HEAD, SMALL, GPUS], "cpu") == [Place(cpus=1)] * 68
    assert cell_places([HEAD, SMALL, GPUS], "auto") == [Place(cpus=1, gpus=1)] * 8
    assert cell_places([SMALL], "cuda") == [Place(cpus=1)] * 4


def test_no_room_is_one_sentence() -> None:
    with pytest.raises(UserError, match="a cluster with CPUs for workers, found none"):
        encoder_places([HEAD], "auto", None)
    with pytest.raises(UserError, match="a cluster with CPUs for workers, found none"):
        cell_places([], "cpu")
    with pytest.raises(UserError, match="--device cuda: expected a cluster with a GPU, found none"):
        encoder_places([SMALL], "cuda", None)
    with pytest.raises(UserError, match="found cuda:1; use --device cuda: Ray gives each worker a GPU of its own"):
        encoder_places([GPUS], "cuda:1", None)
