"""The slots of a step put together: each can be switched off, and together every parameter learns."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.align.losses import LOSSES
from pipeline.align.losses.augmentation import draw_coefficient
from pipeline.align.losses.directions import SIGNALS
from pipeline.align.objective import Batch, Objective, StepContext
from pipeline.align.recipe import (
    DirectionOptions,
    MixOptions,
    ObjectiveOptions,
    PerturbationOptions,
    SmoothingOptions,
    SoftTargetOptions,
    StructureOptions,
    TemperatureOptions,
)
from pipeline.errors import UserError
from pipeline.projectors.run_record import build_projector
from tests.align.losses.test_structure import slow_neighbourhoods, slow_structure

TRAINABLE = ["linear", "residual_mlp", "residual_low_rank", "affine"]
TAU = 0.1
FIXED = TemperatureOptions(initial=TAU, learned=False, form="raw")


class Unit(nn.Module):
    """A linear map to unit vectors, float64."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.weight = nn.Parameter(torch.randn(6, 4, generator=generator, dtype=torch.float64))

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(features @ self.weight, dim=1)


def batch(n: int = 8, ids: list[int] | None = None) -> Batch:
    generator = torch.Generator().manual_seed(0)
    image, text = (torch.randn(n, 6, generator=generator, dtype=torch.float64) for _ in range(2))
    return Batch(image, text, None if ids is None else torch.tensor(ids))


def moment(step: int = 50, seed: int = 0) -> StepContext:
    return StepContext(step, 100, torch.Generator().manual_seed(seed), torch.Generator().manual_seed(seed))


def step_of(
    options: ObjectiveOptions, at: StepContext | None = None, data: Batch | None = None
) -> tuple[Tensor, Tensor]:
    """Return the loss and the image projector's gradient."""
    image, text = Unit(1), Unit(2)
    objective = Objective(options).double()
    with torch.no_grad():
        objective.loss.temperature.parameter.fill_(TAU)
    loss, _ = objective(image, text, data or batch(), at or moment())
    loss.backward()
    assert image.weight.grad is not None
    return loss.detach(), image.weight.grad


def test_plain_step_is_symmetric_info_nce() -> None:
    loss, gradient = step_of(ObjectiveOptions(temperature=FIXED))
    image, text, data = Unit(1), Unit(2), batch()
    logits = image(data.image) @ text(data.text).T / TAU
    labels = torch.arange(8)
    expected = (F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    (expected_gradient,) = torch.autograd.grad(expected, image.weight)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    "off",
    [
        {"smoothing": SmoothingOptions(alpha=0.0, schedule="per_sample"), "perturbation": PerturbationOptions(sigma=0)},
        {"direction": DirectionOptions(schedule="variance", gamma=0.0)},
        {"structure": StructureOptions(weight=0.0, levels=3)},
    ],
    ids=["modest_align", "variance", "structure"],
)
def test_each_method_switched_off_is_the_plain_loss_bit_for_bit(off: dict[str, Any]) -> None:
    plain, plain_gradient = step_of(ObjectiveOptions(temperature=FIXED))
    loss, gradient = step_of(ObjectiveOptions(temperature=FIXED, **off))
    assert torch.equal(loss, plain)
    assert torch.equal(gradient, plain_gradient)


def test_smoothing_and_noise_off_is_fusemix() -> None:
    """Modest-Align without its two parts is its base system: the halves mixed by one coefficient on both sides."""
    loss, _ = step_of(ObjectiveOptions(temperature=FIXED, mix=MixOptions(enabled=True)))
    share = draw_coefficient(MixOptions(enabled=True), torch.Generator().manual_seed(0))
    data = batch()
    mixed = Batch(*(share * side[:4] + (1 - share) * side[4:] for side in data[:2]))
    expected, _ = step_of(ObjectiveOptions(temperature=FIXED), data=mixed)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-12)


def test_noise_and_mixing_stop_in_evaluation() -> None:
    options = ObjectiveOptions(
        temperature=FIXED, mix=MixOptions(enabled=True), perturbation=PerturbationOptions(sigma=0.5)
    )
    objective = Objective(options).double().eval()
    losses = [objective(Unit(1), Unit(2), batch(), moment(seed=seed))[0].item() for seed in (0, 1)]
    assert losses[0] == losses[1]


def test_structure_is_taken_on_the_clean_batch() -> None:
    values = []
    for noise in (0.0, 0.5):
        options = ObjectiveOptions(
            structure=StructureOptions(weight=1.0), perturbation=PerturbationOptions(sigma=noise)
        )
        _, terms = Objective(options)(Unit(1), Unit(2), batch(), moment())
        values.append(float(terms["structure"]))
    assert values[0] == values[1]


@pytest.mark.parametrize("levels", [1, 3])
def test_the_total_is_the_papers(levels: int) -> None:
    """L = L_A + λ(t)·½(R_S of the images + R_S of the texts), λ(t) = λ₀·min(1, t/warm-up): arXiv 2506.16895.

    Every part is computed here from its formula, by loops; the two sides must differ, or either could stand for both.
    """
    structure = StructureOptions(weight=4.0, warm_up=1.0, temperature=0.3, levels=levels)
    data, image, text = batch(), Unit(1), Unit(2)
    embedded = image(data.image).detach(), text(data.text).detach()
    logits = embedded[0] @ embedded[1].T / TAU
    labels = torch.arange(8)
    alignment = float(F.cross_entropy(logits, labels) + F.cross_entropy(logits.T, labels)) / 2
    sides = [slow_structure(frozen, made, structure) for frozen, made in zip(data[:2], embedded, strict=True)]
    assert abs(sides[0] - sides[1]) > 1e-3
    loss, _ = step_of(ObjectiveOptions(temperature=FIXED, structure=structure), at=moment(step=50))
    assert loss.item() == pytest.approx(alignment + 4.0 * 50 / 100 * (sides[0] + sides[1]) / 2, rel=1e-9)


def test_terms_say_what_was_added() -> None:
    structure = StructureOptions(weight=4.0, warm_up=1.0, temperature=0.3)
    data, image, text = batch(), Unit(1), Unit(2)
    objective = Objective(ObjectiveOptions(temperature=FIXED, structure=structure)).double()
    _, terms = objective(image, text, data, moment(step=25))
    sides = [(data.image, image(data.image).detach()), (data.text, text(data.text).detach())]
    found = [slow_structure(frozen, made, structure) for frozen, made in sides]
    assert terms["structure_weight"] == pytest.approx(1.0)
    assert float(terms["structure"]) == pytest.approx(sum(found) / 2, rel=1e-9)
    for place, name in enumerate(("diagonal_features", "diagonal_embeddings")):
        rows = [slow_neighbourhoods(side[place], 0.3, False, False) for side in sides]
        mass = [sum(row[i] for i, row in enumerate(matrix)) / len(matrix) for matrix in rows]
        assert float(terms[name]) == pytest.approx(sum(mass) / 2, rel=1e-9)


def test_captions_of_one_image_are_no_strangers() -> None:
    """With the duplicates masked, a batch of twins costs no more than its distinct pairs."""
    data = batch(4)
    twins = Batch(data.image[[0, 0, 1, 2]], data.text[[0, 0, 1, 2]], torch.tensor([0, 0, 1, 2]))
    masked, _ = step_of(ObjectiveOptions(temperature=FIXED), data=twins)
    unmasked, _ = step_of(ObjectiveOptions(temperature=FIXED), data=twins._replace(image_ids=None))
    assert masked < unmasked


@pytest.mark.parametrize("projector", TRAINABLE)
@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("schedule", SIGNALS)
def test_every_parameter_gets_a_gradient(projector: str, loss: str, schedule: str) -> None:
    torch.manual_seed(0)
    image = build_projector(projector, {"d_in": 6, "d": 4})
    text = build_projector(projector, {"d_in": 6, "d": 4})
    objective = Objective(
        ObjectiveOptions(
            loss=loss,
            direction=DirectionOptions(schedule=schedule),
            smoothing=SmoothingOptions(alpha=0.1),
            structure=StructureOptions(weight=1.0),
            perturbation=PerturbationOptions(sigma=0.1),
        )
    )
    data = batch(16)
    total, _ = objective(image, text, Batch(data.image.float(), data.text.float()), moment())
    total.backward()
    modules = {"image": image, "text": text, "objective": objective}
    for side, module in modules.items():
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None, f"{side}.{name} has no gradient"
            assert bool(torch.isfinite(parameter.grad).all())
            assert parameter.grad.abs().max() > 0, f"{side}.{name} has a gradient of zero"


@pytest.mark.parametrize("loss", LOSSES)
def test_soft_targets_fit_every_loss(loss: str) -> None:
    total, gradient = step_of(ObjectiveOptions(loss=loss, soft_targets=SoftTargetOptions(weight=0.3)))
    assert bool(torch.isfinite(total))
    assert bool(torch.isfinite(gradient).all())


def test_smoothing_and_soft_targets_exclude_each_other() -> None:
    with pytest.raises(UserError, match="either smoothing or soft targets"):
        ObjectiveOptions(smoothing=SmoothingOptions(alpha=0.1), soft_targets=SoftTargetOptions(weight=0.1))


def test_direction_state_is_part_of_the_objectives_state() -> None:
    objective = Objective(ObjectiveOptions(direction=DirectionOptions(schedule="variance"))).double()
    objective(Unit(1), Unit(2), batch(), moment())
    assert "directions.average" in objective.state_dict()
    assert not objective.state_dict()["directions.average"].isnan().any()


def info_nce(image: Tensor, text: Tensor, allowed: Tensor | None = None, targets: Tensor | None = None) -> float:
    """Return symmetric InfoNCE of embeddings from its formula: −Σ_j T_ij·log softmax_j over the allowed pairs."""
    logits = image @ text.T / TAU
    kept = logits if allowed is None else logits.masked_fill(~allowed, -torch.inf)
    rows = torch.eye(len(logits), dtype=logits.dtype) if targets is None else targets
    total = 0.0
    for log_p in (torch.log_softmax(kept, dim=1), torch.log_softmax(kept.T, dim=1)):
        total -= float((rows * torch.where(rows > 0, log_p, 0.0)).sum(dim=1).mean())
    return total / 2


def test_terms_are_named_and_are_the_parts_of_the_loss() -> None:
    options = ObjectiveOptions(
        temperature=FIXED,
        direction=DirectionOptions(schedule="variance", beta=0.0),
        structure=StructureOptions(weight=2.0, warm_up=0.0),
    )
    loss, terms = objective_of(options)(Unit(1), Unit(2), batch(), moment())
    one_way = {"loss_i2t", "loss_t2i", "lambda_i2t", "lambda_t2i", "temperature", "loss"}
    assert set(terms) == one_way | {"structure", "structure_weight", "diagonal_features", "diagonal_embeddings"}
    assert set(objective_of(ObjectiveOptions())(Unit(1), Unit(2), batch(), moment())[1]) == one_way
    found = {name: float(value) for name, value in terms.items()}
    parts = found["lambda_i2t"] * found["loss_i2t"] + found["lambda_t2i"] * found["loss_t2i"]
    assert found["loss"] == loss.item() == pytest.approx(parts + 2.0 * found["structure"], rel=1e-12)
    assert found["loss_i2t"] != pytest.approx(found["loss_t2i"])
    assert found["lambda_i2t"] != pytest.approx(found["lambda_t2i"])
    assert found["temperature"] == pytest.approx(TAU)


def objective_of(options: ObjectiveOptions) -> Objective:
    objective = Objective(options).double()
    with torch.no_grad():
        objective.loss.temperature.parameter.fill_(TAU)
    return objective


TWINS = [0, 0, 1, 2, 3, 4, 5, 5]


@pytest.mark.parametrize("training", [True, False])
def test_images_that_come_twice_are_masked_in_training_and_evaluation(training: bool) -> None:
    data = batch(8, TWINS)
    ids = torch.tensor(TWINS)
    allowed = (ids[:, None] != ids[None, :]) | torch.eye(8, dtype=torch.bool)
    found, _ = objective_of(ObjectiveOptions(temperature=FIXED)).train(training)(Unit(1), Unit(2), data, moment())
    embedded = Unit(1)(data.image).detach(), Unit(2)(data.text).detach()
    assert found.item() == pytest.approx(info_nce(*embedded, allowed), abs=1e-12)
    assert found.item() != pytest.approx(info_nce(*embedded), abs=1e-6)


def test_the_mask_reaches_the_direction_weights() -> None:
    data, ids = batch(8, TWINS), torch.tensor(TWINS)
    text = data.text.clone()
    for place, twin in ((a, b) for b in range(8) for a in range(b) if TWINS[a] == TWINS[b]):
        text[twin] = text[place]  # the nearest stranger, were it one
    data = Batch(data.image, text, data.image_ids)
    options = DirectionOptions(schedule="cosine_spread", beta=0.0, minimum=0.0)
    objective = objective_of(ObjectiveOptions(temperature=FIXED, direction=options))
    objective(Unit(1), Unit(2), data, moment())
    s = (Unit(1)(data.image) @ Unit(2)(data.text).T).detach()
    same = (ids[:, None] == ids[None, :]) & ~torch.eye(8, dtype=torch.bool)
    for place, matrix in enumerate((s, s.T)):
        spread = 0.0
        for i in range(8):
            others = [matrix[i, j].item() for j in range(8) if j != i and not same[i, j]]
            spread += (matrix[i, i].item() - max(others)) / 8
        assert objective.directions.average[place].item() == pytest.approx(spread, abs=1e-12)


def test_mixing_draws_from_the_cpu_generator_and_mixes_the_mask() -> None:
    """Mixed pair i is λ·i + (1−λ)·(i + N/2): it shares an image with j where either half does."""
    data, ids = batch(8, [0, 0, 1, 2, 3, 4, 5, 4]), [0, 0, 1, 2, 3, 4, 5, 4]
    at = StepContext(50, 100, torch.Generator().manual_seed(3), torch.Generator().manual_seed(7))
    options = ObjectiveOptions(temperature=FIXED, mix=MixOptions(enabled=True))
    found, _ = objective_of(options)(Unit(1), Unit(2), data, at)
    share = draw_coefficient(MixOptions(enabled=True), torch.Generator().manual_seed(7))
    image, text = (share * side[:4] + (1 - share) * side[4:] for side in data[:2])
    allowed = torch.tensor(
        [[i == j or (ids[i] != ids[j] and ids[i + 4] != ids[j + 4]) for j in range(4)] for i in range(4)]
    )
    assert not bool(allowed.all())
    expected = info_nce(Unit(1)(image).detach(), Unit(2)(text).detach(), allowed)
    assert found.item() == pytest.approx(expected, abs=1e-12)


def test_noise_is_drawn_from_the_generator_images_first() -> None:
    """v̂ = v + σ·ε in the features' own number format, images before texts: the same seed, the same training."""
    data, noise = batch(), PerturbationOptions(sigma=0.5, mode="absolute")
    at = StepContext(50, 100, torch.Generator().manual_seed(3), torch.Generator().manual_seed(7))
    found, _ = objective_of(ObjectiveOptions(temperature=FIXED, perturbation=noise))(Unit(1), Unit(2), data, at)
    own = torch.Generator().manual_seed(3)
    image, text = (side + 0.5 * torch.randn(8, 6, generator=own, dtype=torch.float64) for side in data[:2])
    expected = info_nce(Unit(1)(image).detach(), Unit(2)(text).detach())
    assert found.item() == pytest.approx(expected, abs=1e-12)


class Counting(Unit):
    """Counts how often it projects."""

    calls = 0

    def forward(self, features: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(features)


@pytest.mark.parametrize(
    ("slots", "training", "calls"),
    [
        ({}, True, 1),
        ({"perturbation": PerturbationOptions(sigma=1.0)}, True, 2),
        ({"perturbation": PerturbationOptions(sigma=0.5)}, True, 2),
        ({"mix": MixOptions(enabled=True)}, True, 2),
        ({"mix": MixOptions(enabled=True), "perturbation": PerturbationOptions(sigma=0.5)}, True, 2),
        ({"mix": MixOptions(enabled=True), "perturbation": PerturbationOptions(sigma=0.5)}, False, 1),
    ],
)
def test_the_clean_batch_is_projected_again_only_where_it_has_to(
    slots: dict[str, Any], training: bool, calls: int
) -> None:
    objective = objective_of(ObjectiveOptions(structure=StructureOptions(weight=1.0), **slots)).train(training)
    image, text = Counting(1), Counting(2)
    objective(image, text, batch(), moment())
    assert (image.calls, text.calls) == (calls, calls)


@pytest.mark.parametrize(("step", "total", "share"), [(0, 101, 1.0), (50, 101, 0.5), (100, 101, 0.0), (0, 1, 1.0)])
def test_smoothing_follows_the_step(step: int, total: int, share: float) -> None:
    """`cosine`: α·½(1 + cos(π·t/(T−1))), so that the last step has none left."""
    options = ObjectiveOptions(temperature=FIXED, smoothing=SmoothingOptions(alpha=0.4, schedule="cosine"))
    at = StepContext(step, total, torch.Generator(), torch.Generator())
    found, _ = objective_of(options)(Unit(1), Unit(2), batch(), at)
    embedded = Unit(1)(batch().image).detach(), Unit(2)(batch().text).detach()
    alpha = 0.4 * share
    targets = (1 - alpha) * torch.eye(8, dtype=torch.float64) + alpha / 8
    assert found.item() == pytest.approx(info_nce(*embedded, targets=targets), abs=1e-12)


def test_per_sample_smoothing_reads_the_similarities() -> None:
    options = ObjectiveOptions(temperature=FIXED, smoothing=SmoothingOptions(alpha=0.4, schedule="per_sample"))
    found, _ = objective_of(options)(Unit(1), Unit(2), batch(), moment())
    embedded = Unit(1)(batch().image).detach(), Unit(2)(batch().text).detach()
    alpha = 0.4 * (1 - (embedded[0] * embedded[1]).sum(dim=1).clamp(0, 1))
    targets = torch.diag(1 - alpha) + (alpha / 8)[:, None]
    assert found.item() == pytest.approx(info_nce(*embedded, targets=targets), abs=1e-12)


def test_soft_targets_of_the_features_are_what_the_loss_asks_for() -> None:
    soft = SoftTargetOptions(weight=0.3, temperature=0.2)
    found, _ = objective_of(ObjectiveOptions(temperature=FIXED, soft_targets=soft))(Unit(1), Unit(2), batch(), moment())
    data = batch()
    centred = [F.normalize(side - side.mean(dim=0), dim=1) for side in data[:2]]
    alike = sum(side @ side.T for side in centred) / 2 / 0.2
    targets = 0.7 * torch.eye(8, dtype=torch.float64) + 0.3 * torch.softmax(torch.as_tensor(alike), dim=1)
    embedded = Unit(1)(data.image).detach(), Unit(2)(data.text).detach()
    assert found.item() == pytest.approx(info_nce(*embedded, targets=targets), abs=1e-12)
