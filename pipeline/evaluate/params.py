"""From params.yaml to the settings of the evaluate stage: every method's run, side by side in one report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import build, section
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
    dataset = section(params, "align").get("dataset", "")
    image, text = str(params.get("image_encoder", "")), str(params.get("text_encoder", ""))
    features = root / "data" / "1_features"
    sets = [name for name in settings.pop("zero_shot", []) if name != dataset]
    values = {
        "runs": [root / "data" / "2_projectors" / method for method in params.get("methods", [])],
        "image": [features / dataset / image],
        "text": [features / dataset / text],
        "out": root / "data" / "3_report",
        "zero_shot": [
            {"name": name, "image": [features / name / image], "classes": [features / name / text / "classes"]}
            for name in sets
        ],
        **settings,
    }
    return build(EvaluateConfig, values, where="params.yaml: evaluate")
