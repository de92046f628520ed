"""CSLS inside a projector: the slow formula, the disk, hostile input."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline.errors import UnknownNameError, UserError
from pipeline.metrics.retrieval import cross_ranks
from pipeline.projectors.base import Projector, unit_rows
from pipeline.projectors.csls import CslsProjector, nearest_mean, scaled, with_csls
from pipeline.projectors.run_record import PROJECTORS, build_projector, load_projector, save_projector

BASE = {"projector": "linear", "settings": {"d_in": 6, "d": 5}}


def rows(count: int, width: int, seed: int) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def make_pair(neighbours: int = 3, weight: float = 0.5) -> tuple[CslsProjector, CslsProjector]:
    torch.manual_seed(0)
    image = build_projector("linear", {"d_in": 6, "d": 5, "normalise_input": "standardise", "blocks": [2, 4]})
    text = build_projector("affine", {"d_in": 4, "d": 5, "normalise_input": "unit"})
    image.fit_input(rows(30, 6, 1))
    banks = unit_rows(rows(11, 5, 2)), unit_rows(rows(9, 5, 3))
    return with_csls(image, text, *banks, neighbours=neighbours, weight=weight)


@torch.no_grad()
@pytest.mark.parametrize(("neighbours", "weight"), [(1, 0.5), (3, 0.5), (3, 0.2), (100, 1.0)])
def test_scores_are_those_of_the_slow_formula(neighbours: int, weight: float) -> None:
    image, text = make_pair(neighbours, weight)
    x, y = rows(7, 6, 4), rows(8, 4, 5)
    found = image(x) @ text(y).T
    u, v = image.base(x), text.base(y)
    for i in range(7):
        for j in range(8):
            near_i = sorted((float(u[i] @ row) for row in image.bank), reverse=True)[:neighbours]
            near_j = sorted((float(v[j] @ row) for row in text.bank), reverse=True)[:neighbours]
            hubs = sum(near_i) / len(near_i) + sum(near_j) / len(near_j)
            expected = (float(u[i] @ v[j]) - weight * hubs) / (1 + 2 * weight)
            assert float(found[i, j].detach()) == pytest.approx(expected, abs=1e-5)


def test_embeddings_are_unit_length_without_a_change_of_scale() -> None:
    image, text = make_pair()
    for projector, width in ((image, 6), (text, 4)):
        x = rows(20, width, 6)
        out = projector(x)
        assert out.shape == (20, projector.d) == (20, 9)
        torch.testing.assert_close(out.norm(dim=1), torch.ones(20))
        torch.testing.assert_close(projector.project(x).norm(dim=1), torch.full((20,), 2.0**0.5))


def test_hubs_are_found_less_often() -> None:
    """All captions lean one way; images that lean there more than others are near to every caption."""
    generator = torch.Generator().manual_seed(0)
    content = 0.3 * torch.randn(300, 20, generator=generator)
    lean = torch.zeros(300, 20)
    lean[:, 0] = 2 * torch.rand(300, generator=generator)
    images = unit_rows(content + lean)
    leaning = content + 0.2 * torch.randn(300, 20, generator=generator)
    leaning[:, 0] = 2.0
    captions = unit_rows(leaning)
    sides = [build_projector("identity", {"d_in": 20}) for _ in range(2)]
    image, text = with_csls(sides[0], sides[1], images[:150], captions[:150])
    plain = (images[150:] @ captions[150:].T).argmax(dim=0)
    corrected = (image(images[150:]) @ text(captions[150:]).T).argmax(dim=0)
    assert int(torch.bincount(plain).max()) > 2 * int(torch.bincount(corrected).max())
    own = torch.arange(150)
    assert int((corrected == own).sum()) > int((plain == own).sum()) + 20


def test_comes_back_from_the_disk_with_the_same_bits(tmp_path: Path) -> None:
    for side, projector, width in zip(("image", "text"), make_pair(), (6, 4), strict=True):
        save_projector(tmp_path, side, projector)
        again = load_projector(tmp_path, side)
        assert again.settings() == projector.settings()
        assert torch.equal(again(rows(9, width, 7)), projector(rows(9, width, 7)))


def test_gradients_reach_the_base() -> None:
    image, _ = make_pair()
    (image(rows(5, 6, 8)) * rows(5, 9, 9)).sum().backward()
    for label, parameter in image.named_parameters():
        assert parameter.grad is not None, label
        assert float(parameter.grad.abs().sum()) > 0, label


def test_zero_and_half_precision_features() -> None:
    image, text = make_pair()
    assert bool(torch.isfinite(text(torch.zeros(2, 4))).all())
    x = rows(4, 6, 1).half()
    torch.testing.assert_close(image(x), image(x.float()))
    with pytest.raises(UserError, match=r"shape \[N, 6\]"):
        image(torch.zeros(2, 5))


def test_double_precision_gradient() -> None:
    base = build_projector("affine", {"d_in": 3, "d": 3}).double()
    made = CslsProjector(base, 4, side="text", neighbours=2).double()
    made.bank.copy_(unit_rows(rows(4, 3, 1).double()))
    x = rows(3, 3, 2).double().requires_grad_()
    assert torch.autograd.gradcheck(made, (x,))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"base": BASE, "bank": 0, "side": "image"}, "bank of 1 row"),
        ({"base": BASE, "bank": 3, "side": "audio"}, "image or text"),
        ({"base": BASE, "bank": 3, "side": "text", "neighbours": 0}, "1 neighbour or more"),
        ({"base": BASE, "bank": 3, "side": "text", "weight": 0.0}, "positive weight"),
        ({"base": BASE, "bank": 3, "side": "text", "weight": float("nan")}, "positive weight"),
        ({"base": "linear", "bank": 3, "side": "text"}, "the projector that csls wraps"),
        ({"base": {"projector": "csls", "settings": {}}, "bank": 3, "side": "text"}, "the projector that csls wraps"),
        ({"base": {**BASE, "projector": "linea"}, "bank": 3, "side": "text"}, "did you mean 'linear'"),
        ({"bank": 3, "side": "text"}, "the settings base"),
    ],
)
def test_impossible_settings_are_told(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build_projector("csls", settings)


def test_banks_of_another_width_are_refused() -> None:
    sides: list[Projector] = [build_projector("identity", {"d_in": 4}) for _ in range(2)]
    with pytest.raises(UserError, match=r"a bank \[B, 4\]"):
        with_csls(sides[0], sides[1], torch.ones(3, 5), torch.ones(3, 5))
    with pytest.raises(UserError, match="bank of 1 row or more"):
        with_csls(sides[0], sides[1], torch.ones(0, 4), torch.ones(0, 4))


@torch.no_grad()
@pytest.mark.parametrize("weight", [0.2, 0.5])
def test_classification_gets_the_plain_embedding(weight: float) -> None:
    for projector, width in zip(make_pair(weight=weight), (6, 4), strict=True):
        found = projector(rows(9, width, 7))
        assert projector.for_task(found, "retrieval") is found
        plain = projector.base(rows(9, width, 7))
        torch.testing.assert_close(projector.for_task(found, "classification"), plain)
        assert projector.cosine_scale("retrieval") == 1
        assert projector.cosine_scale("classification") == pytest.approx(1 + 2 * weight)
        torch.testing.assert_close(found[:, :5] * (1 + 2 * weight) ** 0.5, plain)
        assert projector.base.for_task(plain, "classification") is plain
        with pytest.raises(UnknownNameError, match="task"):
            projector.for_task(found, "ranking")  # type: ignore[arg-type]


def test_it_is_no_projector_to_train() -> None:
    assert "csls" not in PROJECTORS
    with pytest.raises(UnknownNameError, match="setting of the csls projector"):
        build_projector("csls", {"d_in": 4, "d": 3})


def unit(rows: int, seed: int, d: int = 8) -> Tensor:
    return torch.nn.functional.normalize(torch.randn(rows, d, generator=torch.Generator().manual_seed(seed)), dim=1)


def test_ranks_are_those_of_the_formula() -> None:
    images, captions, bank_images, bank_captions = unit(30, 0), unit(60, 1), unit(40, 2), unit(50, 3)
    owner = torch.arange(60) % 30
    image_r, caption_r = nearest_mean(images, bank_captions, 5), nearest_mean(captions, bank_images, 5)
    left, right = scaled(images, captions, image_r, caption_r)
    image_ranks, caption_ranks = cross_ranks(left, right, owner)
    scores = np.zeros((30, 60))
    for i, image in enumerate(images):
        r_i = np.mean(sorted(float(image @ other) for other in bank_captions)[-5:])
        for c, caption in enumerate(captions):
            r_c = np.mean(sorted(float(caption @ other) for other in bank_images)[-5:])
            scores[i, c] = 2 * float(image @ caption) - r_i - r_c
    np.testing.assert_allclose((left @ right.T).numpy(), scores, atol=1e-5)
    for c in range(60):
        assert caption_ranks[c] == 1 + sum(scores[i, c] >= scores[owner[c], c] for i in range(30) if i != owner[c])
    for i in range(30):
        best = scores[i, owner.numpy() == i].max()
        assert image_ranks[i] == 1 + sum(scores[i, c] >= best for c in range(60) if owner[c] != i)


def test_ranking_by_it_helps_against_a_hub() -> None:
    """An image that is near all captions wins by cosine and loses once its nearness to everybody is taken off."""
    captions, bank = unit(50, 0), unit(200, 1)
    middle = torch.nn.functional.normalize(torch.ones(1, 8), dim=1)
    captions, bank = (torch.nn.functional.normalize(part + 1.5 * middle, dim=1) for part in (captions, bank))
    images = torch.cat([torch.nn.functional.normalize(captions + 0.8 * unit(50, 2), dim=1), middle])
    owner = torch.arange(50)
    plain = cross_ranks(images, captions, owner)[1]
    left, right = scaled(images, captions, nearest_mean(images, bank, 10), torch.zeros(50))
    assert (cross_ranks(left, right, owner)[1] == 1).mean() > (plain == 1).mean()


def test_embeddings_and_banks_that_do_not_fit_are_told() -> None:
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: nearest_mean(unit(3, 0), unit(4, 1), 5), "k between 1 and 4"),
        (lambda: nearest_mean(unit(3, 0), unit(4, 1, 5), 2), "width 8"),
        (lambda: scaled(unit(3, 0), unit(4, 1, 5), torch.zeros(3), torch.zeros(4)), "width 8"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
