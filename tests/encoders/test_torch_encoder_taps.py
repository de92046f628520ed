"""Hidden states are pooled where they pass, to the same bits as those that the library hands over at the end."""

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from pipeline.encoders.load import load_encoder
from pipeline.encoders.taps import locate, watched
from pipeline.encoders.torch_encoder import TorchEncoder
from tests.encoders.conftest import BERT, SMALL_IMAGE

BLOCKS = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4}
TOWER = {**BLOCKS, **SMALL_IMAGE, "intermediate_size": 64}
WORDS = {"vocab_size": 40, "max_position_embeddings": 24}
STAGES = {"hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1]}
HfFolder = Callable[..., Path]

MODELS: dict[str, tuple[str, dict[str, Any], set[str]]] = {
    "DinoV2": ("Dinov2", {"processor": "crop", **BLOCKS, **SMALL_IMAGE}, set()),
    "ViT": ("ViT", {"processor": "crop", **BLOCKS, **SMALL_IMAGE}, set()),
    "ResNet": ("ResNet", {"processor": "crop", "embedding_size": 8, **STAGES}, set()),
    "ConvNext": ("ConvNext", {"processor": "convnext", **STAGES}, set()),
    "SigLIP": ("SiglipVision", {"processor": "siglip", **TOWER}, set()),
    "BERT": ("Bert", {**BERT, **WORDS}, set()),
    "Llama": ("Llama", {**BERT, **WORDS, "num_key_value_heads": 2}, set()),
    "ALBERT": ("Albert", {**BERT, **WORDS, "embedding_size": 16}, {"hidden_1", "hidden_2"}),
}
"""Name → (class of transformers, settings, the states that no hook can take)."""


def load(hf_folder: HfFolder, name: str) -> TorchEncoder:
    kind, settings, _ = MODELS[name]
    encoder = load_encoder(f"hf:{hf_folder(f'{kind}Config', f'{kind}Model', **settings)}")
    assert isinstance(encoder, TorchEncoder)
    return encoder


@pytest.mark.parametrize("name", MODELS)
def test_hooks_give_the_same_bits(
    hf_folder: HfFolder, images: list[Image.Image], texts: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoder = load(hf_folder, name)
    handed_over: list[tuple[str, ...]] = []
    output = encoder._output

    def spy(batch: Any, states: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        handed_over.append(tuple(states))
        return output(batch, states)

    monkeypatch.setattr(encoder, "_output", spy)
    samples = images if encoder.modality == "image" else texts
    prepared = [encoder.prepare(sample) for sample in samples]
    layers = encoder.resolve_layers("all")
    found = encoder.encode(prepared, layers)
    monkeypatch.setattr(encoder, "_located", {})
    expected = encoder.encode(prepared, layers)
    assert [set(states) for states in handed_over] == [MODELS[name][2], set(layers) - {"output"}]
    assert list(found) == list(expected)
    for layer in layers:
        assert torch.equal(found[layer], expected[layer]), layer


def test_no_state_outlives_its_place(hf_folder: HfFolder, texts: list[str]) -> None:
    encoder = load(hf_folder, "BERT")
    prepared = [encoder.prepare(text) for text in texts]
    shape = (len(prepared), max(map(len, prepared)), 32)
    alive: list[int] = []

    def count(*_: Any) -> None:
        tensors = [thing for thing in gc.get_objects() if type(thing) is Tensor and thing.shape == shape]
        alive.append(len({tensor.data_ptr() for tensor in tensors}))

    modules = dict(encoder.model.named_modules())
    for number in range(3):
        modules[f"encoder.layer.{number}"].register_forward_pre_hook(count)
    layers = encoder.resolve_layers("all")
    encoder.encode(prepared, layers)
    pooled_as_they_pass, alive[:] = list(alive), []
    encoder._located = {}
    encoder.encode(prepared, layers)
    assert pooled_as_they_pass == [1, 2, 2]  # what a block took and what it gave
    assert alive == [1, 2, 3]


def test_a_copy_and_a_place_that_is_passed_twice_are_not_located() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.once, self.twice = nn.Linear(2, 2), nn.Linear(2, 2)

        def forward(self, x: Tensor) -> list[Tensor]:
            first = self.once(x)
            second = self.twice(first)
            third = self.twice(second)
            return [x, first, second, third, first + 0]

    net = Net()
    with watched(net) as seen:
        states = net(torch.ones(1, 2))
    taps = locate({str(number): state for number, state in enumerate(states)}, seen)
    assert {name: (tap.module, tap.side) for name, tap in taps.items()} == {
        "0": (net, "input"),
        "1": (net.once, "output"),
    }
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())
