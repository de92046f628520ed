"""What all torch encoders share: batches, module names, dtypes, threads, and nothing left behind."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.encoders.load import load_encoder
from pipeline.encoders.taps import Tap, tapped
from pipeline.encoders.torch_encoder import TorchEncoder, to_host
from pipeline.errors import UnknownNameError, UserError

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 4}
BERT = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 40}


@pytest.fixture(scope="module")
def vit(timm_folder: Callable[..., Path]) -> Path:
    return timm_folder("vit_tiny_patch16_224", VIT)


@pytest.fixture(scope="module")
def bert(hf_folder: Callable[..., Path]) -> Path:
    return hf_folder("BertConfig", "BertModel", max_position_embeddings=20, **BERT)


def load(spec: str, **options: str) -> TorchEncoder:
    encoder = load_encoder(spec, **options)  # type: ignore[arg-type]
    assert isinstance(encoder, TorchEncoder)
    return encoder


def one_by_one(
    encoder: TorchEncoder, prepared: Sequence[torch.Tensor], layers: Sequence[str]
) -> dict[str, torch.Tensor]:
    single = [encoder.encode([sample], layers) for sample in prepared]
    return {name: torch.cat([features[name] for features in single]) for name in layers}


def test_batches_do_not_matter(vit: Path, bert: Path, images: list[Image.Image], texts: list[str]) -> None:
    for encoder, samples in ((load(f"timm:{vit}"), images), (load(f"hf:{bert}"), texts)):
        prepared = [encoder.prepare(sample) for sample in samples]
        layers = encoder.resolve_layers("all")
        together, single = encoder.encode(prepared, layers), one_by_one(encoder, prepared, layers)
        for name in layers:
            torch.testing.assert_close(together[name], single[name], rtol=1e-5, atol=1e-6)


def test_only_what_is_asked_comes_back(vit: Path, images: list[Image.Image]) -> None:
    encoder = load(f"timm:{vit}")
    prepared = [encoder.prepare(image) for image in images]
    everything = encoder.encode(prepared, encoder.resolve_layers("all"))
    some = encoder.encode(prepared, encoder.resolve_layers("1,-2"))
    assert list(some) == ["block_1", "block_3"]
    for name, value in some.items():
        assert torch.equal(value, everything[name])
        assert (value.dtype, value.device.type, value.is_contiguous()) == (torch.float32, "cpu", True)


def test_module_names(vit: Path, images: list[Image.Image]) -> None:
    encoder = load(f"timm:{vit}")
    prepared = [encoder.prepare(image) for image in images]
    layers = encoder.resolve_layers("last,blocks.1,blocks.2.mlp.fc1")
    assert layers == ("blocks.1", "blocks.2.mlp.fc1", "output")
    features = encoder.encode(prepared, [*layers, "block_2"])
    assert torch.equal(features["blocks.1"], features["block_2"])
    assert features["blocks.2.mlp.fc1"].shape == (3, 128)
    assert encoder.width("blocks.2.mlp.fc1") == 128
    assert encoder.resolve_layers("blocks.1") == ("blocks.1",)


def test_module_names_of_texts(bert: Path, texts: list[str]) -> None:
    encoder = load(f"hf:{bert}")
    prepared = [encoder.prepare(text) for text in texts]
    features = encoder.encode(prepared, ["encoder.layer.0", "hidden_1"])
    torch.testing.assert_close(features["encoder.layer.0"], features["hidden_1"])


def test_unknown_layers_and_modules(vit: Path) -> None:
    encoder = load(f"timm:{vit}")
    with pytest.raises(UnknownNameError, match="known layer"):
        encoder.resolve_layers("blocks.9")
    with pytest.raises(UnknownNameError, match="did you mean 'block_1'"):
        encoder.width("block_1x")
    with pytest.raises(UserError, match="expected layers such as"):
        encoder.resolve_layers(" , ")
    with pytest.raises(UserError, match=r"a forward pass through blocks\.0\.attn\.attn_drop"):
        encoder.resolve_layers("blocks.0.attn.attn_drop")  # fused attention drops nothing


def test_nothing_is_left_behind(vit: Path, images: list[Image.Image]) -> None:
    encoder = load(f"timm:{vit}")
    prepared = [encoder.prepare(image) for image in images]
    encoder.encode(prepared, encoder.resolve_layers("all"))
    with pytest.raises(RuntimeError, match="channels"):
        encoder.encode([prepared[0][:2]], ["block_1"])
    hooks = [(m._forward_hooks, m._forward_pre_hooks) for m in encoder.model.modules()]
    assert not any(before or after for before, after in hooks)
    assert not encoder.model.training
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_half_precision_gives_nearly_the_same_in_float32(vit: Path, images: list[Image.Image], dtype: str) -> None:
    full, half = load(f"timm:{vit}"), load(f"timm:{vit}", dtype=dtype)
    prepared = [full.prepare(image) for image in images]
    exact, rough = full.encode(prepared, ["block_2", "output"]), half.encode(prepared, ["block_2", "output"])
    for name, value in rough.items():
        assert value.dtype == torch.float32
        assert not torch.equal(value, exact[name])
        torch.testing.assert_close(value, exact[name], rtol=0.05, atol=0.05)


def test_threads_prepare_at_once(vit: Path, bert: Path, images: list[Image.Image], texts: list[str]) -> None:
    for encoder, samples in ((load(f"timm:{vit}"), images), (load(f"hf:{bert}"), texts)):
        expected = [encoder.prepare(sample) for sample in samples]
        with ThreadPoolExecutor(8) as pool:
            for number, result in enumerate(pool.map(encoder.prepare, list(samples) * 50)):
                assert torch.equal(result, expected[number % len(samples)])


def test_texts_are_no_images(vit: Path) -> None:
    with pytest.raises(UserError, match="expected an image, found a text"):
        load(f"timm:{vit}").prepare("a dog")


def test_a_module_that_gives_no_tensor_is_named() -> None:
    class Two(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> str:
            return "no tensor"

    module = Two()
    with (
        pytest.raises(UserError, match="layer x: expected a tensor, found str"),
        tapped({"x": Tap(module=module)}, lambda tensor, _: tensor),
    ):
        module(torch.zeros(1))


def test_the_copy_keeps_names_and_shapes() -> None:
    features = {"a": torch.ones(2, 3, dtype=torch.float16), "b": torch.zeros(2, 1)}
    copied = to_host(features)()
    assert {name: (value.shape, value.dtype) for name, value in copied.items()} == {
        "a": ((2, 3), torch.float32),
        "b": ((2, 1), torch.float32),
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")  # the compiler's own
def test_compiled_blocks_give_the_same(vit: Path, images: list[Image.Image]) -> None:
    plain = load(f"timm:{vit}")
    compiled = load_encoder(f"timm:{vit}", compile=True)
    prepared = [plain.prepare(image) for image in images]
    layers = plain.resolve_layers("all")
    expected, found = plain.encode(prepared, layers), compiled.encode(prepared, layers)
    for name in layers:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_gives_the_same(vit: Path, bert: Path, images: list[Image.Image], texts: list[str]) -> None:
    for spec, samples in ((f"timm:{vit}", images), (f"hf:{bert}", texts)):
        host, device = load(spec), load(spec, device="cuda")
        prepared = [host.prepare(sample) for sample in samples]
        layers = host.resolve_layers("all")
        expected, found = host.encode(prepared, layers), device.encode(prepared, layers)
        for name in layers:
            torch.testing.assert_close(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_a_gpu_may_be_given_several_batches_before_it_is_waited_for(vit: Path, images: list[Image.Image]) -> None:
    encoder = load(f"timm:{vit}", device="cuda")
    prepared = [encoder.prepare(image) for image in images]
    layers = encoder.resolve_layers("all")
    expected = [encoder.encode([sample], layers) for sample in prepared]
    for finish, features in zip([encoder.start([sample], layers) for sample in prepared], expected, strict=True):
        found = finish()
        assert not any(value.is_pinned() for value in found.values())
        assert all(torch.equal(found[name], features[name]) for name in layers)
