"""A default vocabulary keeps its own names, and an answer has names and scores of one vocabulary alone."""

import json
import shutil
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from torch.utils.data import Dataset
from transformers import pipeline

from ldvc.model.configuration_ldvc import LDVCConfig
from ldvc.model.inference_ldvc import InferenceSettings, prepare_picture, segment, segment_batch
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.pipeline_ldvc import TASK


FIRST, SECOND = ["cat", "sky"], ["grass", "dog"]
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8))


@pytest.fixture
def pipe(make_model, tiny_processor):
    model = make_model(seen_classes=["cat", "grass"], seen_score_offset=0.2)
    return pipeline(TASK, model=model, processor=tiny_processor, device="cpu")


def told(result):
    return [(part["label"], round(part["score"], 4)) for part in result]


# ---- its own names


@pytest.fixture
def folder(tmp_path, make_model, tiny_processor):
    model = make_model(seen_classes=["cat"], seen_score_offset=0.2)
    model.set_vocabulary(["cat", "sky", "grass"], tiny_processor, other_label="other")
    model.save_pretrained(tmp_path / "model")
    tiny_processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def before_december(folder):
    """The folder as it was saved before a vocabulary kept its own names."""
    old = shutil.copytree(folder, folder.with_name("old"))
    config = json.loads((old / "config.json").read_text())
    del config["vocabulary_names"], config["vocabulary_templates"]
    (old / "config.json").write_text(json.dumps(config))
    return old


def test_the_configuration_holds_the_names_beside_the_tokens(folder):
    config = json.loads((folder / "config.json").read_text())
    assert config["vocabulary_names"] == ["cat", "sky", "grass"]
    assert config["vocabulary_templates"] == ["a photo of a {}"]
    assert len(config["class_token_ids"]) == 3


def test_a_checkpoint_without_names_of_its_own_has_those_of_id2label(folder):
    loaded = LDVCForSemanticSegmentation.from_pretrained(before_december(folder))
    assert loaded.config.default_class_names == ["cat", "sky", "grass"]
    embedded = LDVCConfig.from_pretrained("picturebook/ldvc")
    assert embedded.default_class_names == list(embedded.id2label.values())


@pytest.mark.parametrize("of", [lambda folder: folder, before_december], ids=["now", "before"])
def test_names_in_another_order_are_refused_on_loading(folder, of):
    names = {0: "grass", 1: "sky", 2: "cat", 3: "other"}
    message = (
        r"`id2label` calls the class 0 'grass', but in the default vocabulary that is class 2, and class 0 is 'cat'"
    )
    with pytest.raises(ValueError, match=message):
        LDVCForSemanticSegmentation.from_pretrained(of(folder), id2label=names)


@torch.no_grad()
def test_names_in_another_order_are_refused_by_the_next_call_and_on_saving(folder, tmp_path, pixel_values):
    model = LDVCForSemanticSegmentation.from_pretrained(folder)
    model.config.id2label = {0: "sky", 1: "cat", 2: "grass", 3: "other"}
    with pytest.raises(ValueError, match=r"calls the class 0 'sky'.* another order is not: use `set_vocabulary`"):
        model(pixel_values)
    with pytest.raises(StrictDataclassError, match="calls the class 0 'sky'"):
        model.save_pretrained(tmp_path / "again")


@torch.no_grad()
def test_other_words_for_the_classes_change_no_answer_but_what_the_stock_pipeline_calls_them(
    folder, tiny_processor, pixel_values
):
    model = LDVCForSemanticSegmentation.from_pretrained(folder).eval()
    before = model(pixel_values)
    own = pipeline(TASK, model=model, processor=tiny_processor, device="cpu")
    stock = pipeline("image-segmentation", model=model, image_processor=tiny_processor.image_processor)
    answers, stock_answers = told(own(PICTURE)), stock(PICTURE)
    german = {"cat": "Katze", "sky": "Himmel", "grass": "Gras", "other": "Rest"}
    model.config.id2label = {index: german[name] for index, name in model.config.id2label.items()}
    after = model(pixel_values)
    assert before.class_score_offsets[0].tolist() == pytest.approx([0.2, 0, 0])
    assert torch.equal(after.class_score_offsets, before.class_score_offsets)
    assert torch.equal(after.logits, before.logits)
    assert told(own(PICTURE)) == answers
    assert segment(model, tiny_processor, PICTURE, threshold=0.5).class_names == ["cat", "sky", "grass", "other"]
    assert [part["label"] for part in stock(PICTURE)] == [german[part["label"]] for part in stock_answers]


def test_names_without_tokens_or_of_another_number_are_refused():
    for fields in (
        {"vocabulary_names": ["a", "b"]},
        {"vocabulary_names": ["a", "b"], "class_token_ids": [[1]], "id2label": {0: "a"}},
    ):
        with pytest.raises(StrictDataclassError, match=r"`vocabulary_names` has 2 names for the [01] classes"):
            LDVCConfig(**fields)


def test_an_adapter_brings_the_names_and_an_old_one_those_of_its_id2label(folder, make_model, tmp_path):
    LDVCForSemanticSegmentation.from_pretrained(folder).save_adapter(tmp_path / "adapter")
    for is_old in (False, True):
        path = tmp_path / "adapter" / "ldvc_adapter.json"
        if is_old:
            content = json.loads(path.read_text())
            del content["config"]["vocabulary_names"], content["config"]["vocabulary_templates"]
            path.write_text(json.dumps(content))
        model = make_model()
        model.load_adapter_weights(tmp_path / "adapter")
        assert model.config.default_class_names == ["cat", "sky", "grass"]


# ---- one vocabulary per answer


class Same(Dataset):
    """One picture, several times."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return PICTURE


@pytest.mark.parametrize(("num_workers", "batch_size"), [(0, 1), (0, 2), (1, 1), (1, 2)])
@pytest.mark.parametrize("bake", [False, True])
def test_a_vocabulary_set_while_a_stream_runs_mixes_no_answer(pipe, num_workers, batch_size, bake):
    model, processor = pipe.model, pipe.processor
    vocabularies = [model.encode_vocabulary(names, processor) for names in (FIRST, SECOND)]
    right = []
    for vocabulary in vocabularies:
        model.set_vocabulary(vocabulary, bake=bake)
        right.append(told(pipe(PICTURE)))
    model.set_vocabulary(vocabularies[0])
    seen = []
    for result in pipe(Same(), batch_size=batch_size, num_workers=num_workers):
        seen.append(told(result))
        if len(seen) == 1:
            model.set_vocabulary(vocabularies[1])
    assert len(seen) == 6
    assert seen[0] == right[0]
    assert all(answer in right for answer in seen)


def test_threads_that_ask_while_one_sets_vocabularies_get_answers_of_one(pipe, monkeypatch):
    model, processor = pipe.model, pipe.processor
    vocabularies = [model.encode_vocabulary(names, processor) for names in (FIRST, SECOND)]
    right = []
    for vocabulary in vocabularies:
        model.set_vocabulary(vocabulary)
        found = segment(model, processor, PICTURE, return_scores=True)
        right.append((told(pipe(PICTURE)), found.class_names, found.scores.sum().item()))
    stop = threading.Event()

    def set_again_and_again():
        while not stop.is_set():
            for vocabulary in vocabularies:
                model.set_vocabulary(vocabulary)

    def ask(index):
        if index % 2:
            return told(pipe(PICTURE)) in [answer for answer, _, _ in right]
        found = segment(model, processor, PICTURE, return_scores=True)
        return any(
            found.class_names == names and found.scores.sum().item() == pytest.approx(total, rel=1e-4)
            for _, names, total in right
        )

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    setter = threading.Thread(target=set_again_and_again)
    setter.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, range(24)))
    finally:
        stop.set()
        setter.join()
        sys.setswitchinterval(interval)
    assert all(answers)


@pytest.mark.parametrize("settings", [None, InferenceSettings(0, 32)])
def test_pictures_of_one_call_have_one_vocabulary(pipe, settings):
    model, processor = pipe.model, pipe.processor
    model.set_vocabulary(FIRST, processor)
    expected = segment(model, processor, PICTURE, settings=settings, return_scores=True)
    pictures = [prepare_picture(processor, PICTURE, settings)] * 3
    results = segment_batch(model, processor, pictures, settings=settings, return_scores=True)
    found = [next(results)]
    model.set_vocabulary(SECOND, processor)
    found += results
    for one in found:
        assert one.class_names == FIRST
        torch.testing.assert_close(one.scores, expected.scores)


@pytest.mark.parametrize("is_inference", [False, True])
def test_many_threads_may_ask_for_many_lists(make_model, tiny_processor, is_inference):
    with torch.inference_mode(is_inference):
        model = make_model()  # in inference mode, weights have no versions, and nothing is kept
        model.set_vocabulary(FIRST, tiny_processor)
    pipe = pipeline(TASK, model=model, processor=tiny_processor, device="cpu")
    lists = [["cat"], ["sky", "dog"], ["grass", "cat", "sofa"], None] * 6
    expected = [told(pipe(PICTURE, candidate_labels=names)) for names in lists[:4]] * 6
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(lambda names: told(pipe(PICTURE, candidate_labels=names)), lists)) == expected
