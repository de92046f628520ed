"""The slots of one training step, one file each, and the plain table of losses: one file and one line each.

    batch → (mix) → (perturb) → project → similarity → (targets T) → CE per direction
          → (direction weights) → + λ·structure

`pipeline.align.objective` puts the slots together.
"""

from pipeline.align.losses.contrastive import ContrastiveLoss
from pipeline.align.losses.dcl import DCLLoss
from pipeline.align.losses.info_nce import InfoNCELoss
from pipeline.align.losses.siglip import SigLIPLoss
from pipeline.align.recipe import TemperatureOptions
from pipeline.errors import UnknownNameError

LOSSES: dict[str, type[ContrastiveLoss]] = {
    "info_nce": InfoNCELoss,
    "siglip": SigLIPLoss,
    "dcl": DCLLoss,
}


def make_loss(name: str, temperature: TemperatureOptions) -> ContrastiveLoss:
    """Return the loss of a name.

    Raises:
        UnknownNameError: No such loss.
    """
    if name not in LOSSES:
        raise UnknownNameError("loss", name, LOSSES, "align settings: loss")
    return LOSSES[name](temperature)
