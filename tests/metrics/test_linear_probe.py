"""The linear probe against scikit-learn used directly, and its choices on training rows alone."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics.linear_probe import linear_probe, stratified_split


def classes_of(rows: int, seed: int, classes: int = 4, d: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(classes, d, generator=torch.Generator().manual_seed(7))
    labels = torch.randint(classes, (rows,), generator=generator)
    return centres[labels] * 3 + torch.randn(rows, d, generator=generator) * 2 + 50, labels


def test_predictions_are_scikit_learn_s() -> None:
    train, labels = classes_of(300, 0)
    test, truth = classes_of(200, 1)
    ours = linear_probe(train, labels, test, strengths=[0.1])
    scaler = StandardScaler().fit(train.numpy())
    theirs = LogisticRegression(C=0.1, tol=1e-8, max_iter=5000).fit(scaler.transform(train.numpy()), labels.numpy())
    expected = theirs.predict(scaler.transform(test.numpy()))
    assert (ours.predictions == expected).mean() > 0.99
    assert ours.strength == 0.1
    assert (ours.predictions == truth.numpy()).mean() > 0.6


def test_c_is_the_best_on_the_held_out_training_rows() -> None:
    train, labels = classes_of(120, 0)
    noisy = torch.cat([train, torch.randn(120, 200, generator=torch.Generator().manual_seed(3)) * 30], dim=1)
    ours = linear_probe(noisy, labels, noisy[:5])
    kept, held = stratified_split(labels.numpy(), 0.2, 0)
    x = StandardScaler().fit(noisy.numpy()).transform(noisy.numpy())
    for strength, score in ours.scores.items():
        model = LogisticRegression(C=strength, tol=1e-6, max_iter=5000).fit(x[kept], labels.numpy()[kept])
        assert score == pytest.approx(model.score(x[held], labels.numpy()[held]), abs=1.5 / len(held))
    assert ours.scores[ours.strength] == max(ours.scores.values())
    assert len(ours.scores) == 4


def test_same_rows_same_answer_whatever_the_test_rows_are() -> None:
    train, labels = classes_of(100, 0)
    test = classes_of(60, 1)[0]
    whole = linear_probe(train, labels, test)
    assert linear_probe(train, labels, test[:7]).predictions.tolist() == whole.predictions[:7].tolist()
    assert linear_probe(train, labels, -test).strength == whole.strength


@settings(max_examples=60, deadline=None)
@given(labels=st.lists(st.integers(0, 4), min_size=1, max_size=40), share=st.floats(0.01, 0.99), seed=st.integers(0, 9))
def test_a_stratified_split_parts_every_class(labels: list[int], share: float, seed: int) -> None:
    held_classes = np.array(labels)
    kept, held = stratified_split(held_classes, share, seed)
    assert sorted([*kept, *held]) == list(range(len(labels)))
    for label in set(labels):
        size, out = labels.count(label), int((held_classes[held] == label).sum())
        assert out == (0 if size < 2 else min(max(round(share * size), 1), size - 1))


@pytest.mark.parametrize("labels", [[0, 0, 0, 0], [0, 1, 2, 3], [0, 0, 0, 1]])
def test_few_rows_and_constant_columns_do_no_harm(labels: list[int]) -> None:
    train = torch.tensor([[0.0, 1.0], [0.1, 1.0], [5.0, 1.0], [9.0, 1.0]])
    found = linear_probe(train, torch.tensor(labels), train)
    assert found.predictions.shape == (4,)
    assert set(found.predictions) <= set(labels)


def test_hostile_input_is_told() -> None:
    train, labels = classes_of(20, 0)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: linear_probe(train, labels[:4], train), "20 labels"),
        (lambda: linear_probe(train, labels, train[:, :2]), "width 6"),
        (lambda: linear_probe(train * torch.nan, labels, train), "NaN"),
        (lambda: linear_probe(train, labels, train, strengths=[]), "positive values of C"),
        (lambda: linear_probe(train, labels, train, strengths=[0.0, 1.0]), "positive values of C"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
