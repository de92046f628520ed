"""`open_clip:NAME/TAG`, `open_clip:/folder` or `open_clip:NAME//path/to/weights`: one tower of a two-tower model.

A folder is open_clip's own form: open_clip_config.json and open_clip_model.safetensors. `--modality` says which tower;
the other is let go. See `open_clip_towers` for the layers.
"""

import json
from pathlib import Path
from typing import Any

from pipeline.encoders.base import LoadOptions
from pipeline.encoders.digest import state_sha256, weight_files, weights_sha256
from pipeline.encoders.hub import opening
from pipeline.encoders.libraries import import_library
from pipeline.encoders.open_clip_towers import ClipImageTower, ClipTextTower, image_tower, text_tower
from pipeline.encoders.spec import Spec, nearest, require_folder
from pipeline.errors import UnknownNameError, UserError
from pipeline.files import file_sha256, spaced_json_digest

VERSION = 1
"""Part of the key: goes up when this module or `open_clip_towers` changes what comes out."""

LOCAL = "open_clip:/folder with open_clip_config.json, or open_clip:NAME//path/to/weights"


def load(spec: Spec, options: LoadOptions) -> ClipImageTower | ClipTextTower:
    """Load one tower of a model of open_clip.

    Raises:
        UnknownNameError: No such architecture or tag.
        UserError: The modality is not said, or the weights cannot be had.
    """
    if options.modality is None:
        raise UserError(expected="--modality image or --modality text", found="none", where=spec.text)
    require_folder(spec, "open_clip_config.json")
    architecture, weights = _parts(spec)
    with opening(spec, LOCAL):
        model = import_library("open_clip").create_model(architecture, pretrained=weights, require_pretrained=True)
        identity = {
            "family": "open_clip",
            "name": f"{architecture}/local" if weights and Path(weights).is_file() else spec.key_name,
            "tower": options.modality,
            "weights": _weights(spec, model, weights),
            "config": spaced_json_digest(_config(spec, architecture)),
            "version": VERSION,
        }
        if options.modality == "image":
            return image_tower(spec, options, model, identity=identity)
        tokenizer = import_library("open_clip").get_tokenizer(architecture)
        return text_tower(spec, options, model, tokenizer=tokenizer, identity=identity)


def _parts(spec: Spec) -> tuple[str, str | None]:
    """Return what open_clip calls architecture and weights."""
    if spec.folder is not None:
        return f"local-dir:{spec.folder}", None
    if spec.name.startswith("hf-hub:"):
        return spec.name, None
    library = import_library("open_clip")
    architecture, _, weights = spec.name.partition("/")
    if architecture not in library.list_models():
        near = nearest(architecture, library.list_models())
        raise UnknownNameError("model of open_clip", architecture, near, spec.text)
    if weights.startswith(("/", ".", "~")):
        path = Path(weights).expanduser()
        if not path.is_file():
            raise UserError(expected=f"a weight file {path}", found="none", where=spec.text)
        return architecture, str(path)
    tags = library.list_pretrained_tags_by_model(architecture)
    if weights not in tags:
        raise UnknownNameError(f"pretrained tag of {architecture}", weights, tags, spec.text)
    return architecture, weights


def _weights(spec: Spec, model: Any, weights: str | None) -> str:
    if spec.folder is not None:
        return weights_sha256(weight_files(spec.folder))
    if weights and Path(weights).is_file():
        return file_sha256(Path(weights))
    return state_sha256(model.state_dict())


def _config(spec: Spec, architecture: str) -> Any:
    if spec.folder is not None:
        return json.loads((spec.folder / "open_clip_config.json").read_text(encoding="utf-8"))["model_cfg"]
    return import_library("open_clip").get_model_config(architecture) or architecture
