"""The closed forms against scikit-learn, scipy and arithmetic on repeated rows."""

import numpy as np
import pytest
import torch
from scipy.linalg import orthogonal_procrustes
from sklearn.cross_decomposition import CCA, PLSSVD
from sklearn.linear_model import Ridge
from torch import Tensor

from pipeline.errors import UnknownNameError, UserError
from pipeline.projectors.asif import AsifProjector
from pipeline.projectors.base import Inputs, Projector, unit_rows
from pipeline.projectors.closed_form import (
    CLOSED_FORMS,
    NAMES,
    cca,
    fit_closed_form,
    partial_least_squares,
    procrustes,
    ridge_regression,
)
from pipeline.projectors.moments import PairStatistics


def make_pairs(images: int = 120, captions: int = 3, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return image [N, 10], text [N·captions, 7] and owners: four shared directions and noise."""
    generator = torch.Generator().manual_seed(seed)
    shared = torch.randn(images, 4, generator=generator, dtype=torch.float64)
    image = shared @ torch.randn(4, 10, generator=generator, dtype=torch.float64)
    image = image + 0.5 * torch.randn(images, 10, generator=generator, dtype=torch.float64) + 3.0
    owner = torch.arange(images).repeat_interleave(captions)
    owner = owner[torch.randperm(len(owner), generator=generator)]
    text = shared[owner] @ torch.randn(4, 7, generator=generator, dtype=torch.float64)
    text = text + 0.7 * torch.randn(len(owner), 7, generator=generator, dtype=torch.float64) - 1.0
    return image, text, owner


def centred(features: Tensor) -> Tensor:
    return features - features.mean(dim=0)


def test_statistics_equal_those_of_repeated_rows() -> None:
    image, text, owner = make_pairs()
    ours = PairStatistics.of(image, text, owner)
    x, y = centred(image[owner]), centred(text)
    axes = ours.image.vectors
    torch.testing.assert_close(axes @ torch.diag(ours.image.values) @ axes.T, x.T @ x / len(x))
    torch.testing.assert_close(axes @ ours.cross @ ours.text.vectors.T, x.T @ y / len(x))
    torch.testing.assert_close(ours.image.mean, image[owner].mean(dim=0))
    assert ours.image.mean_variance == pytest.approx(float((x**2).mean()))
    assert ours.pairs == len(text)


def test_images_without_captions_weigh_nothing() -> None:
    image, text, owner = make_pairs()
    more = torch.cat([image, 100 * torch.ones(5, 10, dtype=torch.float64)])
    torch.testing.assert_close(PairStatistics.of(more, text, owner).image.mean, image[owner].mean(dim=0))


def test_fewer_rows_than_columns_gives_the_same_maps() -> None:
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(20, 50, generator=generator, dtype=torch.float64)
    text = torch.randn(20, 6, generator=generator, dtype=torch.float64) + image[:, :6]
    ours = cca(PairStatistics.of(image, text), ridge=0.7)
    x, y = centred(image), centred(text)
    cxx, cyy = x.T @ x / 20, y.T @ y / 20
    cxx = cxx + 0.7 * cxx.diagonal().mean() * torch.eye(50, dtype=torch.float64)
    cyy = cyy + 0.7 * cyy.diagonal().mean() * torch.eye(6, dtype=torch.float64)
    similarity = (x @ ours.image_matrix * ours.weights) @ (y @ ours.text_matrix * ours.weights).T
    expected = x @ torch.linalg.inv(cxx) @ (x.T @ y / 20) @ torch.linalg.inv(cyy) @ y.T  # Σ ρ a b is this bilinear form
    torch.testing.assert_close(similarity, expected)


def test_cca_without_ridge_agrees_with_scikit_learn() -> None:
    image, text, owner = make_pairs(images=400)
    x, y = image[owner].numpy(), text.numpy()
    theirs = CCA(n_components=4, scale=False, max_iter=5000, tol=1e-12).fit(x, y)
    a, b = theirs.transform(x, y)
    correlations = [np.corrcoef(a[:, i], b[:, i])[0, 1] for i in range(4)]
    ours = cca(PairStatistics.of(image, text, owner), 4, ridge=0.0)
    np.testing.assert_allclose(ours.strengths.numpy(), correlations, atol=1e-6)
    mine = (centred(image[owner]) @ ours.image_matrix).numpy()
    for i in range(3):
        assert abs(np.corrcoef(mine[:, i], a[:, i])[0, 1]) == pytest.approx(1.0, abs=1e-4)


def test_cca_directions_are_white_under_the_ridged_covariance() -> None:
    image, text, owner = make_pairs()
    ours = cca(PairStatistics.of(image, text, owner), ridge=0.5)
    x = centred(image[owner])
    covariance = x.T @ x / len(x)
    covariance = covariance + 0.5 * covariance.diagonal().mean() * torch.eye(10, dtype=torch.float64)
    white = ours.image_matrix.T @ covariance @ ours.image_matrix
    torch.testing.assert_close(white, torch.eye(7, dtype=torch.float64))
    torch.testing.assert_close(ours.weights, ours.strengths.sqrt())
    assert bool((ours.strengths.diff() <= 1e-12).all())


def test_few_directions_of_many_are_the_first_of_all() -> None:
    generator = torch.Generator().manual_seed(1)
    for widths in ((30, 12), (12, 30)):
        image = torch.randn(200, widths[0], generator=generator, dtype=torch.float64)
        text = torch.randn(200, widths[1], generator=generator, dtype=torch.float64)
        statistics = PairStatistics.of(image, text + 3 * image[:, :1] - image[:, 1:2])
        everything, some = cca(statistics, ridge=0.1), cca(statistics, 4, ridge=0.1)
        torch.testing.assert_close(some.strengths, everything.strengths[:4])
        for found, whole in zip(
            (some.image_matrix, some.text_matrix), (everything.image_matrix, everything.text_matrix), strict=True
        ):
            torch.testing.assert_close(found @ found.T, whole[:, :4] @ whole[:, :4].T)


def test_directions_without_correlation_are_asked_for_by_too_few_pairs() -> None:
    image, text, owner = make_pairs()
    shared = torch.cat([image[owner], image[owner] @ torch.ones(10, 10, dtype=torch.float64)], dim=1)
    found = cca(PairStatistics.of(shared, shared[:, :1].repeat(1, 8) + 0 * text[:, :1]), 4, ridge=1e-3)
    assert bool(torch.isfinite(found.image_matrix).all())
    assert float(found.strengths[0]) > 0.9


def test_cca_with_another_ridge_for_texts() -> None:
    image, text, owner = make_pairs()
    ours = cca(PairStatistics.of(image, text, owner), ridge=0.8, text_ratio=0.25)
    x, y = centred(image[owner]), centred(text)
    cxx, cyy = x.T @ x / len(x), y.T @ y / len(y)
    cxx = cxx + 0.8 * cxx.diagonal().mean() * torch.eye(10, dtype=torch.float64)
    cyy = cyy + 0.2 * cyy.diagonal().mean() * torch.eye(7, dtype=torch.float64)
    torch.testing.assert_close(ours.image_matrix.T @ cxx @ ours.image_matrix, torch.eye(7, dtype=torch.float64))
    torch.testing.assert_close(ours.text_matrix.T @ cyy @ ours.text_matrix, torch.eye(7, dtype=torch.float64))


def test_ridge_of_texts_by_the_number_of_captions() -> None:
    image, text, owner = make_pairs(captions=4)
    statistics = PairStatistics.of(torch.cat([image, image[:7]]), text, owner)  # seven images without a caption
    assert (statistics.images, statistics.pairs) == (120, 480)
    found, expected = (cca(statistics, ridge=2.0, text_ratio=ratio) for ratio in (None, 0.5))
    assert torch.equal(found.text_matrix, expected.text_matrix)


def test_procrustes_agrees_with_scipy() -> None:
    image, text, owner = make_pairs()
    statistics = PairStatistics.of(image, text, owner)
    ours = procrustes(statistics, 5)
    x = centred(image[owner]) @ statistics.image.vectors[:, :5]
    y = centred(text) @ statistics.text.vectors[:, :5]
    rotation, _ = orthogonal_procrustes(x.numpy(), y.numpy())
    np.testing.assert_allclose(ours.image_matrix, statistics.image.vectors[:, :5].numpy() @ rotation, atol=1e-10)
    torch.testing.assert_close(ours.image_matrix.T @ ours.image_matrix, torch.eye(5, dtype=torch.float64))


def test_whitened_procrustes_has_unit_variance() -> None:
    image, text, owner = make_pairs()
    ours = procrustes(PairStatistics.of(image, text, owner), 4, whiten=True)
    variance = (centred(text) @ ours.text_matrix).var(dim=0, correction=0)
    torch.testing.assert_close(variance, torch.ones(4, dtype=torch.float64))


def test_ridge_regression_agrees_with_scikit_learn() -> None:
    image, text, owner = make_pairs()
    statistics = PairStatistics.of(image, text, owner)
    ours = ridge_regression(statistics, ridge=0.3)
    strength = 0.3 * statistics.text.mean_variance * len(text)
    theirs = Ridge(alpha=strength).fit(text.numpy(), image[owner].numpy())
    predicted = centred(text) @ ours.text_matrix @ ours.image_matrix.T  # back from the image's axes
    np.testing.assert_allclose(predicted, theirs.predict(text.numpy()) - image[owner].mean(dim=0).numpy(), atol=1e-9)


def test_ridge_regression_the_other_way() -> None:
    image, text, owner = make_pairs()
    statistics = PairStatistics.of(image, text, owner)
    ours = ridge_regression(statistics, ridge=0.3, direction="image_to_text")
    strength = 0.3 * statistics.image.mean_variance * len(text)
    theirs = Ridge(alpha=strength).fit(image[owner].numpy(), text.numpy())
    predicted = (image - image[owner].mean(dim=0)) @ ours.image_matrix @ ours.text_matrix.T
    np.testing.assert_allclose(predicted, theirs.predict(image.numpy()) - text.mean(dim=0).numpy(), atol=1e-9)
    with pytest.raises(UnknownNameError, match="text_to_image"):
        ridge_regression(statistics, direction="both")  # type: ignore[arg-type]


def test_partial_least_squares_agrees_with_scikit_learn() -> None:
    image, text, owner = make_pairs()
    x, y = image[owner].numpy(), text.numpy()
    theirs = PLSSVD(n_components=4, scale=False).fit(x, y)
    ours = partial_least_squares(PairStatistics.of(image, text, owner), 4)
    np.testing.assert_allclose(np.abs(ours.image_matrix.numpy()), np.abs(theirs.x_weights_), atol=1e-8)
    np.testing.assert_allclose(np.abs(ours.text_matrix.numpy()), np.abs(theirs.y_weights_), atol=1e-8)
    assert bool((ours.weights == 1).all())


def matches(image: Projector, text: Projector, pairs: tuple[Tensor, Tensor, Tensor]) -> float:
    """Return the share of captions whose own image is the most similar one."""
    x, y, owner = pairs
    return float(((text(y) @ image(x).T).argmax(dim=1) == owner).double().mean())


@pytest.mark.parametrize("mode", ["none", "unit", "standardise"])
@pytest.mark.parametrize("name", NAMES)
def test_every_closed_form_finds_the_pairs(name: str, mode: str) -> None:
    image, text, owner = (t.float() if t.is_floating_point() else t for t in make_pairs())
    inputs = Inputs(normalise_input=mode, blocks=(4, 6)), Inputs(normalise_input=mode)
    fit = fit_closed_form(name, image, text, owner, inputs=inputs)
    chance = 1 / len(image)
    assert matches(fit.image, fit.text, (image, text, owner)) > 5 * chance
    assert fit.image.d == fit.text.d
    assert fit.image.settings()["normalise_input"] == mode
    assert fit.image.settings()["blocks"] == [4, 6]


def test_projector_of_cca_equals_the_arithmetic() -> None:
    image, text, owner = (t.float() if t.is_floating_point() else t for t in make_pairs())
    fit = fit_closed_form("cca", image, text, owner, d=3, ridges=(2.0,))
    pair = cca(PairStatistics.of(image, text, owner), 3, ridge=2.0)
    expected = unit_rows((image.double() - image[owner].double().mean(dim=0)) @ pair.image_matrix * pair.weights)
    torch.testing.assert_close(fit.image(image).double(), expected, atol=1e-5, rtol=1e-4)


def test_ridge_is_chosen_by_the_score_and_all_scores_are_kept() -> None:
    image, text, owner = (t.float() if t.is_floating_point() else t for t in make_pairs())
    held_out = tuple(t.float() if t.is_floating_point() else t for t in make_pairs(seed=0))
    grid = (0.01, 1.0, 100.0)
    fit = fit_closed_form(
        "cca",
        image,
        text,
        owner,
        ridges=grid,
        score=lambda a, b: matches(a, b, (held_out[0], held_out[1], held_out[2])),
    )
    assert set(fit.scores) == set(grid)
    assert fit.ridge is not None
    assert fit.scores[fit.ridge] == max(fit.scores.values())
    alone = fit_closed_form("cca", image, text, owner, ridges=(fit.ridge,))
    torch.testing.assert_close(alone.image(image), fit.image(image))


@pytest.mark.parametrize(
    ("top", "expected", "tried"),
    [(3.0, 3.0, {3, 10, 1}), (30.0, 30.0, {3, 10, 30}), (0.1, 0.1, {3, 10, 1, 0.3, 0.1}), (1.0, 1.0, {3, 10, 1, 0.3})],
)
def test_climbing_finds_the_top_of_a_hill_and_tries_no_more(top: float, expected: float, tried: set[float]) -> None:
    image, text, owner = make_pairs()
    ridges = (10.0, 0.1, 0.3, 1.0, 3.0, 30.0)
    values = {ridge: -abs(np.log(ridge / top)) for ridge in ridges}
    fits = {ridge: fit_closed_form("cca", image, text, owner, ridges=(ridge,)) for ridge in ridges}
    probe = torch.ones(1, 10)
    answers = {ridge: fit.image(probe) for ridge, fit in fits.items()}

    def score(image_projector: Projector, _: Projector) -> float:
        found = image_projector(probe)
        return float(values[min(ridges, key=lambda ridge: float((answers[ridge] - found).abs().sum().detach()))])

    chosen = fit_closed_form("cca", image, text, owner, ridges=ridges, score=score, climb=True)
    assert chosen.ridge == expected
    assert set(chosen.scores) == tried
    assert torch.equal(chosen.image(probe), answers[expected])


def test_asif_describes_each_image_once_by_the_mean_of_its_captions() -> None:
    image, text, owner = (t.float() if t.is_floating_point() else t for t in make_pairs(images=30))
    fit = fit_closed_form("asif", image, text, owner, options={"top_k": 10, "exponent": 4.0})
    assert isinstance(fit.text, AsifProjector)
    assert fit.image.d == fit.text.d == 30
    expected = unit_rows(torch.stack([unit_rows(text)[owner == i].mean(dim=0) for i in range(30)]))
    torch.testing.assert_close(fit.text.anchors, expected)


def test_asif_of_one_caption_an_image_is_in_the_images_order() -> None:
    image, text, owner = (t.float() if t.is_floating_point() else t for t in make_pairs(images=30, captions=1))
    fit = fit_closed_form("asif", image, text, owner)
    assert isinstance(fit.text, AsifProjector)
    torch.testing.assert_close(fit.text.anchors[owner], unit_rows(text))


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y, o: (x[:1], y[:1], o[:1] * 0), "two rows at least"),
        (lambda x, y, o: (x * torch.nan, y, o), "finite"),
        (lambda x, y, o: (x, y * 0 + 3, o), "text features that vary"),
        (lambda x, y, o: (x, y, o + 1000), "the row of its image"),
        (lambda x, y, o: (x, y[:5], o), "the row of its image"),
        (lambda x, y, o: (x[0], y, o), "finite features"),
    ],
)
def test_features_that_cannot_be_fitted_are_refused(spoil, message: str) -> None:  # type: ignore[no-untyped-def]  # noqa: ANN001
    with pytest.raises(UserError, match=message):
        fit_closed_form("cca", *spoil(*make_pairs()))


def test_asif_refuses_what_the_others_refuse() -> None:
    image, text, owner = make_pairs()
    with pytest.raises(UserError, match="finite"):
        fit_closed_form("asif", image * torch.nan, text, owner)
    with pytest.raises(UserError, match="options of the closed form asif"):
        fit_closed_form("asif", image, text, owner, options={"k": 3})


def test_wrong_names_and_options_are_told() -> None:
    image, text, owner = make_pairs()
    with pytest.raises(UnknownNameError, match="cca"):
        fit_closed_form("kcca", image, text, owner)
    with pytest.raises(UserError, match="options of the closed form pls"):
        fit_closed_form("pls", image, text, owner, options={"colour": 1})
    with pytest.raises(UserError, match="several and a score"):
        fit_closed_form("cca", image, text, owner, ridges=(1.0, 2.0))
    with pytest.raises(UserError, match="ridge of 0 or more"):
        fit_closed_form("cca", image, text, owner, ridges=(-1.0,))
    with pytest.raises(UserError, match="d of 1 or more"):
        fit_closed_form("cca", image, text, owner, d=0)


def test_duplicate_rows_without_ridge_stay_finite() -> None:
    image, text, _ = make_pairs(images=6, captions=1)
    fit = fit_closed_form("cca", image.repeat(3, 1), text.repeat(3, 1), ridges=(0.0,))
    assert bool(torch.isfinite(fit.image(image)).all())


def test_every_closed_form_is_in_the_list() -> None:
    assert set(NAMES) == {*CLOSED_FORMS, "asif"}
