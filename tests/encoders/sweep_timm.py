"""The conformance sweep over timm: the smallest model of every module of architectures, with random weights."""

import inspect
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from pipeline.encoders.base import LoadOptions, parse_spec
from pipeline.encoders.libraries import import_library
from pipeline.encoders.timm_family import TimmEncoder, build, from_timm
from tests.encoders.conformance import Case, Row, judged, noise, shaken

SHALLOW = {"depth": 2}
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "beit": ("beit_base_patch16_224", {**SHALLOW, "embed_dim": 192, "num_heads": 3}),
    "byoanet": ("halonet26t", {}),
    "byobnet": ("test_byobnet", {}),
    "cait": ("cait_xxs24_224", SHALLOW),
    "coat": ("coat_tiny", {}),
    "convit": ("convit_tiny", {}),
    "convmixer": ("convmixer_768_32", {}),
    "convnext": ("test_convnext", {}),
    "cpubone": ("cpubone_nano", {}),
    "crossvit": ("crossvit_tiny_240", {}),
    "csatv2": ("csatv2", {}),
    "cspnet": ("cs3darknet_focus_s", {}),
    "cspnext": ("cspnext_tiny", {}),
    "davit": ("davit_tiny", {}),
    "deepseek_vit": ("deepseek_vit_412m", {**SHALLOW, "embed_dim": 192, "num_heads": 3}),
    "deit": ("deit_tiny_distilled_patch16_224", SHALLOW),
    "densenet": ("densenet121", {}),
    "dla": ("dla46x_c", {}),
    "dpn": ("dpn48b", {}),
    "edgenext": ("edgenext_xx_small", {}),
    "efficientformer": ("efficientformer_l1", {}),
    "efficientformer_v2": ("efficientformerv2_s0", {}),
    "efficientnet": ("test_efficientnet", {}),
    "efficientvim": ("efficientvim_m1", {}),
    "efficientvit_mit": ("efficientvit_b0", {}),
    "efficientvit_msra": ("efficientvit_m0", {}),
    "eva": ("eva02_tiny_patch14_224", SHALLOW),
    "fasternet": ("fasternet_t0", {}),
    "fastvit": ("fastvit_t8", {}),
    "focalnet": ("focalnet_tiny_srf", {}),
    "gcvit": ("gcvit_xxtiny", {}),
    "gemma4_vit": ("gemma4_vit_167m", SHALLOW),
    "ghostnet": ("ghostnet_050", {}),
    "hardcorenas": ("hardcorenas_a", {}),
    "hgnet": ("hgnetv2_b0", {}),
    "hiera": ("hiera_tiny_224", {}),
    "hieradet_sam2": ("sam2_hiera_tiny", {}),
    "hrnet": ("hrnet_w18_small", {}),
    "iformer": ("iformer_t", {}),
    "inception_next": ("inception_next_atto", {}),
    "inception_resnet_v2": ("inception_resnet_v2", {}),
    "inception_v3": ("inception_v3", {}),
    "inception_v4": ("inception_v4", {}),
    "lcnetv2": ("lcnetv2_small", {}),
    "levit": ("levit_128s", {}),
    "lowformer": ("lowformer_b0", {}),
    "mambaout": ("test_mambaout", {}),
    "maxxvit": ("test_coatnet", {}),
    "metaformer": ("poolformer_s12", {}),
    "mlp_mixer": ("gmlp_ti16_224", {}),
    "mobilenetv3": ("lcnet_035", {}),
    "mobilenetv5": ("mobilenetv5_base", {}),
    "mobilevit": ("mobilevit_xxs", {}),
    "mvitv2": ("mvitv2_tiny", {}),
    "naflexvit": ("naflexvit_base_patch16_gap", {}),
    "nasnet": ("nasnetalarge", {}),
    "nest": ("nest_tiny", {}),
    "nextvit": ("nextvit_small", {}),
    "nfnet": ("test_nfnet", {}),
    "pit": ("pit_ti_224", {}),
    "pnasnet": ("pnasnet5large", {}),
    "pvt_v2": ("pvt_v2_b0", {}),
    "qwen3_vit": ("qwen3_vit_88m", SHALLOW),
    "rdnet": ("rdnet_tiny", {}),
    "regnet": ("regnetx_002", {}),
    "repghost": ("repghostnet_050", {}),
    "repvit": ("repvit_m1", {}),
    "res2net": ("res2next50", {}),
    "resnest": ("resnest14d", {}),
    "resnet": ("test_resnet", {}),
    "resnetv2": ("resnetv2_18", {}),
    "rexnet": ("rexnet_100", {}),
    "selecsls": ("selecsls42", {}),
    "senet": ("legacy_seresnet18", {}),
    "sequencer": ("sequencer2d_s", {}),
    "shvit": ("shvit_s1", {}),
    "sknet": ("skresnet18", {}),
    "starnet": ("starnet_s050", {}),
    "swiftformer": ("swiftformer_xs", {}),
    "swin_transformer": ("swin_tiny_patch4_window7_224", {}),
    "swin_transformer_v2": ("swinv2_tiny_window8_256", {}),
    "swin_transformer_v2_cr": ("swinv2_cr_tiny_224", {}),
    "tiny_vit": ("tiny_vit_5m_224", {}),
    "tnt": ("tnt_s_patch16_224", SHALLOW),
    "tresnet": ("tresnet_m", {}),
    "twins": ("twins_svt_small", {}),
    "vgg": ("vgg11", {}),
    "visformer": ("visformer_tiny", {}),
    "vision_transformer": ("vit_tiny_patch16_224", SHALLOW),
    "vision_transformer_hybrid": ("vit_tiny_r_s16_p8_224", SHALLOW),
    "vision_transformer_relpos": ("test_vit_relpos", {}),
    "vision_transformer_sam": ("samvit_base_patch16_224", {**SHALLOW, "embed_dim": 192, "num_heads": 3}),
    "vitamin": ("vitamin_small_224", {}),
    "volo": ("volo_d1_224", {}),
    "vovnet": ("ese_vovnet19b_slim_dw", {}),
    "xception": ("legacy_xception", {}),
    "xception_aligned": ("xception41", {}),
    "xcit": ("xcit_nano_12_p16_224", SHALLOW),
}
"""Module of timm → (one of its smallest models, arguments that make it smaller still)."""

SIZES: tuple[dict[str, int], ...] = ({"img_size": 64}, {"input": 64}, {"img_size": 128}, {"input": 128}, {})
"""What to try first: small images are fast, but not every model can take them."""


def cases() -> list[Case]:
    """Return a case for every module of architectures of the installed timm."""
    modules = [
        name for name in import_library("timm").list_modules() if import_library("timm").list_models(module=name)
    ]
    return [Case(library="timm", family=name, run=partial(sweep, name)) for name in modules]


@torch.no_grad()
def sweep(module: str) -> Row:
    """Build the model of a module and compare our encoder of it with the model itself."""
    name, arguments = MODELS.get(module, ("", {}))
    if not name:
        return Row(library="timm", family=module, verdict="not tried: no small model of it is named in the sweep")
    model, size = _smallest(name, arguments)
    config = {**import_library("timm.data").resolve_model_data_config(model), "input_size": (3, size, size)}
    transform = from_timm(config)
    spec = parse_spec(f"timm:{name}")
    encoder = build(spec, LoadOptions(), model, transform=transform, family="timm", name=name, weights="random")
    images = noise(size)
    expected = {} if encoder.info.refused else _theirs(model, images, encoder)
    return judged(
        Row(library="timm", family=module, example=name), encoder, list(images), expected=expected, output=model(images)
    )


def _theirs(model: Any, images: Tensor, encoder: TimmEncoder) -> Mapping[str, Tensor]:
    """Return what timm says that each of our layers is."""
    names = [layer.name for layer in encoder.layers[:-1] if layer.name != "embeddings"]
    accepted = inspect.signature(model.forward_intermediates).parameters
    prefixed = "return_prefix_tokens" in accepted and getattr(model, "num_prefix_tokens", 0) > 0
    asked = {"return_prefix_tokens": True} if prefixed else {}
    pairs = [
        pair if isinstance(pair, tuple) else (pair, None)
        for pair in model.forward_intermediates(images, intermediates_only=True, **asked)
    ]
    found = {}
    for layer, (maps, prefix) in zip(names, pairs[len(pairs) - len(names) :], strict=True):  # some count a stem
        pooled = maps.mean(dim=(2, 3)) if maps.ndim == 4 else maps.mean(dim=1)
        found[layer] = prefix[:, 0] if encoder.info.inner_pool == "cls" else pooled
    return found


def _smallest(name: str, arguments: Mapping[str, Any]) -> tuple[Any, int]:
    """Return a model and the edge of the smallest images that it takes."""
    for size in SIZES:
        try:
            model = _created(name, {**arguments, **{key: edge for key, edge in size.items() if key == "img_size"}})
            edge = next(iter(size.values()), 0) or int(model.pretrained_cfg["input_size"][1])
            model(torch.zeros(1, 3, edge, edge))
        except (TypeError, RuntimeError, AssertionError, ValueError, KeyError, IndexError, ZeroDivisionError):
            if not size:
                raise
        else:
            return model, edge
    raise AssertionError(name)


def _created(name: str, arguments: Mapping[str, Any]) -> Any:
    torch.manual_seed(1)
    return shaken(import_library("timm").create_model(name, pretrained=False, num_classes=0, **arguments).eval())
