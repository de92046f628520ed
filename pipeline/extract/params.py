"""From params.yaml to the settings of the extract stage: every (data set, encoder) that is named there."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.config import build, name, names, section
from pipeline.errors import UnknownNameError
from pipeline.extract.config import ExtractConfig


def extract_config(
    params: Mapping[str, Any],
    dataset: str,
    encoder: str,
    root: Path = Path(),
    *,
    where: str = "params.yaml",
    **flags: Any,
) -> ExtractConfig:
    """Return the settings that params.yaml means for one data set and one encoder.

    Args:
        params: The whole of params.yaml.
        dataset: A data set's name: a folder of `data/0_raw`.
        encoder: An encoder's short name, a key of the section `encoders`.
        root: The checkout; all folders are below its `data/`.
        where: The file that they came from, for errors.
        flags: Fields of `ExtractConfig` that win over the section `extract`; None means nothing was said.

    Raises:
        UserError: A section or a name is missing, or a setting is wrong.
        UnknownNameError: `encoders` does not name the encoder.
    """
    encoders = section(params, "encoders", where)
    if encoder not in encoders:
        raise UnknownNameError("encoder", encoder, encoders, f"{where}: encoders")
    spec = encoders[encoder]
    own = dict(spec) if isinstance(spec, Mapping) else {"encoder": spec}
    values = {
        **section(params, "extract", where),
        **own,
        **{flag: value for flag, value in flags.items() if value is not None},
        "dataset": root / "data" / "0_raw" / dataset,
        "out": root / "data" / "1_features" / dataset / encoder,
    }
    return build(ExtractConfig, values, where=f"{where}: extract, {encoder}")


def named_stores(params: Mapping[str, Any], where: str = "params.yaml") -> list[tuple[str, str]]:
    """Return every (data set, encoder) that params.yaml names: all data sets with both encoders.

    Raises:
        UserError: A name is missing or is no name.
    """
    encoders = [name(params, side, where=where) for side in ("image_encoder", "text_encoder")]
    return [(dataset, encoder) for dataset in names(params, "datasets", where=where) for encoder in encoders]
