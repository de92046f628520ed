"""Text models of transformers: hidden states and output equal the library's own; padding changes nothing."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.encoders.hf_family import HfTextEncoder
from pipeline.encoders.libraries import import_library
from pipeline.encoders.load import load_encoder
from pipeline.errors import UserError

BLOCKS: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 40}
BERT = {**BLOCKS, "intermediate_size": 64, "max_position_embeddings": 20}
LLAMA = {**BLOCKS, "intermediate_size": 64, "num_key_value_heads": 2, "pad_token_id": 0}
GPT2 = {
    "n_embd": 32,
    "n_layer": 3,
    "n_head": 4,
    "vocab_size": 40,
    "n_positions": 20,
    "bos_token_id": 2,
    "eos_token_id": 3,
}
TOWER = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
VISION = {**TOWER, "image_size": 32, "patch_size": 8}
TEXT = {
    **TOWER,
    "vocab_size": 40,
    "max_position_embeddings": 16,
    "eos_token_id": 3,
    "bos_token_id": 2,
    "pad_token_id": 0,
}
HfFolder = Callable[..., Path]


def load(folder: Path, **options: Any) -> HfTextEncoder:
    encoder = load_encoder(f"hf:{folder}", **options)
    assert isinstance(encoder, HfTextEncoder)
    return encoder


def features_of(encoder: HfTextEncoder, texts: list[str]) -> dict[str, torch.Tensor]:
    return encoder.encode([encoder.prepare(text) for text in texts], encoder.resolve_layers("all"))


def reference(folder: Path, texts: list[str], kind: str = "AutoModel", **arguments: Any) -> tuple[Any, torch.Tensor]:
    transformers = import_library("transformers")
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(texts, return_tensors="pt", padding=True, **arguments)
    inputs.pop("token_type_ids", None)
    model = getattr(transformers, kind).from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True), inputs["attention_mask"]


def mean(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[real.bool()].mean(dim=0) for row, real in zip(tokens, mask, strict=True)])


def last(tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    return torch.stack([row[real.bool()][-1] for row, real in zip(tokens, mask, strict=True)])


def check(features: dict[str, torch.Tensor], out: Any, mask: torch.Tensor, rule: Callable[..., torch.Tensor]) -> None:
    assert len(out.hidden_states) == len(features) - 1
    for number, state in enumerate(out.hidden_states):
        torch.testing.assert_close(features[f"hidden_{number}"], rule(state, mask), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features["output"], rule(out.last_hidden_state, mask), rtol=1e-5, atol=1e-5)


def test_bert_is_averaged_over_real_tokens(hf_folder: HfFolder, texts: list[str]) -> None:
    folder = hf_folder("BertConfig", "BertModel", **BERT)
    out, mask = reference(folder, texts)
    check(features_of(load(folder), texts), out, mask, mean)
    first = features_of(load(folder, pool="cls"), texts)
    torch.testing.assert_close(first["output"], out.last_hidden_state[:, 0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("config", "model", "settings"),
    [
        ("LlamaConfig", "LlamaForCausalLM", LLAMA),
        ("GPT2Config", "GPT2Model", GPT2),
        ("Qwen2Config", "Qwen2Model", LLAMA),
    ],
)
def test_decoders_give_the_last_token(
    hf_folder: HfFolder, texts: list[str], config: str, model: str, settings: dict[str, Any]
) -> None:
    folder = hf_folder(config, model, bert=False, side="left", **settings)
    encoder = load(folder)
    features = features_of(encoder, texts)
    for number, text in enumerate(texts):  # one by one there is no padding to get wrong
        out, mask = reference(folder, [text])
        check({name: value[number : number + 1] for name, value in features.items()}, out, mask, last)


def test_the_text_tower_of_clip(hf_folder: HfFolder, texts: list[str]) -> None:
    settings = {"vision_config": VISION, "text_config": {**TEXT, "projection_dim": 24}, "projection_dim": 24}
    folder = hf_folder("CLIPConfig", "CLIPModel", processor="clip", **settings)
    encoder = load(folder, modality="text")
    features = features_of(encoder, texts)
    out, mask = reference(folder, texts, "CLIPTextModelWithProjection")
    torch.testing.assert_close(features["output"], out.text_embeds, rtol=1e-5, atol=1e-5)
    for number, state in enumerate(out.hidden_states):
        torch.testing.assert_close(features[f"hidden_{number}"], last(state, mask), rtol=1e-5, atol=1e-5)
    assert not any("vision_model" in name for name, _ in encoder.model.named_parameters())


def test_the_text_tower_of_siglip_pads_to_the_full_length(hf_folder: HfFolder, texts: list[str]) -> None:
    folder = hf_folder("SiglipConfig", "SiglipModel", processor="siglip", vision_config=VISION, text_config=TEXT)
    features = features_of(load(folder, modality="text"), texts)
    transformers = import_library("transformers")
    words = transformers.AutoTokenizer.from_pretrained(folder)
    ids = words(texts, return_tensors="pt", padding="max_length", max_length=16)["input_ids"]
    with torch.no_grad():
        out = transformers.SiglipTextModel.from_pretrained(folder).eval()(ids, output_hidden_states=True)
    torch.testing.assert_close(features["output"], out.pooler_output, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(features["hidden_1"], out.hidden_states[1][:, -1], rtol=1e-5, atol=1e-5)


def test_the_encoder_half_of_t5(hf_folder: HfFolder, texts: list[str]) -> None:
    settings = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
    folder = hf_folder("T5Config", "T5Model", decoder_start_token_id=0, **settings)
    out, mask = reference(folder, texts, "T5EncoderModel")
    check(features_of(load(folder), texts), out, mask, mean)


def test_prompt_and_length(hf_folder: HfFolder) -> None:
    folder = hf_folder("BertConfig", "BertModel", **BERT)
    plain, prompted = load(folder), load(folder, prompt="a photo of ", max_length=5)
    assert prompted.prepare("the cat").tolist() == [*plain.prepare("a photo of the cat").tolist()[:4], 3]
    assert len(plain.prepare("dog " * 50)) == 16


def test_a_length_beyond_the_limit_is_refused(hf_folder: HfFolder) -> None:
    with pytest.raises(UserError, match="expected at most 16 tokens, found 17"):
        load(hf_folder("BertConfig", "BertModel", **BERT), max_length=17)


@pytest.mark.parametrize("padding", [1, 0, 5])
def test_positions_that_begin_after_the_padding_token(hf_folder: HfFolder, padding: int) -> None:
    """The RoBERTa family: whatever number the padding token has, the longest text is what the table has room for."""
    folder = hf_folder("RobertaConfig", "RobertaModel", **{**BERT, "max_position_embeddings": 14}, pad_token_id=padding)
    encoder = load(folder)
    most = 14 - padding - 1
    prepared = encoder.prepare("dog " * 50)
    assert len(prepared) == most
    assert encoder.encode([prepared], ["output"])["output"].isfinite().all()
    with pytest.raises(UserError, match=f"expected at most {most} tokens"):
        load(folder, max_length=most + 1)


def test_a_checkpoint_of_the_encoder_half_alone(hf_folder: HfFolder, texts: list[str]) -> None:
    settings = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "vocab_size": 40}
    folder = hf_folder("T5Config", "T5EncoderModel", **settings)
    out, mask = reference(folder, texts, "T5EncoderModel")
    check(features_of(load(folder), texts), out, mask, mean)


def test_a_model_that_looks_at_padding_is_refused(hf_folder: HfFolder) -> None:
    settings = {**BLOCKS, "intermediate_size": 64, "max_position_embeddings": 20}
    settings.pop("num_attention_heads")
    with pytest.raises(UserError, match=r"depend on the texts beside it, found another hidden_1 beside a longer text"):
        load(hf_folder("FNetConfig", "FNetModel", **settings))


def test_a_text_without_a_token_is_refused(hf_folder: HfFolder) -> None:
    encoder = load(hf_folder("GPT2Config", "GPT2Model", bert=False, **GPT2))
    with pytest.raises(UserError, match="at least one token, found '  '"):
        encoder.prepare("  ")


def test_poolings_that_cannot_be(hf_folder: HfFolder) -> None:
    with pytest.raises(UserError, match="expected one of auto, cls, mean, eos, found patch_mean"):
        load(hf_folder("BertConfig", "BertModel", **BERT), pool="patch_mean")
    with pytest.raises(UserError, match="expected one of auto, mean, eos, found cls"):
        load(hf_folder("GPT2Config", "GPT2Model", bert=False, **GPT2), pool="cls")


def test_a_hub_model_without_network_is_one_sentence() -> None:
    with pytest.raises(UserError, match=r"expected the model 'no-one/nothing@main' .*offline.*hf:/folder"):
        load_encoder("hf:no-one/nothing@main")
