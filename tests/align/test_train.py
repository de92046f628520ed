"""The training loop: schedule, best weights, early stopping, what it does when the loss runs away."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from pipeline.align import train as module
from pipeline.align.fit import Trained, initial_projectors, selection_score, validate
from pipeline.align.pairs import PairFeatures
from pipeline.align.recipe import Recipe, TrainingOptions, make_recipe
from pipeline.align.train import learning_rate, make_optimiser, planned_steps, train
from pipeline.errors import PipelineError

Changes = Callable[[dict[str, float]], dict[str, float]]


def pairs(images: int, seed: int, captions: int = 2) -> PairFeatures:
    mixes = torch.Generator().manual_seed(99)
    generator = torch.Generator().manual_seed(seed)
    latent = torch.randn(images, 6, generator=generator)
    image = latent @ torch.randn(6, 12, generator=mixes)
    text = latent.repeat_interleave(captions, 0) @ torch.randn(6, 10, generator=mixes)
    text += 0.3 * torch.randn(text.shape, generator=generator)
    return PairFeatures(image, text, torch.arange(images + 1) * captions)


def run(recipe: Recipe, seed: int = 1, data: PairFeatures | None = None) -> Trained:
    data = data or pairs(120, 0)
    validation = pairs(50, 1)
    projectors = initial_projectors(data, validation, recipe, seed)
    return train(data, validation, recipe, projectors, seed=seed)


def short(method: str = "info_nce", **training: Any) -> Recipe:
    options = {"max_steps": 30, "validations": 5, "learning_rate": 0.01, "batch_size": 64} | training
    return make_recipe(method, {"dim": 6, "training": options})


def test_learning_rate_rises_and_falls() -> None:
    options = TrainingOptions(learning_rate=1.0, warm_up=0.1)
    rates = [learning_rate(step, 100, options) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert rates[:11] == sorted(rates[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert 0 < rates[-1] < 0.001
    assert learning_rate(0, 1, TrainingOptions(learning_rate=1.0, warm_up=0.0)) == 1.0


@pytest.mark.parametrize(
    ("images", "changes", "steps"),
    [
        (1000, {"epochs": 10, "batch_size": 100, "min_steps": 0}, 100),
        (1001, {"epochs": 10, "batch_size": 100, "min_steps": 0}, 110),
        (50, {"epochs": 10, "batch_size": 100, "min_steps": 200}, 200),
        (50, {"epochs": 10, "batch_size": 100, "min_steps": 200, "max_steps": 7}, 7),
    ],
)
def test_planned_steps(images: int, changes: dict[str, int], steps: int) -> None:
    assert planned_steps(images, TrainingOptions(**changes)) == steps  # type: ignore[arg-type]


def test_epochs_show_every_image_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = PairFeatures.epoch

    def counted(self: PairFeatures, *arguments: Any) -> Any:
        images, captions = original(self, *arguments)
        seen.append(len(set(images.tolist())))
        return images, captions

    monkeypatch.setattr(PairFeatures, "epoch", counted)
    assert run(short(batch_size=50)).history[-1]["epoch"] == 10
    assert seen == [120] * 10


@pytest.mark.parametrize("captions", ["one", "all"])
def test_learns(captions: str) -> None:
    recipe = make_recipe(
        "info_nce", {"dim": 6, "captions": captions, "training": {"max_steps": 60, "learning_rate": 0.02}}
    )
    found = run(recipe)
    assert found.validation["image_retrieval_recall@1"] > 0.3
    assert found.temperature is not None


def test_best_weights_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores 1, 3, 2, 2, 2: the weights of the second validation come back."""
    states: list[torch.Tensor] = []
    scores = iter([0.1, 0.3, 0.2, 0.2, 0.2])

    def scripted(image: Any, text: Any, data: PairFeatures) -> dict[str, float]:
        states.append(image.map.weight.detach().clone())
        return {"x_recall@1": next(scores, 0.0)}

    monkeypatch.setattr(module, "quick_recalls", scripted)
    found = run(short(patience=0))
    assert torch.equal(found.image.state_dict()["map.weight"], states[1])
    assert not torch.equal(states[1], states[4])
    assert found.steps == 30


def test_stops_without_improvement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "quick_recalls", lambda *arguments: {"x_recall@1": 0.5})
    assert run(short(patience=2)).steps == 18


def test_loss_that_is_not_finite_is_one_sentence() -> None:
    data = pairs(120, 0)
    data.image[3, 4] = torch.nan
    with pytest.raises(PipelineError, match="step 6: expected a finite loss, found nan"):
        run(short(), data=data)


def test_same_seed_same_history_and_no_global_state() -> None:
    before = torch.random.get_rng_state()
    one, two, other = run(short("combined")), run(short("combined")), run(short("combined"), seed=2)
    assert one.history == two.history
    assert one.history != other.history
    assert torch.equal(before, torch.random.get_rng_state())


def test_temperature_stays_between_its_bounds() -> None:
    recipe = make_recipe(
        "info_nce",
        {"dim": 6, "temperature": {"minimum": 0.06, "maximum": 0.08}, "training": {"max_steps": 30}},
    )
    steep = make_recipe("info_nce", {"training": {"learning_rate": 0.5}}).training
    found = run(Recipe(**{**recipe.__dict__, "training": steep}))
    values = [row["temperature"] for row in found.history]
    assert min(values) >= 0.06 - 1e-6
    assert max(values) <= 0.08 + 1e-6
    assert min(values) < max(values)


def test_start_from_cca_begins_good_and_goes_on() -> None:
    recipe = short("cca_then_train", max_steps=4, learning_rate=1e-4)
    data, validation = pairs(120, 0), pairs(50, 1)
    projectors = initial_projectors(data, validation, recipe, seed=1)
    start = selection_score(validate(*projectors, validation))
    before = {name: value.clone() for name, value in projectors[0].state_dict().items()}
    found = train(data, validation, recipe, projectors, seed=1)
    assert start > 0.5
    assert selection_score(found.validation) > start - 0.05
    assert any(not torch.equal(before[name], value) for name, value in found.image.state_dict().items())


SHAPES = [(5, 7), (7,), (), (3, 2, 2)]


def parameters(seed: int = 0) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


def test_fused_steps_are_the_plain_ones() -> None:
    ours, theirs = parameters(), parameters()
    groups = [{"params": theirs[:1] + theirs[3:], "weight_decay": 0.1}, {"params": theirs[1:3], "weight_decay": 0.0}]
    oracle = torch.optim.AdamW(groups, betas=(0.9, 0.95), fused=False, foreach=False)
    optimiser = make_optimiser(ours, betas=(0.9, 0.95), weight_decay=0.1)
    for step in range(1, 6):
        for each in (optimiser, oracle):
            for group in each.param_groups:
                group["lr"] = 0.1 / step
        for one, other, source in zip(ours, theirs, parameters(step), strict=True):
            one.grad, other.grad = source.detach().clone(), source.detach().clone()
        optimiser.step()
        oracle.step()
        for one, other in zip(ours, theirs, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-14)


def test_matrices_decay_and_vectors_do_not() -> None:
    matrix, vector = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    idle = nn.Parameter(torch.ones(2, 2), requires_grad=False)
    optimiser = make_optimiser([matrix, vector, idle], betas=(0.9, 0.9), weight_decay=0.5)
    for parameter in (matrix, vector):
        parameter.grad = torch.zeros_like(parameter)
    for group in optimiser.param_groups:
        group["lr"] = 0.1
    optimiser.step()
    torch.testing.assert_close(matrix.detach(), torch.full((2, 2), 1 - 0.1 * 0.5))
    torch.testing.assert_close(vector.detach(), torch.ones(2))
    torch.testing.assert_close(idle, torch.ones(2, 2))


def test_no_vectors_is_no_group() -> None:
    optimiser = make_optimiser([nn.Parameter(torch.ones(2, 2))], betas=(0.9, 0.95), weight_decay=0.1)
    assert [group["weight_decay"] for group in optimiser.param_groups] == [0.1]
