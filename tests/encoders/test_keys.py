"""The key: what changes the bytes changes the key, in the right place, and nothing else does."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.encoders.base import EncoderKey
from pipeline.encoders.libraries import state_sha256, weight_files, weights_sha256
from pipeline.encoders.load import load_encoder
from pipeline.errors import UserError
from pipeline.files import file_sha256, spaced_json_digest

VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 4}
BERT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 64, "vocab_size": 40}


@pytest.fixture
def vit(timm_folder: Callable[..., Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(timm_folder("vit_tiny_patch16_224", VIT), tmp_path / "vit"))


@pytest.fixture
def bert(hf_folder: Callable[..., Path], tmp_path: Path) -> Path:
    folder = hf_folder("BertConfig", "BertModel", max_position_embeddings=20, **BERT)
    return Path(shutil.copytree(folder, tmp_path / "bert"))


def differing(before: EncoderKey, after: EncoderKey) -> set[str]:
    parts = {"encoder": (before.encoder, after.encoder), "preprocessing": (before.preprocessing, after.preprocessing)}
    fields = {f"{part}.{name}" for part, (one, other) in parts.items() for name in one if one[name] != other.get(name)}
    assert all(set(one) == set(other) for one, other in parts.values())
    return fields | ({"pooling"} if before.pooling != after.pooling else set())


def change_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    first = next(name for name in weights if "patch_embed" not in name and weights[name].is_floating_point())
    weights[first] = weights[first] + 1
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_key_is_json_and_says_no_path(vit: Path, bert: Path) -> None:
    for spec in (f"timm:{vit}", f"hf:{bert}"):
        key = load_encoder(spec).key()
        text = json.dumps([key.encoder, key.preprocessing, key.pooling])
        assert str(vit.parent) not in text
        assert key.encoder["name"] == "local"
        assert json.loads(text) == [key.encoder, key.preprocessing, key.pooling]


def test_moving_the_folder_changes_nothing(vit: Path, bert: Path, tmp_path: Path) -> None:
    for family, folder in (("timm", vit), ("hf", bert)):
        before = load_encoder(f"{family}:{folder}").key()
        moved = folder.rename(tmp_path / f"moved-{family}")
        assert load_encoder(f"{family}:{moved}").key() == before


def test_other_weights_under_the_same_name(vit: Path, bert: Path) -> None:
    for family, folder in (("timm", vit), ("hf", bert)):
        before = load_encoder(f"{family}:{folder}").key()
        change_weights(folder)
        assert differing(before, load_encoder(f"{family}:{folder}").key()) == {"encoder.weights"}


@pytest.mark.parametrize(
    ("setting", "value", "fields"),
    [
        ("mean", [0.1, 0.1, 0.1], {"preprocessing.mean"}),
        ("std", [0.1, 0.1, 0.1], {"preprocessing.std"}),
        ("interpolation", "bilinear", {"preprocessing.interpolation"}),
        ("crop_pct", 0.5, {"preprocessing.size"}),
        ("crop_mode", "squash", {"preprocessing.resize"}),
    ],
)
def test_image_settings(vit: Path, setting: str, value: Any, fields: set[str]) -> None:
    before = load_encoder(f"timm:{vit}").key()
    config = json.loads((vit / "config.json").read_text())
    config["pretrained_cfg"][setting] = value
    (vit / "config.json").write_text(json.dumps(config))
    assert differing(before, load_encoder(f"timm:{vit}").key()) == fields


def test_image_size(hf_folder: Callable[..., Path], tmp_path: Path) -> None:
    settings = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "patch_size": 8, "image_size": 32}
    original = hf_folder("Dinov2Config", "Dinov2Model", processor="crop", **settings)
    folder = Path(shutil.copytree(original, tmp_path / "dino"))
    before = load_encoder(f"hf:{folder}").key()
    processor = json.loads((folder / "preprocessor_config.json").read_text())
    processor |= {"crop_size": {"height": 24, "width": 24}, "resample": 2}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    expected = {"preprocessing.crop", "preprocessing.interpolation"}
    assert differing(before, load_encoder(f"hf:{folder}").key()) == expected


def test_text_settings(bert: Path) -> None:
    before = load_encoder(f"hf:{bert}").key()
    assert differing(before, load_encoder(f"hf:{bert}", prompt="a ").key()) == {"preprocessing.prompt"}
    assert differing(before, load_encoder(f"hf:{bert}", max_length=8).key()) == {"preprocessing.max_length"}
    assert differing(before, load_encoder(f"hf:{bert}", pool="cls").key()) == {"pooling"}
    file = bert / "tokenizer.json"
    file.write_text(file.read_text().replace('"dog"', '"hound"'))
    assert differing(before, load_encoder(f"hf:{bert}").key()) == {"preprocessing.tokenizer"}


def test_config(bert: Path) -> None:
    before = load_encoder(f"hf:{bert}").key()
    config = json.loads((bert / "config.json").read_text())
    (bert / "config.json").write_text(json.dumps({**config, "transformers_version": "0.0", "architectures": None}))
    assert load_encoder(f"hf:{bert}").key() == before
    (bert / "config.json").write_text(json.dumps({**config, "hidden_act": "relu"}))
    assert differing(before, load_encoder(f"hf:{bert}").key()) == {"encoder.config"}


def test_digests(tmp_path: Path) -> None:
    state = {"a": torch.arange(3.0), "b": torch.zeros(0)}
    assert state_sha256(state) == state_sha256(dict(reversed(state.items())))
    others = [{"a": torch.arange(3.0)}, {**state, "a": torch.arange(3)}, {**state, "a": torch.arange(3.0)[:, None]}]
    assert len({state_sha256(other) for other in [state, *others]}) == 4
    assert state_sha256({"a": torch.arange(6.0).reshape(2, 3).T}) == state_sha256(
        {"a": torch.arange(6.0).reshape(2, 3).T.contiguous()}
    )
    assert spaced_json_digest({"a": 1, "b": 2}) == spaced_json_digest({"b": 2, "a": 1})
    with pytest.raises(UserError, match="found no weight file"):
        weight_files(tmp_path)
    for name in ("a.bin", "b.safetensors", "c.safetensors"):
        (tmp_path / name).write_text(name)
    files = weight_files(tmp_path)
    assert [file.name for file in files] == ["b.safetensors", "c.safetensors"]
    assert weights_sha256(files) == weights_sha256(reversed(files))
    assert weights_sha256(files[:1]) == file_sha256(files[0])
