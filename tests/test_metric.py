"""The metric zero_shot_miou against hand-computed examples and naive formulas."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import ndimage


METRIC_FOLDER = Path(__file__).resolve().parents[1] / "metrics" / "zero_shot_miou"
sys.path.insert(0, str(METRIC_FOLDER))

from zero_shot_miou import ZeroShotMIoU, count_confusion, count_fragments, scores_from_confusion  # noqa: E402


REFERENCE = np.array([[0, 0, 1], [0, 1, 1], [2, 2, 255]])
PREDICTION = np.array([[0, 1, 1], [0, 1, 2], [2, 0, 2]])
# class 0: 2 right, 1 missed, 1 wrong -> 2/4; class 1: 2, 1, 1 -> 2/4; class 2: 1, 1, 1 -> 1/3; 5 of 8 pixels right


@pytest.fixture
def metric():
    return ZeroShotMIoU()


def random_maps(seed, count, num_labels=5):
    """Return predictions (some "no decision") and references (some ignored) of different sizes."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(3, 20, size=(count, 2))
    predictions = [rng.choice([*range(num_labels), 255], size=tuple(size)) for size in sizes]
    references = [rng.choice([*range(num_labels), 255], size=tuple(size)) for size in sizes]
    return predictions, references


def naive_scores(predictions, references, num_labels, unseen_ids):
    """Compute the scores from the definition, one class at a time."""
    prediction = np.concatenate([np.ravel(label_map) for label_map in predictions])
    reference = np.concatenate([np.ravel(label_map) for label_map in references])
    prediction, reference = prediction[reference != 255], reference[reference != 255]
    ious = []
    for class_id in range(num_labels):
        intersection = sum((prediction == class_id) & (reference == class_id))
        union = sum((prediction == class_id) | (reference == class_id))
        ious.append(intersection / union if union else math.nan)
    means = []
    for is_member in (lambda class_id: class_id not in unseen_ids, lambda class_id: class_id in unseen_ids):
        present = [iou for class_id, iou in enumerate(ious) if is_member(class_id) and not math.isnan(iou)]
        # a group that no reference pixel belongs to has no mean, whatever was predicted
        is_there = any(is_member(class_id) for class_id in reference)
        means.append(sum(present) / len(present) if is_there else math.nan)
    miou_seen, miou_unseen = means
    return {
        "pixel_accuracy": np.mean(prediction == reference),
        "miou_seen": miou_seen,
        "miou_unseen": miou_unseen,
        "hiou": 0.0 if miou_seen == miou_unseen == 0 else 2 * miou_seen * miou_unseen / (miou_seen + miou_unseen),
        "miou": np.mean([iou for iou in ious if not math.isnan(iou)]),
        "per_class_iou": ious,
    }


def test_the_three_by_three_example_gives_the_scores_computed_by_hand(metric):
    metric.add(prediction=PREDICTION, reference=REFERENCE)
    scores = metric.compute(num_labels=3, unseen_ids=[2])
    assert scores["per_class_iou"] == [0.5, 0.5, 1 / 3]
    assert scores["pixel_accuracy"] == 5 / 8
    assert (scores["miou_seen"], scores["miou_unseen"]) == (0.5, 1 / 3)
    assert scores["hiou"] == pytest.approx(0.4)
    assert scores["miou"] == pytest.approx(4 / 9)


def test_the_confusion_matrix_has_references_in_rows_and_no_decision_last():
    confusion = count_confusion([[0, 1, 255], [0, 1, 7]], [[0, 0, 1], [0, 1, 255]], num_labels=2)
    assert confusion.tolist() == [[2, 1, 0], [0, 1, 1]]


def test_what_is_predicted_at_ignored_pixels_never_matters(metric):
    for wrong in (0, 1, 2, 255, 999):
        prediction = PREDICTION.copy()
        prediction[2, 2] = wrong
        metric.add(prediction=prediction, reference=REFERENCE)
        assert metric.compute(num_labels=3, unseen_ids=[2])["per_class_iou"] == [0.5, 0.5, 1 / 3]


def test_no_decision_at_a_labelled_pixel_counts_as_missed(metric):
    metric.add(prediction=[[0, 255]], reference=[[0, 0]])
    scores = metric.compute(num_labels=2, unseen_ids=[1])
    assert scores["per_class_iou"][0] == 0.5
    assert scores["pixel_accuracy"] == 0.5


def test_a_class_absent_from_both_is_nan_and_left_out_of_the_means(metric):
    metric.add(prediction=PREDICTION, reference=REFERENCE)
    scores = metric.compute(num_labels=5, unseen_ids=[2, 4])
    assert math.isnan(scores["per_class_iou"][3])
    assert math.isnan(scores["per_class_iou"][4])
    assert (scores["miou_seen"], scores["miou_unseen"]) == (0.5, 1 / 3)


def test_a_class_predicted_where_it_never_is_counts_as_zero(metric):
    metric.add(prediction=[[0, 1]], reference=[[0, 0]])
    assert metric.compute(num_labels=2, unseen_ids=[1])["per_class_iou"] == [0.5, 0.0]


def test_classes_left_out_have_a_mean_of_their_own(metric):
    metric.add(prediction=[[0, 1, 2, 2]], reference=[[0, 1, 2, 0]])
    scores = metric.compute(num_labels=3, unseen_ids=[1], left_out_ids=[2])
    assert (scores["miou_seen"], scores["miou_unseen"], scores["miou_left_out"]) == (0.5, 1.0, 0.5)
    assert scores["hiou"] == pytest.approx(2 / 3)


def test_a_class_is_not_unseen_and_left_out_at_once(metric):
    metric.add(prediction=[[0, 1]], reference=[[0, 1]])
    with pytest.raises(ValueError, match=r"left_out_ids \[1\]: \[1\] are unseen_ids as well; give each id in one"):
        metric.compute(num_labels=2, unseen_ids=[1], left_out_ids=[1])


@pytest.mark.parametrize(
    ("unseen_ids", "miou_unseen", "hiou"), [([1], 0.0, 0.0), ([], math.nan, math.nan), ([2], math.nan, math.nan)]
)
def test_hiou_of_a_zero_is_zero_and_of_nothing_is_nan(metric, unseen_ids, miou_unseen, hiou):
    metric.add(prediction=[[0, 0]], reference=[[0, 1]])
    scores = metric.compute(num_labels=3, unseen_ids=unseen_ids)
    assert [scores["miou_unseen"], scores["hiou"]] == pytest.approx([miou_unseen, hiou], nan_ok=True)


def test_hiou_is_zero_when_both_means_are_zero(metric):
    metric.add(prediction=[[1, 0]], reference=[[0, 1]])
    assert metric.compute(num_labels=2, unseen_ids=[1])["hiou"] == 0.0


@settings(max_examples=25)
@example(seed=273, count=1, num_labels=5)  # both means are 0, and the harmonic mean is 0, not 0 / 0
@given(seed=st.integers(0, 10_000), count=st.integers(1, 4), num_labels=st.sampled_from([5, 12]))
def test_random_maps_score_as_the_definition_says(seed, count, num_labels):
    """With twelve classes, small maps lack some of them, or all of a group."""
    predictions, references = random_maps(seed, count, num_labels)
    if all((reference == 255).all() for reference in references):
        references[0][0, 0] = 0
    metric = ZeroShotMIoU()
    metric.add_batch(predictions=predictions, references=references)
    scores = metric.compute(num_labels=num_labels, unseen_ids=[3, 4])
    expected = naive_scores(predictions, references, num_labels, [3, 4])
    for name, value in expected.items():
        assert scores[name] == pytest.approx(value, nan_ok=True), name


def test_the_per_class_iou_equals_scikit_learns_jaccard_score():
    sklearn_metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(0)
    prediction, reference = rng.integers(0, 7, (2, 40, 30))
    expected = sklearn_metrics.jaccard_score(reference.ravel(), prediction.ravel(), average=None)
    assert scores_from_confusion(count_confusion(prediction, reference, 7))["per_class_iou"] == pytest.approx(expected)


def test_arrays_tensors_images_and_lists_count_alike(metric):
    for convert in (np.asarray, torch.tensor, lambda ids: Image.fromarray(ids.astype(np.uint8)), np.ndarray.tolist):
        metric.add_batch(predictions=[convert(PREDICTION)], references=[convert(REFERENCE)])
        assert metric.compute(num_labels=3, unseen_ids=[2])["per_class_iou"] == [0.5, 0.5, 1 / 3]


def test_maps_given_to_compute_count_with_those_added_before():
    predictions, references = random_maps(1, 4)
    together, apart = ZeroShotMIoU(), ZeroShotMIoU()
    together.add_batch(predictions=predictions, references=references)
    apart.add_batch(predictions=predictions[:3], references=references[:3])
    arguments = {"num_labels": 5, "unseen_ids": [4]}
    assert together.compute(**arguments) == apart.compute(
        predictions=predictions[3:], references=references[3:], **arguments
    )


def test_settings_given_at_loading_are_the_defaults_of_compute():
    metric = ZeroShotMIoU(num_labels=3, ignore_index=-100)
    metric.add(prediction=PREDICTION, reference=np.where(REFERENCE == 255, -100, REFERENCE))
    assert metric.compute(unseen_ids=[2])["per_class_iou"] == [0.5, 0.5, 1 / 3]


def test_compute_starts_anew_but_keeps_the_counts_after_an_error(metric):
    metric.add(prediction=PREDICTION, reference=REFERENCE)
    with pytest.raises(ValueError, match="id 2 "):
        metric.compute(num_labels=2, unseen_ids=[1])
    assert len(metric) == 1
    metric.compute(num_labels=3, unseen_ids=[2])
    assert len(metric) == 0
    with pytest.raises(ValueError, match="no labelled pixel"):
        metric.compute(num_labels=3, unseen_ids=[2])


def test_a_metric_that_saw_only_ignored_pixels_has_no_scores(metric):
    metric.add(prediction=[[0, 1]], reference=[[255, 255]])
    with pytest.raises(ValueError, match="no labelled pixel"):
        metric.compute(num_labels=2, unseen_ids=[1])


@pytest.mark.parametrize(
    ("prediction", "reference", "error", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((3, 2), int), ValueError, r"\(2, 3\) for a reference of shape \(3, 2\)"),
        (np.zeros((1, 2, 3), int), np.zeros((1, 2, 3), int), ValueError, r"prediction of shape \(1, 2, 3\)"),
        (np.zeros((2, 3)), np.zeros((2, 3), int), TypeError, "prediction of dtype float64"),
        (np.zeros((2, 3), int), np.zeros((2, 3)), TypeError, "reference of dtype float64"),
        (None, np.zeros((2, 3), int), ValueError, "prediction of shape"),
    ],
)
def test_maps_that_cannot_be_compared_are_refused_by_name(metric, prediction, reference, error, message):
    with pytest.raises(error, match=message):
        metric.add(prediction=prediction, reference=reference)
    assert len(metric) == 0


def test_a_batch_with_one_bad_map_counts_nothing(metric):
    with pytest.raises(ValueError, match="shape"):
        metric.add_batch(predictions=[PREDICTION, PREDICTION], references=[REFERENCE, REFERENCE[:2]])
    with pytest.raises(ValueError, match="2 predictions for 1 references"):
        metric.add_batch(predictions=[PREDICTION, PREDICTION], references=[REFERENCE])
    assert len(metric) == 0


@pytest.mark.parametrize(
    ("prediction", "reference", "message"),
    [([[3]], [[0]], "predicted id 3 "), ([[-1]], [[0]], "predicted id -1 "), ([[0]], [[70000]], "id 70000 ")],
)
def test_ids_outside_the_vocabulary_are_refused_by_name(metric, prediction, reference, message):
    metric.add(prediction=prediction, reference=reference)
    with pytest.raises(ValueError, match=message):
        metric.compute(num_labels=3, unseen_ids=[1])


def test_both_means_of_that_draw_are_zero():
    predictions, references = random_maps(273, 1)
    expected = naive_scores(predictions, references, 5, [3, 4])
    assert (expected["miou_seen"], expected["miou_unseen"], expected["hiou"]) == (0, 0, 0)


@pytest.mark.parametrize("predicted", [0, 1])
def test_a_group_without_a_reference_pixel_has_no_score_whatever_was_predicted(metric, predicted):
    metric.add(prediction=[[0, predicted]], reference=[[0, 0]])
    scores = metric.compute(num_labels=2, unseen_ids=[1])
    assert math.isnan(scores["miou_unseen"])
    assert math.isnan(scores["hiou"])
    assert scores["miou_seen"] == (1.0 if predicted == 0 else 0.5)
    metric.add(prediction=[[predicted, 1]], reference=[[1, 1]])
    assert math.isnan(metric.compute(num_labels=2, unseen_ids=[1])["miou_seen"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unseen_ids": [1.5]}, r"unseen_ids: 1\.5 is a float, give an integer"),
        ({"unseen_ids": [1.0]}, r"unseen_ids: 1\.0 is a float"),
        ({"unseen_ids": "12"}, "unseen_ids: '1' is a str"),
        ({"unseen_ids": [False, True]}, "unseen_ids: False is a bool"),  # a mask
        ({"unseen_ids": np.array([0.0, 1.0])}, "unseen_ids: .* is a float64"),
        ({"ignore_index": "255"}, "ignore_index: '255' is a str"),
        ({"ignore_index": 255.0}, r"ignore_index: 255\.0 is a float"),
        ({"num_labels": "3"}, "num_labels: '3' is a str"),
        ({"num_labels": 3.0, "ignore_index": None}, r"num_labels: 3\.0 is a float"),
    ],
)
def test_numbers_that_are_no_integers_are_refused(metric, arguments, message):
    metric.add(prediction=PREDICTION, reference=REFERENCE)
    with pytest.raises(TypeError, match=message):
        metric.compute(**{"num_labels": 3, "unseen_ids": [2], **arguments})
    assert metric.compute(num_labels=np.int64(3), unseen_ids=torch.tensor([2]))["miou_unseen"] == 1 / 3


def test_the_counting_functions_refuse_them_too():
    with pytest.raises(TypeError, match="ignore_index: '255' is a str"):
        count_fragments(REFERENCE, ignore_index="255")
    with pytest.raises(TypeError, match="ignore_index: '255' is a str"):
        count_confusion(PREDICTION, REFERENCE, 3, ignore_index="255")


@pytest.mark.parametrize("unseen_ids", [[3], [-1], [1, 1]])
def test_wrong_unseen_ids_are_refused(metric, unseen_ids):
    metric.add(prediction=PREDICTION, reference=REFERENCE)
    with pytest.raises(ValueError, match="distinct class ids from 0 to 2"):
        metric.compute(num_labels=3, unseen_ids=unseen_ids)


def test_the_number_of_classes_and_an_ambiguous_ignore_id_are_asked_for(metric):
    metric.add(prediction=PREDICTION, reference=REFERENCE)
    with pytest.raises(TypeError, match="num_labels is missing"):
        metric.compute(unseen_ids=[2])
    with pytest.raises(ValueError, match="give ignore_index explicitly"):
        metric.compute(num_labels=847, unseen_ids=[2])
    assert metric.compute(num_labels=847, unseen_ids=[2], ignore_index=-1)["per_class_iou"][255] == 0.0


def test_the_file_based_processes_of_evaluate_are_refused_with_the_remedy():
    with pytest.raises(ValueError, match="across_processes"):
        ZeroShotMIoU(num_process=2, process_id=0, experiment_id="any")


def test_fragments_are_eight_connected_and_small_ones_are_told_apart():
    label_map = np.zeros((40, 50), dtype=int)  # 0.1 % of it is 2 pixels
    label_map[5, 5] = 1  # joined diagonally to the next, so not small
    label_map[6:8, 6:8] = 1
    label_map[20, 20] = 1
    label_map[30, 30:32] = 1  # exactly 0.1 % is not under it
    label_map[39, 0] = 255
    assert count_fragments(label_map) == (2, 4, 1)
    assert count_fragments(label_map, ignore_index=0) == (2, 4, 2)


def test_fragmentation_averages_over_classes_and_images_beside_the_reference(metric):
    prediction = np.zeros((40, 50), dtype=int)
    prediction[::4, ::5] = 1
    reference = np.where(np.arange(50) < 25, 0, 1) * np.ones((40, 1), dtype=int)
    metric.add_batch(predictions=[prediction, reference], references=[reference, reference])
    assert metric.compute(num_labels=2, unseen_ids=[1])["fragmentation"] == {
        "components_per_class_and_image": (1 + 100 + 1 + 1) / 4,
        "small_component_share": 100 / 103,
        "reference_components_per_class_and_image": 1.0,
        "reference_small_component_share": 0.0,
    }


def test_what_is_kept_does_not_grow_with_the_number_of_images(metric):
    predictions, references = random_maps(2, 20)
    sizes = []
    for _ in range(3):
        metric.add_batch(predictions=predictions, references=references)
        counts = vars(metric._counts)
        sizes.append((len(counts["pairs"]), len(counts["predicted"]), len(counts["reference"])))
    assert len(metric) == 60
    assert sizes == [(36, 6, 6)] * 3


@given(st.integers(0, 2**32 - 1), st.tuples(st.integers(1, 12), st.integers(1, 12)), st.sampled_from([2, 3, 400]))
@settings(max_examples=60)
def test_components_are_those_of_a_plain_labelling_of_each_class(seed, size, num_ids):
    label_map = np.random.default_rng(seed).integers(0, num_ids, size)
    classes = [ndimage.label(label_map == class_id, structure=np.ones((3, 3)))[1] for class_id in np.unique(label_map)]
    assert count_fragments(label_map, ignore_index=-1)[:2] == (len(classes), sum(classes))


def test_without_fragmentation_the_other_scores_stay(metric):
    plain = evaluate.load(str(METRIC_FOLDER), fragmentation=False)
    predictions, references = random_maps(5, 4)
    scores = metric.compute(predictions=predictions, references=references, num_labels=5, unseen_ids=[4])
    del scores["fragmentation"]
    assert plain.compute(predictions=predictions, references=references, num_labels=5, unseen_ids=[4]) == scores


def score_share(process_index, num_processes, rendezvous, output):
    """Score the images of one process; image counts are uneven and the last process has none."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{rendezvous}", rank=process_index, world_size=num_processes
    )
    predictions, references = random_maps(3, 3)
    shares = [slice(0, 3), slice(3, 3)]
    metric = ZeroShotMIoU()
    metric.add_batch(predictions=predictions[shares[process_index]], references=references[shares[process_index]])
    if process_index == 1:  # ids that no other process saw
        metric.add(prediction=[[6, 6, 5]], reference=[[6, 5, 6]])
    scores = metric.compute(num_labels=7, unseen_ids=[4, 6], across_processes=True)
    Path(output, f"{process_index}.json").write_text(json.dumps(scores))
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_processes_with_uneven_shares_score_as_one(metric, tmp_path):
    torch.multiprocessing.spawn(score_share, args=(2, str(tmp_path / "rendezvous"), str(tmp_path)), nprocs=2)
    predictions, references = random_maps(3, 3)
    metric.add_batch(predictions=predictions, references=references)
    metric.add(prediction=[[6, 6, 5]], reference=[[6, 5, 6]])
    expected = metric.compute(num_labels=7, unseen_ids=[4, 6], across_processes=True)
    assert [json.loads((tmp_path / f"{index}.json").read_text()) for index in range(2)] == [expected, expected]


@pytest.mark.slow
def test_evaluate_loads_the_metric_offline_from_any_folder(tmp_path):
    code = (
        "import evaluate\n"
        f"metric = evaluate.load({str(METRIC_FOLDER)!r}, num_labels=2)\n"
        "metric.add_batch(predictions=[[[0, 0], [1, 1]]], references=[[[0, 0], [1, 255]]])\n"
        "print(metric.compute(unseen_ids=[1])['hiou'])\n"
    )
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_EVALUATE_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    command = [sys.executable, "-c", code]
    result = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["1.0"]


def test_evaluate_loads_the_metric_by_its_relative_path(monkeypatch):
    monkeypatch.chdir(METRIC_FOLDER.parents[1])
    metric = evaluate.load("metrics/zero_shot_miou")
    metric.add_batch(predictions=[PREDICTION], references=[REFERENCE])
    assert metric.compute(num_labels=3, unseen_ids=[2], ignore_index=255)["pixel_accuracy"] == 5 / 8
