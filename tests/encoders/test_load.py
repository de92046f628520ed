"""The door: options, unknown names, encoders of one's own, and what may not be imported on the way."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from pipeline.encoders.load import ENCODERS, load_encoder, own_source, refuse_unknown_module, trust_modules
from pipeline.errors import UnknownNameError, UserError

SOURCE = """
import numpy
import torch

from pipeline.encoders.base import Encoder, EncoderKey, Layer


class MeanColour(Encoder):
    def __init__(self, options):
        super().__init__("mean_colour_encoder:MeanColour", "image", (Layer(name="output", width=3),))

    def key(self):
        return EncoderKey(encoder={"name": "mean-colour", "version": 1}, preprocessing={}, pooling="mean")

    def prepare(self, sample):
        return torch.from_numpy(numpy.array(sample)).float().permute(2, 0, 1) / 255

    def encode(self, prepared, layers):
        return {"output": torch.stack([image.mean(dim=(1, 2)) for image in prepared])}
"""


FAMILY = """
import torch

from pipeline.encoders.image_model import ImageInfo, ImageModel
from pipeline.encoders.torch_encoder import Tap
from pipeline.encoders.image_model import ImageTransform


class Convolution(ImageModel):
    def _output(self, batch, states):
        return self.model(batch.inputs["x"]).mean(dim=(2, 3)), {}


def load(spec, options):
    torch.manual_seed(int(spec.name))
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 2, 3))
    transform = ImageTransform(resize="squash", size=(8, 8))
    info = ImageInfo(
        taps={"stage_1": Tap(module=model[1])},
        identity={"family": "convolution", "name": spec.key_name, "version": 1},
        preprocessing=transform.to_json(),
        transform=transform,
        maps=True,
    )
    return Convolution(spec.text, model, info, options)
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "mean_colour_encoder.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "mean_colour_encoder", raising=False)
    return "mean_colour_encoder:MeanColour"


def test_an_encoder_of_ones_own(own: str) -> None:
    encoder = load_encoder(own)
    image = Image.new("RGB", (5, 4), (255, 0, 51))
    features = encoder.encode([encoder.prepare(image)], encoder.resolve_layers("last"))
    torch.testing.assert_close(features["output"], torch.tensor([[1.0, 0.0, 0.2]]))
    assert encoder.key().encoder["name"] == "mean-colour"
    assert encoder.width("output") == 3
    assert len(own_source(encoder)["source"]) == 64
    assert str(Path.cwd()) not in sys.path


def test_a_new_family_is_one_module_and_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "convolution_family.py").write_text(FAMILY)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(ENCODERS, "convolution", "convolution_family:load")
    encoder = load_encoder("convolution:7")
    prepared = [encoder.prepare(Image.new("RGB", (9, 5), colour)) for colour in ("red", "blue")]
    features = encoder.encode(prepared, encoder.resolve_layers("all"))
    assert {name: tuple(value.shape) for name, value in features.items()} == {"stage_1": (2, 4), "output": (2, 2)}
    assert encoder.key().encoder == {"family": "convolution", "name": "7", "version": 1}
    with pytest.raises(UserError, match="--pool of convolution:7: expected one of auto, found cls"):
        load_encoder("convolution:7", pool="cls")


def test_mistakes_in_ones_own(own: str) -> None:
    with pytest.raises(UnknownNameError, match="did you mean 'MeanColour'"):
        load_encoder("mean_colour_encoder:MeanColor")
    with pytest.raises(UserError, match=r"known encoder family \(timm, .*found 'tim'"):
        load_encoder("tim:resnet50")
    with pytest.raises(UnknownNameError, match="expected a known layer"):
        load_encoder(own).width("block_1")
    with pytest.raises(UserError, match="an encoder of text, found one of image"):
        load_encoder(own, modality="text")
    with pytest.raises(UserError, match="no --prompt and no --max-length"):
        load_encoder(own, prompt="a photo of")


def test_a_file_chooses_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "named_by_a_file.py").write_text("import pathlib\npathlib.Path('it_ran').touch()\n")
    with pytest.raises(UserError, match=r"known family .*--trust-module named_by_a_file"):
        refuse_unknown_module("named_by_a_file:Encoder", "run.json")
    assert not (tmp_path / "it_ran").exists()
    refuse_unknown_module("package:mobilenetv2", "run.json")
    with pytest.raises(UserError, match=r"--trust-module: .*found 'not_there_at_all'"):
        trust_modules(["not_there_at_all"])
    trust_modules(["named_by_a_file"])
    assert (tmp_path / "it_ran").exists()
    refuse_unknown_module("named_by_a_file:Encoder", "run.json")


def test_an_unknown_family_lists_the_known() -> None:
    with pytest.raises(UnknownNameError, match="timm, open_clip, hf, st, package, module:Class"):
        load_encoder("not-a-family:x")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"modality": "sound"}, "known modality"),
        ({"pool": "max"}, "known pooling"),
        ({"dtype": "int8"}, "known dtype"),
        ({"max_length": 0}, "at least 1 token"),
        ({"device": "abacus"}, "a device such as cpu"),
    ],
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        load_encoder("package:mobilenetv2", **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there() -> None:
    with pytest.raises(UserError, match="expected a CUDA device, found none"):
        load_encoder("package:mobilenetv2", device="cuda")


def test_the_contract_loads_no_model_library() -> None:
    code = (
        "import sys, pipeline.encoders.base, pipeline.encoders.load;"
        "print([name for name in ('torch', 'timm', 'transformers', 'PIL', 'numpy') if name in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_the_table_names_functions_that_exist() -> None:
    import importlib

    for place in ENCODERS.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))
