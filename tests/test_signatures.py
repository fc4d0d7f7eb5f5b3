"""Failure signatures: which scores show which, and which do not."""

import pytest

from ldvc.scoring.signatures import FRAGMENTS_PER_REFERENCE, LOW_MIOU, SEEN_RISE, UNSEEN_FALL, find_signatures


def scores_of(seen, unseen, fragments=None):
    scores = {"miou_seen": seen, "miou_unseen": unseen}
    if fragments:
        names = ("components_per_class_and_image", "reference_components_per_class_and_image")
        scores["fragmentation"] = dict(zip(names, fragments, strict=True))
    return scores


def history_of(*pairs):
    return [{"step": 10 * (i + 1), **scores_of(*pair)} for i, pair in enumerate(pairs)]


def names_of(*arguments):
    return [signature.name for signature in find_signatures(*arguments)]


def test_seen_up_while_unseen_falls_is_overfitting():
    (signature,) = find_signatures(scores_of(0.6, 0.3), history_of((0.4, 0.35), (0.5, 0.4), (0.6, 0.3)))
    assert signature.name == "overfitting"
    assert signature.figures == pytest.approx({"unseen_fall": 0.1, "seen_rise": 0.1, "best_step": 20})
    assert "from step 20 to 30, mIoU(U) fell from 40.0 % to 30.0 %" in signature.message


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ((0.5 + SEEN_RISE + 1e-6, 0.4 - UNSEEN_FALL - 1e-6), ["overfitting"]),
        ((0.5 + SEEN_RISE + 1e-6, 0.4 - UNSEEN_FALL + 1e-6), []),
        ((0.5 + SEEN_RISE - 1e-6, 0.4 - UNSEEN_FALL - 1e-6), []),
        ((0.4, 0.2), []),  # both fall: no overfitting
        ((0.6, 0.5), []),
    ],
)
def test_overfitting_needs_both_margins(last, expected):
    history = [{"step": 1, "loss": 3.0}, *history_of((0.5, 0.4), last)]
    assert names_of(scores_of(*last), history) == expected


def test_one_evaluation_or_no_unseen_class_is_no_history():
    assert names_of(scores_of(0.5, 0.4), history_of((0.5, 0.4))) == []
    assert names_of(scores_of(0.5, float("nan")), history_of((0.5, float("nan")), (0.6, float("nan")))) == []


def test_many_more_pieces_than_the_labels_have_is_fragmentation():
    many, few = FRAGMENTS_PER_REFERENCE * 1.5, FRAGMENTS_PER_REFERENCE * 1.5 - 0.01
    (signature,) = find_signatures(scores_of(0.5, 0.5, (many, 1.5)))
    assert (signature.name, signature.figures["reference_components_per_class_and_image"]) == ("fragmentation", 1.5)
    assert names_of(scores_of(0.5, 0.5, (few, 1.5))) == []
    assert names_of(scores_of(0.5, 0.5, (many, float("nan")))) == []


@pytest.mark.parametrize(("share", "expected"), [(0.91, ["fragmentation"]), (0.89, [])])
def test_fragmentation_is_judged_where_nearly_all_is_labelled(share, expected):
    scores = scores_of(0.5, 0.5, (9.0, 1.5)) | {"labelled_share": share}
    assert names_of(scores) == expected


def test_both_low_is_measured_against_clip_without_training_where_that_is_known():
    floor = scores_of(0.2, 0.3)
    (signature,) = find_signatures(scores_of(0.19, 0.29), (), floor)
    assert (signature.name, signature.figures["miou_seen_limit"]) == ("both_low", 0.2)
    assert "CLIP without training has 20.0 % and 30.0 %" in signature.message
    assert names_of(scores_of(0.19, 0.31), (), floor) == []
    assert names_of(scores_of(LOW_MIOU - 1e-6, LOW_MIOU - 1e-6)) == ["both_low"]
    assert names_of(scores_of(LOW_MIOU, 0.0)) == []
