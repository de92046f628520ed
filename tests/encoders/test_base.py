"""Specs: what is a family, a name, a revision, a path; and what layers an encoder may have."""

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image

from pipeline.encoders.base import Encoder, EncoderKey, Layer, parse_spec
from pipeline.errors import UserError


@pytest.mark.parametrize(
    ("text", "family", "name", "revision"),
    [
        ("timm:vit_base_patch16_224", "timm", "vit_base_patch16_224", None),
        ("open_clip:ViT-B-32/openai", "open_clip", "ViT-B-32/openai", None),
        ("hf:facebook/dinov2-small@main", "hf", "facebook/dinov2-small", "main"),
        ("st:org/name", "st", "org/name", None),
        ("my.module:Class", "my.module", "Class", None),
        ("hf:/some/folder@home", "hf", "/some/folder@home", None),
    ],
)
def test_parts(text: str, family: str, name: str, revision: str | None) -> None:
    spec = parse_spec(text)
    assert (spec.text, spec.family, spec.name, spec.revision) == (text, family, name, revision)


@pytest.mark.parametrize("text", ["resnet50", "timm:", ":x", ""])
def test_a_spec_without_family_or_name_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="FAMILY:NAME"):
        parse_spec(text)


@pytest.mark.parametrize("text", ["hf:a/b@", "hf:@main"])
def test_an_empty_revision_is_refused(text: str) -> None:
    with pytest.raises(UserError, match="ORG/NAME@REVISION"):
        parse_spec(text)


def test_a_path_is_local_and_its_place_is_not_in_the_key() -> None:
    assert parse_spec("hf:/a/b").key_name == "local"
    assert parse_spec("hf:./b").folder == Path("b")
    assert parse_spec("hf:a/b@c").key_name == "a/b@c"
    assert parse_spec("hf:a/b").folder is None


def test_layers_must_end_with_the_output() -> None:
    class Nothing(Encoder):
        def key(self) -> EncoderKey:
            return EncoderKey(encoder={}, preprocessing={}, pooling="")

        def prepare(self, sample: Image.Image | str) -> torch.Tensor:
            return torch.zeros(0)

        def encode(self, prepared: Sequence[torch.Tensor], layers: Sequence[str]) -> dict[str, torch.Tensor]:
            return {}

    with pytest.raises(UserError, match="the last called 'output'"):
        Nothing("x:Nothing", "image", [Layer(name="output", width=1), Layer(name="block", width=1)])
