"""Training-free CLIP on Picturebook: the committed command chooses on the tuning split and scores held-out pages."""

import json

import pytest

from ldvc.scoring.evaluate import evaluate_model
from picturebook import training_free
from picturebook.training_free import ROWS, SMOOTHINGS, find_cosines, find_labels, load_pages, main, score_table


def test_every_method_has_a_row():
    from ldvc.model.dense_settings_ldvc import DENSE_METHODS

    assert {row.method for row in ROWS} == set(DENSE_METHODS)
    assert len({row.name for row in ROWS}) == len(ROWS)


@pytest.mark.slow
def test_the_command_chooses_and_scores(tmp_path, monkeypatch):
    monkeypatch.setattr(training_free, "SMOOTHING_PAGES", 1)
    output = tmp_path / "r.json"
    main(["--only", "value", "clip_surgery", "--num_images", "2", "--num_tuning_images", "2", "--output", str(output)])
    result = json.loads(output.read_text())
    row = result["rows"]["clip_surgery"]
    assert set(row["smoothing"]) == set(SMOOTHINGS)
    best = max(row["tried"], key=lambda tried: tried["tuning_hiou"])
    assert row["settings"] == best["settings"]
    assert row["tuning_hiou"] == best["tuning_hiou"]
    assert len(row["tried"]) == 4
    assert row["all_settings"]["num_blocks"] == best["settings"]["num_blocks"]
    assert 0 <= row["smoothing"]["none"]["scores"]["hiou"] <= 1


def test_scores_are_those_of_the_evaluation():
    from transformers import CLIPModel

    from ldvc import InferenceSettings, LDVCProcessor, TrainingFreeCLIP
    from ldvc.data.vocabularies import get_vocabulary
    from ldvc.model.inference_ldvc import encode_classes
    from picturebook.clip_folder import CLIP_FOLDER

    clip = CLIPModel.from_pretrained(CLIP_FOLDER)
    processor = LDVCProcessor.from_clip_pretrained(CLIP_FOLDER, image_stats="clip", size=128)
    vocabulary = get_vocabulary("picturebook")
    pages = load_pages("test", 3, processor)
    model = TrainingFreeCLIP(clip, "value", softmax_scale=None)
    embeds = encode_classes(model, processor, list(vocabulary.class_names))[1]
    row = next(row for row in ROWS if row.name == "value")
    maps = find_labels(find_cosines(clip, row, {}, pages, embeds), pages, "none", {}, embeds)
    expected = evaluate_model(
        model, processor, pages.dataset, vocabulary, InferenceSettings(128, 0), offsets=[0.0], show_progress=False
    )["scores"]["0.0"]
    found = score_table(maps, pages, vocabulary)
    assert found["hiou"] == pytest.approx(expected["hiou"], abs=1e-3)  # rounding may turn a pixel
    assert found["fragmentation"].keys() == expected["fragmentation"].keys()
