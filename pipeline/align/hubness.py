"""Finished projectors wrapped in CSLS, its neighbours from the training pairs. Used by `closed_form` and `run`.

Every method can ask for it (`hubness.neighbours`); it is made after everything else and changes no weight.
"""

import dataclasses

import torch
from torch import Tensor

from pipeline.align.options import HubnessOptions
from pipeline.align.recipe import Recipe
from pipeline.align.tensors import PairTensors
from pipeline.align.train import Trained
from pipeline.align.validation import validate, validation_temperature
from pipeline.projectors.base import Projector, unit_rows
from pipeline.projectors.csls import with_csls


@torch.no_grad()
def without_hubs(
    image: Projector, text: Projector, train: PairTensors, options: HubnessOptions
) -> tuple[Projector, Projector]:
    """Return the pair, corrected where `options.neighbours` is not 0.

    Args:
        image: Image projector, finished.
        text: Text projector, finished.
        train: Training pairs: a bank row of texts is the mean of an image's caption embeddings, of unit length.
        options: k, weight, size of the banks. Where there are more images the bank is drawn, always the same.
    """
    if options.neighbours == 0:
        return image, text
    image.eval(), text.eval()
    if len(train) > options.bank:
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))[: options.bank]
        train = train.take(order.sort().values.to(train.device))
    images, captions = image(train.image), text(train.text)
    return with_csls(image, text, images, _means(captions, train), neighbours=options.neighbours, weight=options.weight)


def corrected(trained: Trained, train: PairTensors, validation: PairTensors, recipe: Recipe) -> Trained:
    """Return what training gave with the correction on top, measured anew, τ fitted anew; as it is where none is asked.

    Args:
        trained: The outcome of gradient descent.
        train: Its training pairs.
        validation: Validation pairs.
        recipe: Its `hubness` says whether and how.
    """
    if recipe.hubness.neighbours == 0:
        return trained
    image, text = without_hubs(trained.image, trained.text, train, recipe.hubness)
    small = validation.head(recipe.training.validation_images)
    return dataclasses.replace(
        trained,
        image=image,
        text=text,
        validation=validate(image, text, validation),
        temperature=validation_temperature(image, text, small),
        temperature_source="validation",
    )


def _means(captions: Tensor, train: PairTensors) -> Tensor:
    total = captions.new_zeros(len(train), captions.shape[1]).index_add_(0, train.caption_image, captions)
    return unit_rows(total)
