"""Sliding windows, scores and controls of the evaluation, and CLIP without training."""

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from scipy.stats import bootstrap

from ldvc.commands.scoring import evaluate as main
from ldvc.data import provenance as provenance_module
from ldvc.data.provenance import provenance, write_json
from ldvc.data.vocabularies import Vocabulary
from ldvc.model.inference_ldvc import (
    InferenceSettings,
    class_scores,
    encode_classes,
    prepare_image,
    segment_image,
    window_starts,
)
from ldvc.model.regions_ldvc import fit_to_image
from ldvc.scoring import evaluate
from ldvc.scoring.evaluate import (
    BOOTSTRAP_RESAMPLES,
    bootstrap_intervals,
    choose_templates,
    evaluate_model,
    format_table,
    group_scores,
    image_areas,
    images_fingerprint,
    interval,
    load_checkpoint,
    permute_names,
    resample,
    share,
)
from ldvc.scoring.predictions import KeptPredictions
from ldvc.segmenters.training_free import TrainingFreeCLIP


WHOLE = InferenceSettings(short_side=32, window=0)
VOCABULARY = Vocabulary("own", ("cat", "dog", "sofa", "grass"), ("dog", "grass"))


@pytest.fixture
def dataset():
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (h, 40, 3), dtype=np.uint8)) for h in (33, 48, 40)]
    labels = [Image.fromarray(rng.choice([0, 1, 2, 3, 255], (h, 40)).astype(np.uint8)) for h in (33, 48, 40)]
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    return Dataset.from_dict({"image": images, "label": labels}, features=features)


@pytest.mark.parametrize(("side", "window", "stride"), [(512, 512, 426), (683, 512, 426), (100, 32, 10), (20, 32, 10)])
def test_windows_cover_the_side_and_end_flush(side, window, stride):
    starts = window_starts(side, window, stride)
    covered = {pixel for start in starts for pixel in range(start, min(start + window, side))}
    assert covered == set(range(side))
    assert starts[-1] == max(side - window, 0)
    assert all(later - earlier <= stride for earlier, later in pairwise(starts))


def test_one_window_that_covers_the_picture_equals_the_whole_picture(tiny_model, tiny_processor):
    embeds = encode_classes(tiny_model, tiny_processor, VOCABULARY.class_names)[1]
    pixels = torch.randn(3, 40, 56)
    whole = class_scores(tiny_model, pixels, embeds, WHOLE)
    upsampled = F.interpolate(
        tiny_model(pixel_values=pixels[None], class_embeds=embeds).logits, size=(40, 56), mode="bilinear"
    )[0].sigmoid()
    windowed = class_scores(tiny_model, pixels, embeds, InferenceSettings(short_side=0, window=64, stride=48))
    torch.testing.assert_close(windowed, upsampled)
    torch.testing.assert_close(whole, upsampled)  # logits are resized, not probabilities, as post-processing does


def test_overlapping_windows_are_averaged():
    def model(pixel_values, class_embeds):  # the logit of a window is its first pixel
        first = pixel_values[:, :1, :1, :1]
        return SimpleNamespace(logits=first.expand(-1, len(class_embeds), 2, 2))

    pixels = torch.zeros(3, 4, 6)
    pixels[:, :, 2] = 2.0
    settings = InferenceSettings(short_side=0, window=4, stride=2, window_batch_size=1)
    scores = class_scores(model, pixels, torch.zeros(1, 8), settings)
    alone = torch.tensor([0.0, 2.0]).sigmoid()
    expected = torch.stack([alone[0], alone[0], alone.mean(), alone.mean(), alone[1], alone[1]])
    torch.testing.assert_close(scores[0], expected.expand(4, 6))


def test_the_short_side_is_resized_and_pixels_normalised():
    image = Image.new("RGB", (60, 30), (255, 0, 51))
    pixels = prepare_image(image, InferenceSettings(short_side=16), [0.5, 0.5, 0.5], [0.25, 0.5, 0.1])
    assert pixels.shape == (3, 16, 32)
    torch.testing.assert_close(pixels[:, 3, 5], torch.tensor([2.0, -1.0, -3.0]))


def test_scores_equal_a_plain_loop_over_images(tiny_model, tiny_processor, dataset):
    result = evaluate_model(tiny_model, tiny_processor, dataset, VOCABULARY, WHOLE, offsets=[0.0, 0.3])
    processor = tiny_processor.image_processor
    embeds = encode_classes(tiny_model, tiny_processor, VOCABULARY.class_names)[1]
    for offset in (0.0, 0.3):
        hits = np.zeros(4)
        union = np.zeros(4)
        offsets = torch.tensor([offset, 0, offset, 0])
        for sample in dataset:
            label = np.asarray(sample["label"])
            predicted = segment_image(
                tiny_model, sample["image"], embeds, WHOLE, processor.image_mean, processor.image_std, offsets
            )
            for class_id in range(4):
                is_predicted, is_class = (predicted == class_id) & (label != 255), label == class_id
                hits[class_id] += (is_predicted & is_class).sum()
                union[class_id] += (is_predicted | is_class).sum()
        scores = result["scores"][str(offset)]
        np.testing.assert_allclose(scores["per_class_iou"], hits / union)
        seen, unseen = (hits / union)[[0, 2]].mean(), (hits / union)[[1, 3]].mean()
        assert scores["hiou"] == pytest.approx(2 * seen * unseen / (seen + unseen))
        low, high = scores["intervals"]["pixel_accuracy"]
        assert low <= scores["pixel_accuracy"] <= high
    assert result["scores"]["0.0"]["per_class_iou"] != result["scores"]["0.3"]["per_class_iou"]


def test_a_single_unseen_name_has_none_to_change_places_with():
    with pytest.raises(ValueError, match="'own' has 1 unseen names; at least 2"):
        permute_names(Vocabulary("own", ("cat", "dog"), ("dog",)))


@torch.no_grad()
def test_the_training_free_baseline_covers_the_picture_where_patches_do_not_fit(clip_model):
    baseline = TrainingFreeCLIP(clip_model, "value", softmax_scale=None)
    pixels, embeds = torch.randn(1, 3, 40, 52), torch.randn(2, clip_model.config.projection_dim)
    features, patch_size = baseline.get_image_features(pixels), clip_model.config.vision_config.patch_size
    assert 52 % patch_size
    logits = torch.einsum("bdhw,cd->bchw", features.feature_map, embeds)
    expected = fit_to_image(logits, (40, 52), patch_size)
    torch.testing.assert_close(baseline(pixels, embeds).logits, expected)


def test_permuted_names_move_every_unseen_name_and_no_seen_one():
    names = permute_names(VOCABULARY)
    assert names == ["cat", "grass", "sofa", "dog"]


def test_groups_are_averaged_apart():
    table = group_scores([0.1, 0.2, float("nan"), 0.6], [1, 3], {"things": [0, 1], "stuff": [2, 3]}, [0, 1, 3])
    assert table == {"things_seen": 0.1, "things_unseen": 0.2, "stuff_seen": None, "stuff_unseen": 0.6}


def test_classes_left_out_count_neither_as_seen_nor_as_unseen():
    table = group_scores([0.1, 0.2, 0.6, 0.4], [1], {"things": [0, 1, 2, 3]}, [0, 1, 2, 3], left_out_ids=[2])
    assert table == {"things_seen": 0.25, "things_unseen": 0.2}
    areas = np.tile(np.array([[[1, 10, 10], [2, 10, 10], [9, 10, 10]]]), (4, 1, 1))
    whole, part = bootstrap_intervals(areas, [1]), bootstrap_intervals(areas, [1], [2])
    assert part["miou_unseen"] == whole["miou_unseen"]
    assert part["miou_seen"] == pytest.approx([1 / 19, 1 / 19])


def test_permuted_names_leave_those_left_out_in_their_place():
    part = Vocabulary("own", tuple("abcd"), tuple("abc"), left_out_names=("b",))
    assert permute_names(part) == ["c", "b", "a", "d"]


def test_bootstrap_of_equal_images_has_no_width_and_of_different_ones_has():
    same = np.tile(np.array([[[5, 10, 10], [2, 4, 8]]]), (6, 1, 1))
    low, high = bootstrap_intervals(same, [1])["miou_unseen"]
    assert low == high == pytest.approx(2 / 10)
    different = same.copy()
    different[:3, 1, 0] = 0
    low, high = bootstrap_intervals(different, [1])["miou_unseen"]
    assert low < high


def test_intervals_are_bias_corrected_and_accelerated_as_scipys_are():
    rng = np.random.default_rng(3)
    counts = np.stack([rng.integers(0, 50, 30) ** 2, np.full(30, 2500)], axis=1)  # skewed hits of equal pictures
    values = share(counts, resample(30))
    theirs = bootstrap(
        (counts[:, 0] / 2500,),
        np.mean,
        n_resamples=0,
        method="BCa",
        bootstrap_result=SimpleNamespace(bootstrap_distribution=values[1 : 1 + BOOTSTRAP_RESAMPLES]),
    ).confidence_interval
    assert interval(values) == pytest.approx([theirs.low, theirs.high], abs=1e-9)


def test_a_score_without_numbers_has_no_interval():
    assert interval(np.full(1 + BOOTSTRAP_RESAMPLES + 5, np.nan)) == []


def test_one_image_has_no_interval():
    assert set(map(len, bootstrap_intervals(np.full((1, 2, 3), 4), [1]).values())) == {0}


def test_areas_leave_out_unlabelled_pixels():
    areas = image_areas(np.array([[0, 1, 1]]), np.array([[0, 0, 255]]), 2)
    np.testing.assert_array_equal(areas, [[1, 1, 2], [0, 1, 0]])


def test_clip_without_training_compares_its_own_tokens(clip_model, tokenizer):
    pixels = torch.randn(1, 3, 32, 32)
    ids = torch.tensor([tokenizer("a photo of a cat")["input_ids"]])
    with torch.no_grad():
        text = clip_model.get_text_features(ids).pooler_output
        text = text / text.norm(dim=-1, keepdim=True)
        plain = TrainingFreeCLIP(clip_model, "tokens", softmax_scale=None)
        vision = clip_model.vision_model
        tokens = clip_model.visual_projection(vision.post_layernorm(vision(pixels).last_hidden_state[:, 1:]))
        tokens = tokens / tokens.norm(dim=-1, keepdim=True)
        expected = (tokens @ text.T).view(1, 4, 4, 1).permute(0, 3, 1, 2)
        torch.testing.assert_close(plain(pixels, plain.get_class_embeds(ids)).logits, expected, rtol=1e-4, atol=1e-4)
        value_path = TrainingFreeCLIP(clip_model, "value", softmax_scale=None)
        assert not torch.allclose(value_path(pixels, text).logits, expected, atol=1e-2)


def test_the_table_is_in_percent():
    scores = {"pixel_accuracy": 0.5, "miou_seen": 0.25, "miou_unseen": float("nan"), "hiou": float("nan")}
    scores |= {"groups": {"things_seen": 0.1}, "fragmentation": {"components_per_class_and_image": 1.5}}
    assert format_table({"row": scores}).splitlines()[-1] == "| row | 50.0 | 25.0 | - | - | 10.0 | 1.50 |"


def test_json_has_no_nan_and_is_never_half_written(tmp_path):
    write_json({"a": [float("nan"), 1.0], "b": {"c": float("inf")}}, tmp_path / "sub" / "r.json")
    assert json.loads((tmp_path / "sub" / "r.json").read_text()) == {"a": [None, 1.0], "b": {"c": None}}
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["r.json"]


def test_the_command_line_scores_a_checkpoint_and_writes_the_result(tmp_path, tiny_model, tiny_processor, capsys):
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    rng = np.random.default_rng(0)
    columns = {
        "image": [Image.fromarray(rng.integers(0, 256, (30, 30, 3), dtype=np.uint8)) for _ in range(2)],
        "label": [Image.fromarray(rng.integers(0, 21, (30, 30)).astype(np.uint8)) for _ in range(2)],
    }
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    (tmp_path / "data").mkdir()
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    arguments = [str(tmp_path / "model"), "--dataset", str(tmp_path / "data"), "--reduce_labels"]
    arguments += ["--short_side", "32", "--window", "32", "--stride", "16", "--output", str(tmp_path / "r.json")]
    assert main(arguments) == 0
    result = json.loads((tmp_path / "r.json").read_text())
    assert result["num_images"] == 2
    assert set(result["scores"]) == {"0.0", "0.1"}
    assert len(result["scores"]["0.0"]["per_class_iou"]) == 20
    assert "mIoU(U)" in capsys.readouterr().out


def test_a_checkpoint_of_the_wrong_kind_is_refused(clip_folder, tmp_path, tiny_model):
    with pytest.raises(ValueError, match=r"holds a 'clip' model, not 'ldvc'"):
        load_checkpoint(str(clip_folder), training_free=False, image_stats="clip")
    tiny_model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"holds a 'ldvc' model, not 'clip'"):
        load_checkpoint(str(tmp_path), training_free=True, image_stats="clip")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--dataset", "nowhere-either"], "no LDVC checkpoint can be read from 'nowhere'"),
        (["picturebook/ldvc", "--dataset", "nowhere-either", "--vocabulary", "picturebook"], "nowhere-either"),
        (["m", "--dataset", "d", "--vocabulary", "voc2013"], "did you mean 'voc2012'?"),
        (["m", "--dataset", "d", "--stride", "0"], "stride is 0"),
        (["m", "--dataset", "d", "--window", "-1"], "window is -1"),
        (["m", "--dataset", "d", "--window_batch_size", "0"], "window_batch_size is 0; use at least 1"),
    ],
)
def test_bad_arguments_end_with_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    assert message in capsys.readouterr().err


def test_templates_are_given_or_named():
    assert len(choose_templates(["ensemble15"])) == 15
    assert choose_templates(["a {}", "the {}"]) == ["a {}", "the {}"]
    with pytest.raises(ValueError, match=r"'ensemble16' needs exactly one \{\} for the class name"):
        choose_templates(["ensemble16"])


@pytest.mark.parametrize("known", ["abc123", None])
def test_without_git_the_environment_names_the_commit(monkeypatch, tmp_path, known):
    def no_git(*_args, **_options):
        raise FileNotFoundError("git")

    monkeypatch.setenv("LDVC_COMMIT", known) if known else monkeypatch.delenv("LDVC_COMMIT", raising=False)
    monkeypatch.setattr(provenance_module, "ROOT", tmp_path)  # no checkout
    assert provenance_module.code_version.__wrapped__() == known
    monkeypatch.setattr(provenance_module.subprocess, "run", no_git)
    assert provenance_module.code_version.__wrapped__() == known


@pytest.mark.slow
def test_a_checkpoint_keeps_the_hash_of_its_configuration_where_it_is_moved(tmp_path, tiny_model, dataset):
    hashes = set()
    for name in ("here", "there"):
        tiny_model.save_pretrained(tmp_path / name)
        config = type(tiny_model).from_pretrained(tmp_path / name).config
        hashes.add(provenance(config, dataset)["config_sha256"])
    config.num_regions = 1
    hashes.add(provenance(config, dataset)["config_sha256"])
    assert len(hashes) == 2


# ---- kept predictions

OFFSETS = (0.0, 0.3)


def score(model, processor, dataset, kept=None):
    return evaluate_model(model, processor, dataset, VOCABULARY, WHOLE, offsets=OFFSETS, kept=kept)


def keep(folder, **made_by):
    return KeptPredictions(folder, {"weights": "abc", **made_by}, VOCABULARY.class_names, OFFSETS)


@pytest.fixture
def counted(monkeypatch):
    """Pictures that went through the model."""
    calls, class_scores = [], evaluate.class_scores

    def count(*arguments):
        calls.append(1)
        return class_scores(*arguments)

    monkeypatch.setattr(evaluate, "class_scores", count)
    return calls


def test_an_evaluation_that_was_stopped_goes_on_to_the_same_scores(
    tiny_model, tiny_processor, dataset, tmp_path, counted, monkeypatch
):
    whole = score(tiny_model, tiny_processor, dataset)
    counted.clear()
    with monkeypatch.context() as patch:
        patch.setattr(evaluate, "predict", lambda *rest: stop_at_third(counted, *rest))
        with pytest.raises(KeyboardInterrupt):
            score(tiny_model, tiny_processor, dataset, keep(tmp_path))
    counted.clear()
    resumed = score(tiny_model, tiny_processor, dataset, keep(tmp_path))
    assert len(counted) == 1
    assert json.dumps(resumed) == json.dumps(whole)  # as text, in which NaN equals NaN


def stop_at_third(calls, *arguments, predict=evaluate.predict):
    if len(calls) == 3:
        raise KeyboardInterrupt
    return predict(*arguments)


@pytest.mark.slow
@pytest.mark.parametrize("harm", ["missing", "cut off", "of another size", "of another vocabulary"])
def test_a_kept_map_that_cannot_be_used_is_made_again(tiny_model, tiny_processor, dataset, tmp_path, counted, harm):
    whole = score(tiny_model, tiny_processor, dataset, keep(tmp_path))
    path = keep(tmp_path).path(1, 0.3)
    if harm == "missing":
        path.unlink()
    elif harm == "cut off":
        path.write_bytes(path.read_bytes()[:60])
    else:
        size = (48, 40) if harm == "of another vocabulary" else (4, 4)
        Image.fromarray(np.full(size, 9, np.uint8)).save(path)
    counted.clear()
    assert json.dumps(score(tiny_model, tiny_processor, dataset, keep(tmp_path))) == json.dumps(whole)
    assert len(counted) == 1
    with Image.open(path) as picture:
        assert picture.size == (40, 48)


def test_kept_maps_of_another_evaluation_are_refused_by_what_differs(tmp_path):
    keep(tmp_path, window=512)
    keep(tmp_path, window=512)
    with pytest.raises(ValueError, match=r"another evaluation: window was 512 and is 256; name another folder"):
        keep(tmp_path, window=256)
    with pytest.raises(ValueError, match=r"stride was None and is 426"):
        keep(tmp_path, window=512, stride=426)


@pytest.mark.parametrize("content", [None, "", "{"])
def test_maps_of_which_nothing_says_where_they_are_from_are_refused(tmp_path, content):
    keep(tmp_path).write(0, [np.zeros((2, 2), int)] * len(OFFSETS))
    (tmp_path / "made_by.json").unlink()
    if content is not None:
        (tmp_path / "made_by.json").write_text(content)
    with pytest.raises(ValueError, match=r"holds label maps, but no made_by\.json that can be read"):
        keep(tmp_path)


def test_pictures_that_changed_have_another_fingerprint():
    def fingerprint(color):
        rows = {"image": [Image.new("RGB", (4, 4), color)], "label": [Image.new("L", (4, 4))]}
        features = Features({"image": ImageFeature(), "label": ImageFeature()})
        return images_fingerprint(Dataset.from_dict(rows, features=features))

    assert fingerprint("red") == fingerprint("red") != fingerprint("blue")


def test_kept_maps_hold_more_ids_than_a_byte(tmp_path):
    kept = KeptPredictions(tmp_path, {}, [f"class {index}" for index in range(300)], [0.0])
    label_map = np.arange(300).reshape(15, 20)
    kept.write(7, [label_map])
    np.testing.assert_array_equal(kept.read(7, (15, 20))[0], label_map)
    assert [path.name for path in tmp_path.rglob("*.png")] == ["0000007.png"]


@pytest.mark.slow
def test_the_command_line_goes_on_from_kept_maps_unless_the_weights_changed(
    tmp_path, tiny_model, tiny_processor, scenes, counted, capsys
):
    for name in ("first", "second"):
        tiny_model.save_pretrained(tmp_path / name)
        tiny_processor.save_pretrained(tmp_path / name)
        tiny_model.decoder.layers[0].cross_attn.q_proj.weight.data += 1
    options = ["--dataset", str(scenes), "--class_names", "[cat, dog, sofa, grass]", "--unseen_classes", "[sofa]"]
    options += ["--short_side", "32", "--window", "0", "--num_images", "2", "--predictions", str(tmp_path / "maps")]
    assert main([str(tmp_path / "first"), *options]) == 0
    assert main([str(tmp_path / "first"), *options]) == 0
    assert len(counted) == 2
    assert len(list((tmp_path / "maps").rglob("*.png"))) == 4
    assert main([str(tmp_path / "second"), *options]) == 2
    assert "weights_sha256 was" in capsys.readouterr().err
