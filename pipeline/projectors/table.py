"""Projectors by name: one table, one builder.

from pipeline.projectors.table import PROJECTORS, build_projector
projector = build_projector("linear", {"d_in": 384, "d": 512})
"""

import inspect
from collections.abc import Mapping
from typing import Any

from pipeline.errors import UnknownNameError, UserError
from pipeline.projectors.asif import AsifProjector
from pipeline.projectors.base import Projector
from pipeline.projectors.linear import AffineProjector, IdentityProjector, LinearProjector
from pipeline.projectors.residual import ResidualLowRankProjector, ResidualMLPProjector

PROJECTORS: dict[str, type[Projector]] = {
    "linear": LinearProjector,
    "residual_mlp": ResidualMLPProjector,
    "residual_low_rank": ResidualLowRankProjector,
    "identity": IdentityProjector,
    "affine": AffineProjector,
    "asif": AsifProjector,
}


def build_projector(name: str, settings: Mapping[str, Any], *, where: str = "") -> Projector:
    """Make the projector of that name from its settings.

    Raises:
        UnknownNameError: No such projector, or a setting that it does not have.
        UserError: A setting is missing or has an impossible value.
    """
    if name not in PROJECTORS:
        raise UnknownNameError("projector", name, PROJECTORS, where)
    known = inspect.signature(PROJECTORS[name]).parameters
    for setting in settings:
        if setting not in known:
            raise UnknownNameError(f"setting of the {name} projector", setting, known, where)
    missing = [key for key, spec in known.items() if spec.default is inspect.Parameter.empty and key not in settings]
    if missing:
        raise UserError(expected=f"the settings {', '.join(missing)}", found="none", where=where or f"{name} projector")
    try:
        return PROJECTORS[name](**settings)
    except TypeError as error:
        raise UserError(expected=f"settings of a {name} projector", found=str(error), where=where) from error
