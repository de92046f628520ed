"""Zero-shot, kNN and linear classification against scikit-learn and slow loops."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score, balanced_accuracy_score, top_k_accuracy_score
from sklearn.metrics import confusion_matrix as their_confusion
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from pipeline.errors import UserError
from pipeline.metrics import classification
from pipeline.metrics.classification import (
    classifier,
    confusion_matrix,
    knn_predict,
    linear_probe,
    stratified_split,
    zero_shot_metrics,
)
from tests.drawing import draws


def images_of_classes(rows: int = 300, classes: int = 8, d: int = 16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return images [N, d], class vectors [C, d] and labels [N]."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.nn.functional.normalize(torch.randn(classes, d, generator=generator), dim=1)
    labels = torch.randint(classes, (rows,), generator=generator)
    images = centres[labels] + torch.randn(rows, d, generator=generator) * 0.5
    return torch.nn.functional.normalize(images, dim=1), centres, labels


def test_metrics_equal_scikit_learn() -> None:
    images, weights, labels = images_of_classes()
    ours = zero_shot_metrics(images, weights, labels)
    scores = (images @ weights.T).numpy()
    predicted = scores.argmax(axis=1)
    assert ours.metrics["acc1"] == pytest.approx(accuracy_score(labels, predicted))
    assert ours.metrics["acc5"] == pytest.approx(top_k_accuracy_score(labels, scores, k=5))
    assert ours.metrics["mean_per_class_recall"] == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert ours.predictions.tolist() == predicted.tolist()
    np.testing.assert_array_equal(ours.confusion, their_confusion(labels, predicted))


def test_classes_without_images_are_left_out_of_the_mean() -> None:
    images, weights, labels = images_of_classes()
    kept = labels != 3
    ours = zero_shot_metrics(images[kept], weights, labels[kept])
    assert bool(np.isnan(ours.recall[3]))
    assert ours.metrics["mean_per_class_recall"] == pytest.approx(np.nanmean(ours.recall))


def test_fewer_than_five_classes_have_no_acc5() -> None:
    images, weights, labels = images_of_classes(classes=3)
    assert set(zero_shot_metrics(images, weights, labels).metrics) == {"acc1", "mean_per_class_recall"}
    with pytest.raises(UserError, match=r"k .* between 1 and 3"):
        zero_shot_metrics(images, weights, labels, ks=(5,))


def test_cut_offs_are_what_is_asked_and_else_one_and_five() -> None:
    images, weights, labels = images_of_classes(classes=6)
    assert list(zero_shot_metrics(images, weights, labels, ks=(2, 6)).metrics) == [
        "acc2",
        "acc6",
        "mean_per_class_recall",
    ]
    for classes, names in ((5, ["acc1", "acc5"]), (4, ["acc1"]), (1, ["acc1"])):
        few = images_of_classes(rows=40, classes=classes)
        assert list(zero_shot_metrics(*few).metrics) == [*names, "mean_per_class_recall"]


def test_blocks_of_images_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    images, weights, labels = images_of_classes(rows=50)
    whole, votes = zero_shot_metrics(images, weights, labels), knn_predict(images, labels, images, 5, 8)
    monkeypatch.setattr(classification, "_BLOCK", 7)
    parts = zero_shot_metrics(images, weights, labels)
    assert parts.predictions.tolist() == whole.predictions.tolist()
    assert parts.predictions.tolist() == (images @ weights.T).argmax(dim=1).tolist()
    assert knn_predict(images, labels, images, 5, 8).tolist() == votes.tolist()


@settings(max_examples=draws(50))
@given(rows=st.integers(1, 12), classes=st.integers(1, 6), data=st.data())
def test_ties_count_against_the_right_class(rows: int, classes: int, data: st.DataObject) -> None:
    cells = st.lists(st.integers(-1, 1), min_size=2, max_size=2)
    images = torch.tensor(data.draw(st.lists(cells, min_size=rows, max_size=rows))).float()
    weights = torch.tensor(data.draw(st.lists(cells, min_size=classes, max_size=classes))).float()
    labels = torch.tensor(data.draw(st.lists(st.integers(0, classes - 1), min_size=rows, max_size=rows)))
    ours = zero_shot_metrics(images, weights, labels)
    right = 0
    for image, label in zip(images, labels.tolist(), strict=True):
        scores = (weights @ image).tolist()
        right += all(scores[label] > score for c, score in enumerate(scores) if c != label)
    assert ours.metrics["acc1"] == pytest.approx(right / rows)
    assert int(np.trace(ours.confusion)) == right
    assert int(ours.confusion.sum()) == rows


def test_one_constant_space_is_never_right() -> None:
    ours = zero_shot_metrics(torch.ones(40, 6), torch.ones(5, 6), torch.arange(40) % 5)
    assert ours.metrics["acc1"] == 0.0
    assert ours.metrics["mean_per_class_recall"] == 0.0


def test_classifier_is_the_slow_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    prompts, owner = torch.randn(12, 5, generator=generator), torch.tensor([0, 1, 2] * 3 + [0, 0, 1])
    rows = []
    for c in range(3):
        mean = torch.stack([p / p.norm() for p, o in zip(prompts, owner, strict=True) if o == c]).mean(dim=0)
        rows.append(mean / mean.norm())
    torch.testing.assert_close(classifier(prompts, owner, 3), torch.stack(rows))
    torch.testing.assert_close(classifier(prompts * torch.rand(12, 1).add(0.1), owner, 3), torch.stack(rows))


@pytest.mark.parametrize("k", [1, 5, 20])
def test_neighbours_vote_like_scikit_learn(k: int) -> None:
    train, _, labels = images_of_classes(seed=1)
    test = images_of_classes(seed=2)[0]
    votes = {"metric": "cosine", "weights": lambda distance: np.exp((1 - distance) / 0.07)}
    theirs = KNeighborsClassifier(n_neighbors=k, **votes).fit(train.numpy(), labels.numpy())
    assert knn_predict(train, labels, test, k, 8).tolist() == theirs.predict(test.numpy()).tolist()


def test_votes_by_similarity() -> None:
    train, _, labels = images_of_classes(seed=1)
    test = images_of_classes(seed=2)[0][:20]
    expected = []
    for row in test:
        similarity = (train @ row).tolist()
        near = sorted(range(300), key=lambda i: -similarity[i])[:9]
        votes = [sum(np.exp(similarity[i] / 0.07) for i in near if labels[i] == c) for c in range(8)]
        expected.append(int(np.argmax(votes)))
    assert knn_predict(train, labels, test, 9, 8).tolist() == expected


def test_equal_votes_go_to_the_class_with_the_smaller_number() -> None:
    train = torch.eye(4)
    test = torch.tensor([[1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 0.0]])
    assert knn_predict(train, torch.tensor([3, 1, 2, 0]), test, 4, 5).tolist() == [0, 0, 1]


def test_votes_weigh_by_the_temperature() -> None:
    """One near neighbour against three a little farther off: cold votes follow the first, warm ones the many."""
    train = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.5], [1.0, 0.51], [1.0, 0.52]]), dim=1)
    labels, test = torch.tensor([0, 1, 1, 1]), torch.tensor([[5.0, 0.0]])
    cosines = (train @ torch.tensor([1.0, 0.0])).double()
    for temperature in (0.01, 0.07, 0.14, 1.0):
        votes = torch.exp(cosines / temperature)
        expected = int(votes[1:].sum() > votes[0])
        assert knn_predict(train, labels, test, 4, 2, temperature=temperature).tolist() == [expected]
    assert knn_predict(3 * train, labels, test, 4, 2).tolist() == [
        int(torch.exp(cosines / 0.07)[1:].sum() > np.exp(1 / 0.07))
    ]


def test_confusion() -> None:
    assert confusion_matrix(torch.tensor([0, 1, 1]), torch.tensor([1, 1, 0]), 2).tolist() == [[0, 1], [1, 1]]
    assert confusion_matrix(torch.tensor([0]), torch.tensor([2]), 4).tolist() == [[0, 0, 1, 0], *[[0] * 4] * 3]
    with pytest.raises(UserError, match="expected labels between 0 and 1, found 0 to 2"):
        confusion_matrix(torch.tensor([0, 2]), torch.tensor([1, 1]), 2)
    with pytest.raises(UserError, match="expected predictions between 0 and 1, found 1 to 2"):
        confusion_matrix(torch.tensor([0, 1]), torch.tensor([1, 2]), 2)
    with pytest.raises(UserError, match="expected 2 predictions, found 1"):
        confusion_matrix(torch.tensor([0, 1]), torch.tensor([1]), 2)


def test_hostile_input_is_told() -> None:
    images, weights, labels = images_of_classes()
    cases: list[tuple[Callable[[], object], str]] = [
        (
            lambda: zero_shot_metrics(images, weights[:, :3], labels),
            "expected class vectors of width 16, found width 3",
        ),
        (lambda: zero_shot_metrics(images, weights, labels + 1), "expected labels between 0 and 7, found 1 to 8"),
        (lambda: zero_shot_metrics(images * torch.nan, weights, labels), "expected finite image embeddings, found NaN"),
        (lambda: zero_shot_metrics(images, weights * torch.nan, labels), "expected finite class vectors, found NaN"),
        (lambda: zero_shot_metrics(images, weights, labels[:5]), "expected 300 labels, found 5"),
        (
            lambda: zero_shot_metrics(images, weights, labels, ks=(0,)),
            r"expected k \(.*limit\) between 1 and 8, found 0",
        ),
        (
            lambda: zero_shot_metrics(images, weights, labels, ks=(9,)),
            r"expected k \(.*limit\) between 1 and 8, found 9",
        ),
        (lambda: classifier(weights, torch.arange(8), 9), r"none for the classes \[8\]"),
        (lambda: classifier(weights[:1], torch.tensor([0]), 14), r"for the classes \[1, 2, 3, 4, 5, 6, 7, 8, 9, 10\]"),
        (lambda: classifier(weights, torch.arange(8), 0), "expected classes between 1 and 2147483648, found 0"),
        (lambda: classifier(weights * torch.nan, torch.arange(8), 8), "expected finite prompt embeddings, found NaN"),
        (lambda: classifier(weights, torch.arange(7), 8), "expected 8 prompt classes, found 7"),
        (lambda: classifier(weights, torch.arange(8), 7), "expected prompt classes between 0 and 6, found 0 to 7"),
        (lambda: knn_predict(images, labels, images, 301, 8), "expected k between 1 and 300, found 301"),
        (lambda: knn_predict(images, labels, images, 0, 8), "expected k between 1 and 300, found 0"),
        (lambda: knn_predict(images, labels, images[:, :3], 3, 8), "expected test features of width 16, found width 3"),
        (lambda: knn_predict(images, labels, images * torch.nan, 3, 8), "expected finite test features, found NaN"),
        (lambda: knn_predict(images * torch.nan, labels, images, 3, 8), "expected finite training features, found NaN"),
        (lambda: knn_predict(images, labels[:5], images, 3, 8), "expected 300 labels, found 5"),
        (lambda: knn_predict(images, labels, images, 3, 4), "expected labels between 0 and 3, found 0 to 7"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()


# ---- the linear probe: against scikit-learn used directly, its choices on training rows alone ----------------------


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


def test_the_smallest_of_equally_good_strengths_is_chosen() -> None:
    train, labels = torch.tensor([[-5.0], [-6.0], [-5.5], [5.0], [6.0], [5.5]]), torch.tensor([0, 0, 0, 1, 1, 1])
    for strengths in ([1.0, 0.1, 10.0], [10.0, 1.0, 0.1]):
        found = linear_probe(train, labels, train, strengths=strengths)
        assert found.scores == {0.1: 1.0, 1.0: 1.0, 10.0: 1.0}
        assert list(found.scores) == [0.1, 1.0, 10.0]
        assert found.strength == 0.1
        assert found.predictions.tolist() == labels.tolist()


def test_where_nothing_can_be_held_out_the_smallest_strength_stands() -> None:
    train, labels = torch.tensor([[-5.0, 1.0], [5.0, 0.0], [0.0, 9.0]]), torch.tensor([4, 0, 2])
    found = linear_probe(train, labels, train, strengths=[1.0, 0.5])
    assert (found.scores, found.strength) == ({}, 0.5)
    one = linear_probe(train.repeat(4, 1), labels.repeat(4), train, strengths=[3.0])
    assert (one.scores, one.strength, one.predictions.tolist()) == ({}, 3.0, [4, 0, 2])
    assert one.predictions.dtype == np.int64


def test_one_class_is_what_everything_is() -> None:
    found = linear_probe(torch.randn(6, 2), torch.full((6,), 3), torch.randn(4, 2))
    assert found.predictions.tolist() == [3, 3, 3, 3]
    assert found.predictions.dtype == np.int64


@pytest.mark.parametrize("moved", [1e-2, 1e2])
def test_a_probe_sees_standardised_columns(moved: float) -> None:
    """Scale and shift of a column change nothing; a constant column, even of large numbers, says nothing."""
    train, labels = classes_of(200, 0)
    test = classes_of(100, 1)[0]
    plain = linear_probe(train, labels, test)
    factor = torch.tensor([moved, 1.0, 1 / moved, 1.0, 1.0, moved])
    turned = linear_probe(train * factor - 7 * factor, labels, test * factor - 7 * factor)
    assert (turned.predictions == plain.predictions).mean() > 0.97
    wider = [torch.cat([side, torch.full((len(side), 1), value)], dim=1) for side, value in ((train, 1e3), (test, 2e3))]
    assert (linear_probe(wider[0], labels, wider[1]).predictions == plain.predictions).mean() > 0.9


def test_the_seed_draws_the_held_out_rows_and_their_share_is_a_fifth() -> None:
    train, labels = classes_of(100, 0)
    noisy = torch.cat([train, torch.randn(100, 60, generator=torch.Generator().manual_seed(3)) * 30], dim=1)
    said = linear_probe(noisy, labels, noisy[:3], held_out=0.2, seed=0, strengths=(1e-3, 1e-2, 1e-1, 1.0))
    assert linear_probe(noisy, labels, noisy[:3]).scores == said.scores
    assert linear_probe(noisy, labels, noisy[:3], seed=1).scores != said.scores
    assert linear_probe(noisy, labels, noisy[:3], held_out=0.5).scores != said.scores


def test_a_split_is_drawn_by_seed_in_the_order_of_rows() -> None:
    labels = np.repeat([0, 1, 2], 20)
    kept, held = stratified_split(labels, 0.5, 0)
    assert held.tolist() == sorted(held.tolist())
    assert kept.tolist() == sorted(kept.tolist())
    assert held.tolist() != stratified_split(labels, 0.5, 1)[1].tolist()
    assert held.tolist() == stratified_split(labels, 0.5, 0)[1].tolist()
    generator = np.random.default_rng(0)
    drawn = [generator.permutation(np.arange(20) + 20 * label)[:10] for label in range(3)]
    assert held.tolist() == sorted(np.concatenate(drawn).tolist())
    nothing = stratified_split(np.zeros(0, dtype=np.int64), 0.5, 0)
    assert [len(part) for part in nothing] == [0, 0]
    assert nothing[1].dtype == np.int64


@settings(max_examples=draws(60))
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


def test_hostile_input_of_the_probe_is_told() -> None:
    train, labels = classes_of(20, 0)
    cases: list[tuple[Callable[[], object], str]] = [
        (lambda: linear_probe(train, labels[:4], train), "expected 20 labels, found 4"),
        (lambda: linear_probe(train, labels - 1, train), "expected labels between 0 and 2147483647, found -1 to"),
        (lambda: linear_probe(train, labels, train[:, :2]), "expected test features of width 6, found width 2"),
        (lambda: linear_probe(train * torch.nan, labels, train), "expected finite training features, found NaN"),
        (lambda: linear_probe(train, labels, train * torch.nan), "expected finite test features, found NaN"),
        (lambda: linear_probe(train, labels, train, strengths=[]), "positive values of C"),
        (lambda: linear_probe(train, labels, train, strengths=[0.0, 1.0]), "positive values of C"),
    ]
    for call, message in cases:
        with pytest.raises(UserError, match=message):
            call()
