"""The task "zero-shot-image-segmentation": its calls, its masks, its kept embeddings, and where it is found."""

import copy
import io
import json
import os
import pickle
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HIDE_LDVC
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from transformers import pipeline
from transformers.pipelines import PIPELINE_REGISTRY
from transformers.pipelines.pt_utils import KeyDataset

from ldvc.model import pipeline_ldvc
from ldvc.model.inference_ldvc import InferenceSettings, segment
from ldvc.model.pipeline_ldvc import LISTS_KEPT, TASK, ZeroShotImageSegmentationPipeline
from ldvc.model.processing_ldvc import LDVCProcessor


NAMES = ["cat", "sofa", "grass"]
LISTS = [["cat", "sofa"], ["grass"], ["sky", "dog", "sofa"], ["cat", "sofa"], {"pet": ["cat", "dog"], "sky": ["sky"]}]


def picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PICTURES = [picture(*size, seed) for seed, size in enumerate([(56, 40), (24, 33), (40, 40), (64, 20), (31, 57)])]


@pytest.fixture
def pipe(make_model, tiny_processor):
    return pipeline(TASK, model=make_model(), processor=tiny_processor, device="cpu")


def labels_of(result):
    return [part["label"] for part in result]


def assert_same(first, second):
    """Both are lists of masks of one picture, the same up to rounding."""
    first, second = ({part["label"]: part for part in result} for result in (first, second))
    assert first.keys() == second.keys()
    for label, part in first.items():
        assert part["score"] == pytest.approx(second[label]["score"], abs=1e-4)
        assert (np.asarray(part["mask"]) == np.asarray(second[label]["mask"])).mean() > 0.999  # a tie may fall apart


def assert_all_same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert_same(one, other)


# ---- what one call returns


def test_masks_cover_the_picture_once_and_scores_are_mean_probabilities(pipe, tiny_processor):
    result = pipe(PICTURES[0], candidate_labels=NAMES)
    found = segment(pipe.model, tiny_processor, PICTURES[0], NAMES, return_scores=True)
    best = found.scores.amax(0)
    assert set(labels_of(result)) == {NAMES[index] for index in found.label_map.unique()}
    for part in result:
        assert part.keys() == {"label", "score", "mask"}
        assert part["mask"].mode == "L"
        assert part["mask"].size == PICTURES[0].size
        inside = found.label_map == NAMES.index(part["label"])
        assert np.array_equal(np.asarray(part["mask"]), inside.numpy() * np.uint8(255))
        assert part["score"] == pytest.approx(best[inside].mean().item(), abs=1e-5)


def test_the_best_score_comes_first_and_top_k_keeps_the_best(pipe):
    every = pipe(PICTURES[0], candidate_labels=["cat", "sofa", "grass", "sky", "dog"])
    assert len(every) > 2
    scores = [part["score"] for part in every]
    assert scores == sorted(scores, reverse=True)
    assert_same(pipe(PICTURES[0], candidate_labels=["cat", "sofa", "grass", "sky", "dog"], top_k=2), every[:2])


def test_pixels_below_the_threshold_belong_to_no_mask(pipe, tiny_processor):
    found = segment(pipe.model, tiny_processor, PICTURES[0], NAMES, top_k=1)
    threshold = found.top_scores.median().item()
    result = pipe(PICTURES[0], candidate_labels=NAMES, threshold=threshold)
    covered = sum(np.asarray(part["mask"]).astype(bool) for part in result)
    assert np.array_equal(covered, (found.top_scores[0] >= threshold).numpy())
    assert pipe(PICTURES[0], candidate_labels=NAMES, threshold=1.0) == []


def test_thresholds_may_differ_between_names(pipe):
    every = pipe(PICTURES[0], candidate_labels=NAMES)
    label = every[0]["label"]
    assert_same(pipe(PICTURES[0], candidate_labels=NAMES, threshold={label: 1.0}), every[1:])


def test_labels_come_as_string_list_dict_or_in_the_input(pipe):
    expected = pipe(PICTURES[0], candidate_labels=NAMES)
    for labels in ("cat, sofa,grass", tuple(NAMES)):
        assert_same(pipe(PICTURES[0], candidate_labels=labels), expected)
    assert_same(pipe({"image": PICTURES[0], "candidate_labels": NAMES}), expected)
    assert_same(pipe({"image": PICTURES[0]}, candidate_labels=NAMES), expected)
    assert_same(pipe({"image": PICTURES[0], "candidate_labels": NAMES}, candidate_labels=["dog"]), expected)
    synonyms = pipe(PICTURES[0], candidate_labels={"sofa": ["sofa", "couch"], "cat": ["cat"]})
    assert_same(pipe(PICTURES[0], candidate_labels="sofa | couch, cat"), synonyms)
    assert set(labels_of(synonyms)) <= {"sofa", "cat"}


def test_without_labels_the_default_vocabulary_is_used(make_model, tiny_processor):
    model = make_model(seen_score_offset=0.3, seen_classes=["sofa"])
    model.set_vocabulary(NAMES, tiny_processor, other_label="nothing")
    pipe = pipeline(TASK, model=model, processor=tiny_processor, device="cpu")
    found = segment(model, tiny_processor, PICTURES[0], top_k=1)
    result = pipe(PICTURES[0])
    assert set(labels_of(result)) == {NAMES[index] for index in found.label_map.unique()}
    for part in result:
        inside = found.label_map == NAMES.index(part["label"])
        assert part["score"] == pytest.approx(found.top_scores[0][inside].mean().item(), abs=1e-5)
    for window in (0, 32):  # "other" is no mask
        assert pipe(PICTURES[0], threshold=1.0, window=window) == []


def test_a_baked_vocabulary_needs_no_text_tower(make_model, tiny_processor):
    model = make_model()
    model.set_vocabulary(NAMES, tiny_processor)
    expected = pipeline(TASK, model=model, processor=tiny_processor, device="cpu")(PICTURES)
    model.set_vocabulary(NAMES, tiny_processor, bake=True)
    pipe = pipeline(TASK, model=model, processor=tiny_processor, device="cpu")
    assert_all_same(pipe(PICTURES, batch_size=2), expected)
    with pytest.raises(ValueError, match=r"has a baked vocabulary and no text tower .*; leave the names out"):
        pipe(PICTURES[0], candidate_labels=["dog"])


def test_a_default_vocabulary_of_another_copy_of_the_code_is_asked_for_too(pipe, tiny_processor, monkeypatch):
    """As in a published folder, where pipeline and model come from two copies of their siblings."""
    pipe.model.set_vocabulary(NAMES, tiny_processor)
    expected = pipe(PICTURES[0])
    monkeypatch.setattr(pipeline_ldvc, "DefaultVocabulary", type("Another", (), {}))
    assert_same(pipe(PICTURES[0]), expected)
    assert_same(pipe(PICTURES[0], window=40), pipe(PICTURES[0], window=40, candidate_labels=NAMES))


# ---- many pictures


@pytest.mark.parametrize("batch_size", [1, 2, 3])
@pytest.mark.parametrize("window", [0, 32])
def test_pictures_of_mixed_sizes_and_lists_equal_single_calls(pipe, batch_size, window):
    together = pipe(PICTURES, candidate_labels=LISTS, batch_size=batch_size, window=window)
    single = [
        pipe(image, candidate_labels=labels, window=window) for image, labels in zip(PICTURES, LISTS, strict=True)
    ]
    assert_all_same(together, single)


def test_one_list_serves_all_pictures_of_a_batch(pipe):
    single = [pipe(image, candidate_labels=NAMES) for image in PICTURES]
    assert_all_same(pipe(PICTURES, candidate_labels=NAMES, batch_size=4), single)
    assert_all_same(pipe(tuple(PICTURES), candidate_labels=NAMES), single)
    assert pipe([], candidate_labels=NAMES) == []


def test_a_batch_may_mix_labels_and_the_default_vocabulary(make_model, tiny_processor):
    model = make_model()
    model.set_vocabulary(NAMES, tiny_processor)
    pipe = pipeline(TASK, model=model, processor=tiny_processor, device="cpu")
    inputs = [{"image": PICTURES[0], "candidate_labels": ["dog", "sky"]}, {"image": PICTURES[1]}, PICTURES[2]]
    expected = [pipe(PICTURES[0], candidate_labels=["dog", "sky"]), pipe(PICTURES[1]), pipe(PICTURES[2])]
    assert_all_same(pipe(inputs, batch_size=3), expected)


def test_a_processor_that_keeps_the_aspect_batches_too(make_model, clip_folder):
    processor = LDVCProcessor.from_clip_pretrained(clip_folder, size={"shortest_edge": 24})
    pipe = pipeline(TASK, model=make_model(), processor=processor, device="cpu")
    single = [pipe(image, candidate_labels=NAMES) for image in PICTURES]
    assert_all_same(pipe(PICTURES, candidate_labels=NAMES, batch_size=3), single)


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / f"{index}.png" for index in range(3)]
    for path, image in zip(paths, PICTURES, strict=False):
        image.save(path)
    return [str(path) for path in paths]


def rows(files):
    return Dataset.from_dict({"image": files}, features=Features({"image": ImageFeature()}))


STREAMS = {
    "files": lambda files: files,
    "files and pictures": lambda files: [Path(files[0]), *PICTURES[1:3]],
    "tuple": tuple,
    "generator": lambda files: (file for file in files),
    "generator of dicts": lambda files: ({"image": file} for file in files),
    "iterator": lambda files: map(str, files),
    "key dataset": lambda files: KeyDataset(rows(files), "image"),
    "dataset": rows,
    "column": lambda files: rows(files)["image"],
    "streamed dataset": lambda files: rows(files).to_iterable_dataset(),
}


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2])
@pytest.mark.parametrize("kind", STREAMS)
def test_lists_generators_and_datasets_give_a_result_per_picture(pipe, files, kind, batch_size):
    expected = [pipe(image, candidate_labels=NAMES) for image in PICTURES[:3]]
    assert_all_same(pipe(STREAMS[kind](files), candidate_labels=NAMES, batch_size=batch_size), expected)


def test_one_picture_comes_as_path_or_array(pipe, files):
    expected = pipe(PICTURES[0], candidate_labels=NAMES)
    for image in (files[0], Path(files[0]), np.asarray(PICTURES[0])):
        assert_same(pipe(image, candidate_labels=NAMES), expected)


def test_generators_are_read_as_results_are_asked_for(pipe):
    taken = []

    def images():
        for image in PICTURES:
            taken.append(image)
            yield image

    results = pipe(images(), candidate_labels=NAMES)
    next(iter(results))
    assert len(taken) < len(PICTURES)


def test_rows_may_bring_their_own_labels(pipe):
    inputs = [{"image": image, "candidate_labels": labels} for image, labels in zip(PICTURES, LISTS, strict=True)]
    expected = pipe(PICTURES, candidate_labels=LISTS)
    assert_all_same(pipe(inputs, batch_size=2), expected)
    assert_all_same(pipe((row for row in inputs), batch_size=2), expected)
    assert_all_same(pipe([{"image": image} for image in PICTURES], candidate_labels=LISTS), expected)


def test_thresholds_by_name_may_name_classes_of_other_pictures(pipe):
    lists, thresholds = [["cat", "dog"], ["sofa", "grass"]], {"cat": 1.0, "sofa": 0.0}
    first, second = pipe(PICTURES[:2], candidate_labels=lists, threshold=thresholds)
    assert [part["label"] for part in first] != ["cat"]
    assert_same(second, pipe(PICTURES[1], candidate_labels=lists[1]))
    with pytest.raises(ValueError, match="names 'sofa', which is no class of this call"):
        pipe(PICTURES[0], candidate_labels=lists[0], threshold=thresholds)


def test_options_given_at_construction_hold_until_a_call_overrides_them(make_model, tiny_processor):
    options = {"candidate_labels": NAMES, "top_k": 1, "window": 32, "stride": 16}
    pipe = pipeline(TASK, model=make_model(), processor=tiny_processor, device="cpu", **options)
    assert_same(pipe(PICTURES[0]), pipe(PICTURES[0], candidate_labels=NAMES, top_k=1, window=32, stride=16))
    assert len(pipe(PICTURES[0], top_k=3, window=0)) > 1


def test_urls_wait_no_longer_than_the_timeout(pipe, monkeypatch):
    waited = []

    def read(source, timeout=None):
        waited.append((source, timeout))
        content = io.BytesIO()
        PICTURES[0].save(content, "PNG")
        return content.getvalue()

    monkeypatch.setattr("ldvc.model.image_processing_ldvc.read_source", read)
    result = pipe("https://example.org/picture.png", candidate_labels=NAMES, timeout=3.5)
    assert waited == [("https://example.org/picture.png", 3.5)]
    assert_same(result, pipe(PICTURES[0], candidate_labels=NAMES))


@pytest.mark.parametrize("window", [0, 32])
def test_classes_that_trained_with_masks_lose_the_offset_whatever_names_them(make_model, tiny_processor, window):
    model = make_model(seen_score_offset=0.3, seen_classes=["Sofa"])
    model.set_vocabulary(["cat", "sofa"], tiny_processor)
    pipe = pipeline(TASK, model=model, processor=tiny_processor, device="cpu")
    expected = pipe(PICTURES[:2], window=window)
    assert_all_same(pipe(PICTURES[:2], candidate_labels="cat, sofa", window=window, batch_size=2), expected)
    by_synonym = pipe(PICTURES[0], candidate_labels={"cat": ["cat"], "seat": ["sofa"]}, window=window)
    assert [part["score"] for part in by_synonym] == pytest.approx([part["score"] for part in expected[0]], abs=1e-4)
    model.config.seen_score_offset = 0.0
    plain = pipe(PICTURES[0], candidate_labels="cat, sofa", window=window)
    assert [part["score"] for part in plain] != pytest.approx([part["score"] for part in expected[0]], abs=1e-4)


# ---- large pictures


def test_windows_segment_as_one_call_of_segment_does(pipe, tiny_processor):
    settings = InferenceSettings(short_side=48, window=32, stride=20)
    found = segment(pipe.model, tiny_processor, PICTURES[0], NAMES, settings=settings, top_k=1)
    result = pipe(PICTURES[0], candidate_labels=NAMES, window=32, stride=20, short_side=48)
    for part in result:
        inside = found.label_map == NAMES.index(part["label"])
        assert np.array_equal(np.asarray(part["mask"], dtype=bool), inside.numpy())
        assert part["score"] == pytest.approx(found.top_scores[0][inside].mean().item(), abs=1e-5)
    assert len(result) == len(found.label_map.unique())


def test_the_stride_is_five_sixths_of_the_window_where_none_is_given(pipe, monkeypatch):
    seen = []
    monkeypatch.setattr(
        pipeline_ldvc, "segment", lambda *call, settings, **options: seen.append(settings) or segment(*call, **options)
    )
    pipe(PICTURES[0], candidate_labels=NAMES, window=512)
    pipe(PICTURES[0], candidate_labels=NAMES, window=30)
    assert seen == [InferenceSettings(0, 512, 426), InferenceSettings(0, 30, 25)]


def test_progress_over_windows_is_shown_when_asked_for(pipe, capsys):
    pipe(PICTURES[0], candidate_labels=NAMES, window=32)
    assert "windows" not in capsys.readouterr().err
    pipe(PICTURES[0], candidate_labels=NAMES, window=32, show_progress=True)
    assert "windows: 100%" in capsys.readouterr().err


# ---- class embeddings


@pytest.fixture
def encoded(pipe, monkeypatch):
    """Return a list that grows by the number of prompts whenever the text tower runs."""
    counts, encode = [], pipe.model.get_class_embeds
    monkeypatch.setattr(
        pipe.model,
        "get_class_embeds",
        lambda input_ids, *more, **options: counts.append(len(input_ids)) or encode(input_ids, *more, **options),
    )
    return counts


def test_a_label_list_is_encoded_once(pipe, encoded):
    pipe(PICTURES, candidate_labels=NAMES)
    pipe(PICTURES[1], candidate_labels="cat, sofa, grass")
    pipe(PICTURES, candidate_labels=NAMES, batch_size=2, window=32)
    assert encoded == [3]
    pipe(PICTURES, candidate_labels=LISTS, batch_size=5)
    assert encoded == [3, 2, 1, 3, 3]
    pipe(PICTURES, candidate_labels=LISTS)
    assert encoded == [3, 2, 1, 3, 3]


def test_the_lists_used_last_are_kept(pipe, encoded):
    pipe(PICTURES[0], candidate_labels=["cat"])
    for index in range(LISTS_KEPT):
        pipe(PICTURES[0], candidate_labels=[f"label {index}"])
    assert len(encoded) == LISTS_KEPT + 1
    pipe(PICTURES[0], candidate_labels=["label 0"])
    assert len(encoded) == LISTS_KEPT + 1
    pipe(PICTURES[0], candidate_labels=["cat"])
    assert len(encoded) == LISTS_KEPT + 2


def change_text_prompts(pipe):
    with torch.no_grad():
        pipe.model.text_prompts.tokens.mul_(-1)


def change_clip(pipe):
    with torch.no_grad():
        pipe.model.clip.text_projection.weight.add_(torch.randn_like(pipe.model.clip.text_projection.weight))


def load_other_weights(pipe):
    weights = {name: weight.clone() for name, weight in pipe.model.state_dict().items()}
    weights["text_prompts.tokens"] += 1
    pipe.model.load_state_dict(weights)


@pytest.mark.parametrize("change", [change_text_prompts, change_clip, load_other_weights])
def test_kept_embeddings_are_never_those_of_other_weights(pipe, encoded, change):
    before = pipe(PICTURES[0], candidate_labels=NAMES)
    change(pipe)
    after = pipe(PICTURES[0], candidate_labels=NAMES)
    assert encoded == [3, 3]
    fresh = pipeline(TASK, model=pipe.model, processor=pipe.processor, device="cpu")
    assert_same(after, fresh(PICTURES[0], candidate_labels=NAMES))
    assert [part["score"] for part in before] != [part["score"] for part in after]


def test_kept_embeddings_are_never_those_of_another_template(make_model, clip_folder, tiny_processor):
    model = make_model(num_text_prompts=0)
    processor = LDVCProcessor.from_clip_pretrained(clip_folder, size=32)
    pipe = pipeline(TASK, model=model, processor=processor, device="cpu")
    before = pipe(PICTURES[0], candidate_labels=NAMES)
    processor.prompt_templates = ["grass {}"]
    after = pipe(PICTURES[0], candidate_labels=NAMES)
    fresh = pipeline(TASK, model=model, processor=processor, device="cpu")
    assert_same(after, fresh(PICTURES[0], candidate_labels=NAMES))
    assert [part["score"] for part in before] != [part["score"] for part in after]


def test_the_same_words_under_other_names_are_another_list(pipe):
    assert set(labels_of(pipe(PICTURES[0], candidate_labels={"a": ["cat"], "b": ["sofa"]}))) <= {"a", "b"}
    assert set(labels_of(pipe(PICTURES[0], candidate_labels={"b": ["cat"], "a": ["sofa"]}))) <= {"a", "b"}
    first = pipe(PICTURES[0], candidate_labels={"a": ["cat"], "b": ["sofa"]})
    second = pipe(PICTURES[0], candidate_labels={"b": ["cat"], "a": ["sofa"]})
    swapped = [{**part, "label": {"a": "b", "b": "a"}[part["label"]]} for part in second]
    assert_same(first, swapped)


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, lambda pipe: pickle.loads(pickle.dumps(pipe))], ids=["copy", "pickle"]
)
def test_a_copy_of_the_pipeline_segments_alike(pipe, copied):
    expected = pipe(PICTURES[0], candidate_labels=NAMES)
    assert_same(copied(pipe)(PICTURES[0], candidate_labels=NAMES), expected)
    assert_same(pipe(PICTURES[0], candidate_labels=NAMES), expected)


# ---- registered, saved, found


def test_importing_ldvc_registers_the_task_once():
    import ldvc  # noqa: F401

    assert PIPELINE_REGISTRY.supported_tasks[TASK]["impl"] is ZeroShotImageSegmentationPipeline


def test_a_saved_folder_needs_no_remote_code_where_the_task_is_registered(pipe, tmp_path):
    pipe.model.save_pretrained(tmp_path)
    pipe.processor.save_pretrained(tmp_path)
    again = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert type(again) is ZeroShotImageSegmentationPipeline
    assert_same(again(PICTURES[0], candidate_labels=NAMES), pipe(PICTURES[0], candidate_labels=NAMES))


def test_a_saved_pipeline_keeps_its_processor(make_model, clip_folder, tmp_path):
    processor = LDVCProcessor.from_clip_pretrained(clip_folder, size=24, prompt_templates=["a {}", "the {}"])
    pipe = pipeline(TASK, model=make_model(num_text_prompts=0), processor=processor, device="cpu")
    pipe.save_pretrained(tmp_path)
    again = pipeline(TASK, model=str(tmp_path), device="cpu")
    assert again.processor.prompt_templates == ["a {}", "the {}"]
    assert again.processor.image_processor.size == {"height": 24, "width": 24}
    assert_same(again(PICTURES[0], candidate_labels=NAMES), pipe(PICTURES[0], candidate_labels=NAMES))


REMOTE = (
    HIDE_LDVC
    + """
import numpy as np
from transformers import pipeline

folder, again, *images = sys.argv[1:]
call = {"candidate_labels": [["cat", "sofa"], "grass, sky"], "batch_size": 2, "threshold": 0.1}
found = {}
for name, place, task in (("published", folder, None), ("again", again, "zero-shot-image-segmentation")):
    pipe = pipeline(task, model=place, trust_remote_code=True, device="cpu")
    results = pipe(images, **call) + pipe(images, **call, window=32)
    found[name] = [[[p["label"], p["score"], int(np.asarray(p["mask"]).sum())] for p in r] for r in results]
    found[name + " module"] = type(pipe).__module__.split(".")[0]
    pipe.model.save_pretrained(again)
    pipe.save_pretrained(again)
print(json.dumps(found))
"""
)


@pytest.mark.slow
def test_a_published_folder_works_where_ldvc_is_not_installed(pipe, files, tmp_path):
    pipe.model.save_pretrained(tmp_path / "published.v1")
    pipe.processor.save_pretrained(tmp_path / "published.v1")
    environment = {
        **os.environ,
        "PYTHONPATH": "",
        "PYTHONSAFEPATH": "1",
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
    }
    done = subprocess.run(
        [sys.executable, "-c", REMOTE, str(tmp_path / "published.v1"), str(tmp_path / "again"), *files[:2]],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    call = {"candidate_labels": [["cat", "sofa"], "grass, sky"], "threshold": 0.1}
    for name in ("published", "again"):
        assert found[f"{name} module"] == "transformers_modules"
        for result, expected in zip(
            found[name], pipe(files[:2], **call) + pipe(files[:2], **call, window=32), strict=True
        ):
            assert [part[0] for part in result] == labels_of(expected)
            for (_, score, total), part in zip(result, expected, strict=True):
                assert score == pytest.approx(part["score"], abs=1e-4)
                assert total == pytest.approx(np.asarray(part["mask"]).sum(), rel=0.01)


# ---- bad input

BAD = {
    "empty list": ({"candidate_labels": []}, ValueError, "`candidate_labels` is empty; give at least one label"),
    "empty label": ({"candidate_labels": ["cat", " "]}, ValueError, "the class name ' ' is empty"),
    "label between commas": ({"candidate_labels": "cat,,dog"}, ValueError, "the class name '' is empty"),
    "labels twice": ({"candidate_labels": ["cat", "cat"]}, ValueError, "'cat' is given twice"),
    "labels twice in a string": ({"candidate_labels": "cat, sofa, Cat"}, ValueError, "'Cat' is given twice"),
    "synonym twice": ({"candidate_labels": "cat|dog, dog"}, ValueError, "'dog'"),
    "number": ({"candidate_labels": 7}, TypeError, "`candidate_labels` is 7, a int; give a string"),
    "numbers": ({"candidate_labels": [1, 2]}, TypeError, "the class name 1 is a int"),
    "long label": ({"candidate_labels": ["sofa " * 300]}, ValueError, "the text tower reads 77; shorten it"),
    "lists for one picture": ({"candidate_labels": [["cat"]]}, ValueError, "goes with a list of pictures only"),
    "nothing": ({}, ValueError, "no default vocabulary; .* `candidate_labels`"),
    "threshold": ({"candidate_labels": NAMES, "threshold": 2}, ValueError, "`threshold` is 2; it is a probability"),
    "stranger": ({"candidate_labels": NAMES, "threshold": {"dog": 0.1}}, ValueError, "names 'dog', which is no class"),
    "top_k": ({"candidate_labels": NAMES, "top_k": 0}, ValueError, "`top_k` is 0; it is the number of masks"),
    "window": ({"candidate_labels": NAMES, "window": -5}, ValueError, "window is -5; use pixels"),
    "stride": (
        {"candidate_labels": NAMES, "window": 32, "stride": 40},
        ValueError,
        "stride is 40; with a window of 32",
    ),
    "window in words": (
        {"candidate_labels": NAMES, "window": "64"},
        ValueError,
        "window is '64'; use a whole number",
    ),
    "stride alone": ({"candidate_labels": NAMES, "stride": 9}, ValueError, "`stride` is 9, but there is no `window`"),
    "unknown option": ({"candidate_labels": NAMES, "colour": "red"}, TypeError, "colour"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_calls_are_refused_with_value_and_remedy(pipe, case):
    options, error, message = BAD[case]
    with pytest.raises(error, match=message):
        pipe(PICTURES[0], **options)


def test_a_folder_is_no_picture(pipe, tmp_path):
    with pytest.raises(ValueError, match="is a folder; give its files one by one, or use `ldvc segment`"):
        pipe(str(tmp_path), candidate_labels=NAMES)


def test_lists_must_be_one_per_picture(pipe):
    with pytest.raises(ValueError, match="2 lists for 3 pictures; give one each"):
        pipe(PICTURES[:3], candidate_labels=[["cat"], ["dog"]])
    with pytest.raises(ValueError, match=re.escape('generator give {"image": ..., "candidate_labels": ...}')):
        pipe((image for image in PICTURES[:2]), candidate_labels=[["cat"], ["dog"]])
    with pytest.raises(ValueError, match="`candidate_labels` is empty"):
        pipe(PICTURES[:2], candidate_labels=[["cat"], []])


def test_unreadable_inputs_are_named(pipe, tmp_path):
    (tmp_path / "text.png").write_text("no picture")
    for image, message in (
        (str(tmp_path / "text.png"), "text.png' cannot be read as an image"),
        ("nowhere.png", "'nowhere.png' cannot be read as an image: no such file"),
        ({"picture": PICTURES[0]}, "an input has the keys 'picture'; it needs \"image\""),
        (7, "a int is no image"),
    ):
        with pytest.raises(ValueError, match=message):
            pipe(image, candidate_labels=NAMES)


def test_a_model_in_training_mode_is_refused(pipe):
    pipe.model.train()
    with pytest.raises(ValueError, match="training mode"):
        pipe(PICTURES[0], candidate_labels=NAMES)
