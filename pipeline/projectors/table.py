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
from pipeline.projectors.csls import CslsProjector
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
WRAPPERS: dict[str, type[Projector]] = {"csls": CslsProjector}
"""Projectors around another one: their setting `base` is {"projector": name, "settings": {...}}."""


def build_projector(name: str, settings: Mapping[str, Any], *, where: str = "") -> Projector:
    """Make the projector of that name from its settings.

    Raises:
        UnknownNameError: No such projector, or a setting that it does not have.
        UserError: A setting is missing or has an impossible value.
    """
    table = {**PROJECTORS, **WRAPPERS}
    if name not in table:
        raise UnknownNameError("projector", name, PROJECTORS, where)
    known = inspect.signature(table[name]).parameters
    for setting in settings:
        if setting not in known:
            raise UnknownNameError(f"setting of the {name} projector", setting, known, where)
    missing = [key for key, spec in known.items() if spec.default is inspect.Parameter.empty and key not in settings]
    if missing:
        raise UserError(expected=f"the settings {', '.join(missing)}", found="none", where=where or f"{name} projector")
    if name in WRAPPERS:
        settings = {**settings, "base": _base(settings["base"], name, where)}
    try:
        return table[name](**settings)
    except TypeError as error:
        raise UserError(expected=f"settings of a {name} projector", found=str(error), where=where) from error


def _base(about: object, name: str, where: str) -> Projector:
    """Make the projector that another one wraps."""
    if not isinstance(about, Mapping) or set(about) != {"projector", "settings"} or about["projector"] in WRAPPERS:
        expected = f"the projector that {name} wraps, as its name and settings"
        raise UserError(expected=expected, found=str(about)[:120], where=where)
    return build_projector(str(about["projector"]), about["settings"], where=where)
