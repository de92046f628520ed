"""From params.yaml to the settings of the evaluate stage: every method's run, side by side in one report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import build, name, names, section
from pipeline.evaluate.config import EvaluateConfig


def evaluate_config(params: Mapping[str, Any], root: Path = Path()) -> EvaluateConfig:
    """Return the settings that params.yaml means.

    Args:
        params: The whole of params.yaml.
        root: The checkout; all folders are below its `data/`.

    Raises:
        UserError: A section or a name is missing, or a setting is wrong.
    """
    settings = section(params, "evaluate")
    dataset = name(section(params, "align"), "dataset", where="params.yaml: align")
    image, text = name(params, "image_encoder"), name(params, "text_encoder")
    features = root / "data" / "1_features"
    sets = [each for each in names(settings, "zero_shot", where="params.yaml: evaluate") if each != dataset]
    settings.pop("zero_shot", None)
    values = {
        "runs": [root / "data" / "2_projectors" / method for method in names(params, "methods")],
        "image": [features / dataset / image],
        "text": [features / dataset / text],
        "out": root / "data" / "3_report",
        "zero_shot": [
            {"name": each, "image": [features / each / image], "classes": [features / each / text / "classes"]}
            for each in sets
        ],
        **settings,
    }
    return build(EvaluateConfig, values, where="params.yaml: evaluate")
