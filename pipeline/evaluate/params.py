"""From params.yaml to the settings of the evaluate stage: every method's run, side by side in one report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import build, name, names, section
from pipeline.evaluate.config import EvaluateConfig


def evaluate_config(params: Mapping[str, Any], root: Path = Path(), where: str = "params.yaml") -> EvaluateConfig:
    """Return the settings that params.yaml means.

    Args:
        params: The whole of params.yaml.
        root: The checkout; all folders are below its `data/`.
        where: The file that they came from, for errors.

    Raises:
        UserError: A section or a name is missing, or a setting is wrong.
    """
    settings = section(params, "evaluate", where)
    dataset = name(section(params, "align", where), "dataset", where=f"{where}: align")
    image, text = (name(params, side, where=where) for side in ("image_encoder", "text_encoder"))
    features = root / "data" / "1_features"
    sets = [each for each in names(settings, "zero_shot", where=f"{where}: evaluate") if each != dataset]
    settings.pop("zero_shot", None)
    values = {
        "runs": [root / "data" / "2_projectors" / method for method in names(params, "methods", where=where)],
        "image": [features / dataset / image],
        "text": [features / dataset / text],
        "out": root / "data" / "3_report",
        "zero_shot": [
            {"name": each, "image": [features / each / image], "classes": [features / each / text / "classes"]}
            for each in sets
        ],
        **settings,
    }
    return build(EvaluateConfig, values, where=f"{where}: evaluate")
