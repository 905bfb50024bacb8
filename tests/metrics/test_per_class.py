"""Classes of generated images: by labels, by a classifier of the same classes, by one of others."""

import math

import pytest
import torch

from driftkit.metrics.base import FeatureStats, MetricInputs
from driftkit.metrics.moments import Moments
from driftkit.metrics.per_class import PER_CLASS, class_scores, entropy

CLASSES = ("a", "b", "c")


def features(classes, *, shift=0.0, labels=None, predictions=None, seed=0):
    corners = 5 * torch.eye(4)[classes]
    rows = torch.randn(len(classes), 4, generator=torch.Generator().manual_seed(seed)) + corners + shift
    return FeatureStats(Moments.of(rows), rows, torch.arange(len(rows)), None, labels=labels, predictions=predictions)


def test_entropy_of_known_histograms():
    assert entropy(torch.tensor([5, 5, 5, 5])) == pytest.approx(math.log(4))
    assert entropy(torch.tensor([7, 0])) == 0


def test_predictions_of_the_references_classes_give_distances_and_their_accuracy():
    true = torch.arange(300) % 3
    guessed = torch.where(torch.arange(300) < 30, (true + 1) % 3, true)
    reference = features(true, labels=true, predictions=guessed)
    skewed = torch.tensor([0] * 100 + [1] * 50)
    generated = features(skewed, predictions=skewed, seed=1)
    record = class_scores(generated, reference, classes=CLASSES)
    assert record.by == "predictions"
    assert record.accuracy == pytest.approx(0.9)
    assert record.generated == [100, 50, 0]
    assert record.fd["c"] is None
    assert record.fd["a"] > 0
    assert record.missing == 1
    result = PER_CLASS.compute(MetricInputs(generated, reference, classes=CLASSES))
    assert result.values == {"class_entropy": record.entropy}
    assert "falls into: c" in result.warnings[0]


def test_a_labelled_reference_teaches_a_linear_classifier_where_the_evaluator_has_none_of_its_classes():
    true = torch.arange(300) % 3
    skewed = torch.tensor([0] * 100 + [1] * 50)
    for others in (None, true * 200, (true + 1) % 3):
        drawn = None if others is None else others[:150]
        record = class_scores(
            features(skewed, predictions=drawn, seed=1),
            features(true, labels=true, predictions=others),
            classes=CLASSES,
        )
        assert record.by == "linear"
        assert record.accuracy > 0.95
        assert record.generated == pytest.approx([100, 50, 0], abs=6)
        assert record.fd["a"] < 2


def test_labels_that_features_know_nothing_of_are_not_read_off_them():
    true = torch.arange(300) % 3
    noise = features(torch.zeros(300, dtype=torch.int64), seed=2)
    blind = FeatureStats(noise.moments, noise.rows, noise.indices, None, labels=true)
    record = class_scores(features(torch.zeros(100, dtype=torch.int64), seed=3), blind, classes=CLASSES)
    assert (record.names, record.generated, record.fd, record.accuracy) == ((), (), {}, None)


def test_a_classifier_of_other_classes_gives_histograms_alone_beside_unlabelled_images():
    true = torch.arange(300) % 3
    for others in (true * 200, (true + 1) % 3):
        record = class_scores(features(true, predictions=others), features(true, predictions=others), classes=())
        assert (record.names, record.generated, record.fd, record.accuracy) == ((), (), {}, None)
        assert record.entropy == pytest.approx(math.log(3))


def test_there_are_no_class_scores_without_classes():
    plain = features(torch.zeros(20, dtype=torch.int64))
    assert class_scores(plain, plain, classes=()) is None
    unlabelled = features(torch.zeros(20, dtype=torch.int64), labels=torch.full((20,), -1))
    assert class_scores(unlabelled, unlabelled, classes=CLASSES) is None


def test_agreement_is_by_the_extractors_own_classifier_where_it_knows_the_classes():
    true = torch.arange(300) % 3
    guessed = torch.where(torch.arange(300) < 30, (true + 1) % 3, true)
    asked, seen = true[:150], torch.where(torch.arange(150) < 30, (true[:150] + 1) % 3, true[:150])
    generated = features(seen, labels=asked, predictions=seen, seed=1)
    inputs = MetricInputs(generated, features(true, labels=true, predictions=guessed), classes=CLASSES)
    result = PER_CLASS.compute(inputs)
    assert (result.details.by, result.details.classifier) == ("labels", "predictions")
    assert result.values["class_agreement"] == pytest.approx(0.8)
    assert result.values["classifier_accuracy"] == result.real["class_agreement"] == pytest.approx(0.9)
    assert result.details.generated == [50, 50, 50]  # by label


def test_agreement_is_by_a_linear_classifier_of_the_reference_otherwise():
    true = torch.arange(300) % 3
    asked = torch.where(torch.arange(150) < 30, (true[:150] + 1) % 3, true[:150])
    record = class_scores(features(true[:150], labels=asked, seed=1), features(true, labels=true), classes=CLASSES)
    assert (record.by, record.classifier) == ("labels", "linear")
    assert record.agreement == pytest.approx(0.8, abs=0.04)
    assert record.accuracy > 0.95


def test_agreement_of_images_like_real_ones_is_what_the_classifier_reaches_on_those():
    def blurred(count, seed):
        generator, labels = torch.Generator().manual_seed(seed), torch.arange(count) % 2
        rows = torch.randn(count, 150, generator=generator) + 0.15 * (2 * labels[:, None] - 1)
        return FeatureStats.of_rows(rows, labels=labels)

    record = class_scores(blurred(2000, 1), blurred(500, 2), classes=("a", "b"))
    assert record.accuracy < 0.95  # few real images: a classifier of twice as many is clearly better
    assert record.agreement == pytest.approx(record.accuracy, abs=0.03)


def test_predictions_are_of_the_references_classes_only_where_their_names_are():
    true = torch.arange(300) % 3
    reference, generated = features(true, labels=true, predictions=true), features(true, predictions=true, seed=1)
    for names, by in ((CLASSES, "predictions"), ((), "predictions"), (("x", "y", "z"), "linear")):
        record = class_scores(generated, reference, classes=CLASSES, predicted_classes=names)
        assert record.by == by
    inputs = MetricInputs(generated, reference, classes=CLASSES, predicted_classes=("b", "a", "c"))
    assert PER_CLASS.compute(inputs).details.by == "linear"


def test_predictions_without_names_have_to_be_right_on_most_real_images():
    true = torch.arange(400) % 4
    guessed = torch.where(torch.arange(400) % 10 < 4, (true + 1) % 4, true)  # right on 60 %, and on 25 % by chance
    noise = FeatureStats.of_rows(torch.randn(400, 3), labels=true, predictions=guessed)
    for names, classifier in (((), None), (tuple("abcd"), "predictions")):
        assert class_scores(noise, noise, classes=tuple("abcd"), predicted_classes=names).classifier == classifier


def test_no_agreement_is_given_where_features_know_nothing_of_the_classes():
    true = torch.arange(300) % 3
    noise = features(torch.zeros(300, dtype=torch.int64), labels=true, seed=2)
    result = PER_CLASS.compute(MetricInputs(features(true[:90], labels=true[:90]), noise, classes=CLASSES))
    assert set(result.values) == {"class_entropy"}
    assert "class agreement was not measured" in result.warnings[0]
