"""The embedded world: determinism, label integrity, the split, the tokenizer and the committed CLIP folder."""

import json
import shutil

import numpy as np
import pytest
import torch

from picturebook import (
    CLASS_NAMES,
    NUM_THINGS,
    TUNING_UNSEEN_NAMES,
    UNSEEN_NAMES,
    WORLDS,
    class_id,
    draw_scene,
    load_pages,
    load_picturebook,
)
from picturebook.bpe import build_tokenizer
from picturebook.clip_folder import (
    CLIP_FOLDER,
    build_clip,
    check_clip_folder,
    load_clip_folder,
    resize_positions,
    save_clip_folder,
)
from picturebook.oracle import score_oracle
from picturebook.pages import Views, draw_pool, sample_views
from picturebook.pretrain_clip import PretrainConfig, Stage, Trainer, contrastive_loss, find_true_pairs
from picturebook.vocabulary import STUFF_NAMES, THING_NAMES, write_caption
from picturebook.zero_shot import average_precision, draw_quiz, score_clip


needs_clip_folder = pytest.mark.skipif(not CLIP_FOLDER.is_dir(), reason="picturebook/clip is not made yet")


def named_classes(caption: str, world: str = "plain") -> set[int]:
    """Ids of the class names that occur as words in a caption."""
    text = f" {caption.replace(',', ' ')} "
    return {i for i, name in enumerate(WORLDS[world].class_names) if f" {name} " in text}


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_names_and_splits_are_disjoint_and_exhaustive():
    assert len(CLASS_NAMES) == len(set(CLASS_NAMES)) == NUM_THINGS + len(STUFF_NAMES)
    assert CLASS_NAMES[:NUM_THINGS] == THING_NAMES
    assert NUM_THINGS >= 16
    assert len(STUFF_NAMES) >= 5
    for names in (UNSEEN_NAMES, TUNING_UNSEEN_NAMES):
        assert sum(name in THING_NAMES for name in names) == 4
        assert sum(name in STUFF_NAMES for name in names) == 1
    assert not set(UNSEEN_NAMES) & set(TUNING_UNSEEN_NAMES)


def test_split_is_the_one_of_all_reported_scores():
    assert UNSEEN_NAMES == ("fish", "cat", "heart", "cup", "water")
    assert TUNING_UNSEEN_NAMES == ("tree", "rocket", "mushroom", "bird", "wood")


def test_page_is_a_function_of_split_seed_and_index():
    first, again = draw_scene("train", 3, 5), draw_scene("train", 3, 5)
    assert np.array_equal(first.image, again.image)
    assert np.array_equal(first.label, again.label)
    assert first.caption == again.caption
    for other in (("train", 3, 6), ("train", 4, 5), ("test", 3, 5), ("validation", 3, 5), ("pretrain", 3, 5)):
        assert not np.array_equal(first.image, draw_scene(*other).image)


def test_pages_do_not_depend_on_how_many_are_asked_for():
    few, many = load_picturebook("test", 2, seed=1), load_picturebook("test", 4, seed=1)
    for index in range(2):
        assert np.array_equal(few[index]["image"], many[index]["image"])
        assert np.array_equal(few[index]["label"], many[index]["label"])
        assert few[index]["caption"] == many[index]["caption"]


@pytest.mark.slow
@pytest.mark.parametrize("world", list(WORLDS))
@pytest.mark.parametrize("split", ["pretrain", "train", "validation", "test"])
def test_labels_and_captions_agree(split, world):
    num_classes, num_things = len(WORLDS[world].class_names), len(WORLDS[world].thing_names)
    for index in range(12):
        scene = draw_scene(split, 0, index, world=world)
        ids = set(np.unique(scene.label).tolist())
        assert scene.label.dtype == np.uint8
        assert scene.label.shape == (128, 128)
        assert max(ids) < num_classes
        assert named_classes(scene.caption, world) <= set(scene.class_ids) <= ids
        assert named_classes(scene.caption, world)
        assert any(i >= num_things for i in ids)
        assert len([i for i in ids if i < num_things]) <= 3


@pytest.mark.slow
def test_every_class_is_drawn():
    seen = {i for index in range(90) for i in draw_scene("train", 0, index, image_size=32).class_ids}
    assert seen == set(range(len(CLASS_NAMES)))


@pytest.mark.slow
def test_compositional_pretraining_never_shows_the_held_out_pairs():
    held_out = {class_id(name, "compositional") for name in WORLDS["compositional"].unpictured_names}
    for index in range(60):
        assert not held_out & set(np.unique(draw_scene("pretrain", 0, index, 32, "compositional").label).tolist())


def test_a_page_is_a_row_of_image_label_and_caption():
    row = load_picturebook("train", 1, image_size=64)[0]
    assert list(row) == ["image", "label", "caption"]
    assert row["image"].mode == "RGB"
    assert row["image"].size == (64, 64)
    assert row["label"].mode == "L"
    assert row["label"].size == (64, 64)


def test_a_configuration_draws_the_same_pages_larger():
    small, large = load_pages("test", 1, 3)[0], load_pages("test", 1, 3, "256px")[0]
    assert (small["label"].size, large["label"].size) == ((128, 128), (256, 256))
    labels = [np.asarray(page["label"]) for page in (small, large)]
    assert (labels[0] == labels[1][::2, ::2]).mean() > 0.95


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: load_picturebook("dev", 1), "unknown picturebook split 'dev'; choose one of 'pretrain'"),
        (lambda: load_picturebook("train", 0), "num_images is 0; ask for at least one"),
        (lambda: load_picturebook("train", 1, image_size=7), "image_size 7 is below one patch; use at least 8"),
        (lambda: load_picturebook("train", 1, seed=-1), "seed -1 and index 0 must not be negative"),
        (
            lambda: load_pages("train", 1, 0, "large"),
            "the picturebook has no configuration 'large'; give a side in pixels such as '256px'",
        ),
        (
            lambda: load_picturebook("train", 1, world="flat"),
            "unknown picturebook world 'flat'; choose one of 'plain'",
        ),
        (lambda: draw_scene("train", 0, 0, kind="map"), "unknown kind of page 'map'; choose one of 'object'"),
        (lambda: class_id("dog"), "has no class 'dog'; choose from CLASS_NAMES: car"),
    ],
)
def test_bad_input_is_named_with_its_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_captions_use_the_prompt_of_the_model():
    rng = np.random.default_rng(0)
    captions = {write_caption([0], rng)[0] for _ in range(60)}
    assert "a photo of a car" in captions
    assert len(captions) > 5


def test_tokenizer_reads_any_text(tokenizer):
    assert all(len(tokenizer.tokenize(name)) == 1 for name in CLASS_NAMES)
    assert (
        tokenizer.decode(tokenizer("A Photo of a CACTUS").input_ids, skip_special_tokens=True) == "a photo of a cactus"
    )
    odd = tokenizer("zürich 🙂 42").input_ids
    assert tokenizer.decode(odd, skip_special_tokens=True).replace(" ", "") == "zürich🙂42"
    assert odd[0] == tokenizer.bos_token_id
    assert odd[-1] == tokenizer.eos_token_id == tokenizer.pad_token_id != 2


def test_every_true_pair_counts_in_the_contrastive_loss():
    visible = np.array([[True, True, False], [False, True, True]])
    named = np.array([[False, True, False], [False, False, True]])
    is_true = find_true_pairs(Views(np.zeros((2, 8, 8, 3), np.uint8), ["b", "c"], visible, named))
    assert is_true.tolist() == [[True, False], [True, True]]
    embeds, scale = torch.eye(2), torch.tensor(2.0)
    diagonal = contrastive_loss(embeds, embeds, scale, torch.eye(2, dtype=torch.bool))
    clip = torch.nn.functional.cross_entropy(scale.exp() * embeds, torch.arange(2))
    assert torch.allclose(diagonal, clip, atol=1e-6)
    assert contrastive_loss(embeds, embeds, scale, torch.ones(2, 2, dtype=torch.bool)) < 1e-6


def test_average_precision_is_that_reckoned_by_hand():
    assert average_precision(np.array([3.0, 2.0, 1.0]), np.array([True, False, True])) == pytest.approx(
        (1 + 2 / 3) / 2
    )
    assert np.isnan(average_precision(np.zeros(2), np.zeros(2, bool)))


def test_resized_positions_stay_consistent(tokenizer):
    model = build_clip(tokenizer, 16, num_layers=1, hidden_size=64, text_layers=1, text_size=64, projection_dim=64)
    resize_positions(model, 32)
    embeddings = model.vision_model.embeddings
    assert model.config.vision_config.image_size == embeddings.image_size == 32
    assert (
        embeddings.num_positions == embeddings.position_ids.shape[1] == len(embeddings.position_embedding.weight) == 17
    )
    assert model.get_image_features(torch.zeros(1, 3, 32, 32)).pooler_output.shape == (1, 64)


@pytest.mark.slow
def test_crop_captions_tell_what_the_crop_shows(tmp_path):
    pool = draw_pool(24, 0, tmp_path)
    views = sample_views(pool, 16, 64, (0.4, 0.5, 0.1), np.random.default_rng(0))
    assert views.images.shape == (16, 64, 64, 3)
    assert views.named.any(1).all()
    for caption, visible, named in zip(views.captions, views.visible, views.named, strict=True):
        assert named_classes(caption) == set(np.flatnonzero(named)) <= set(np.flatnonzero(visible))
    reopened = draw_pool(24, 0, tmp_path)
    assert np.array_equal(pool.images, reopened.images)


@pytest.mark.slow
def test_pretraining_resumes_where_it_stopped(tmp_path):
    stages = (Stage(16, 1.0, 4, 2), Stage(32, 0.5, 4, 2))
    config = PretrainConfig(
        num_pages=24, stages=stages, num_layers=1, hidden_size=64, eval_every=99, checkpoint_every=3
    )
    pool = draw_pool(24, 0, tmp_path)
    straight, resumed = (Trainer(config, pool, tmp_path / "clip", tmp_path) for _ in range(2))
    for _ in range(2):
        straight.train_step()
    straight.enter_stage(1)
    straight.train_step()
    straight.save_checkpoint()
    resumed.load_checkpoint()
    assert straight.train_step() == resumed.train_step()
    for left, right in zip(straight.model.parameters(), resumed.model.parameters(), strict=True):
        assert torch.equal(left, right)
    quiz = draw_quiz("validation", 0, 2, 1, 2, "plain")
    scores = score_clip(straight.model.eval(), straight.tokenizer, quiz)
    assert all(0 <= value <= 1 for value in scores.values() if isinstance(value, float))


def test_altered_or_missing_clip_folder_is_refused(tokenizer, tmp_path):
    model = build_clip(tokenizer, 16, num_layers=1, hidden_size=64, text_layers=1, text_size=64, projection_dim=64)
    fingerprint = save_clip_folder(model, tokenizer, 32, tmp_path / "clip")
    assert check_clip_folder(tmp_path / "clip") == fingerprint
    assert [path.name for path in tmp_path.iterdir()] == ["clip"]
    loaded, _, image_processor = load_clip_folder(tmp_path / "clip")
    assert loaded.dtype == torch.float32
    assert loaded.config.vision_config.image_size == 32
    assert image_processor.size["height"] == 32
    shutil.copytree(tmp_path / "clip", tmp_path / "altered")
    with open(tmp_path / "altered" / "model.safetensors", "ab") as file:
        file.write(b"\0")
    with pytest.raises(
        ValueError, match=f"was altered: its SHA-256 is [0-9a-f]{{64}}, expected {fingerprint}; restore"
    ):
        check_clip_folder(tmp_path / "altered")
    with pytest.raises(FileNotFoundError, match=r"has no model.safetensors; restore it with `git checkout"):
        check_clip_folder(tmp_path / "none")


@needs_clip_folder
def test_the_committed_clip_loads_and_fits_its_record():
    fingerprint = check_clip_folder()
    assert (CLIP_FOLDER / "model.safetensors").stat().st_size <= 12_000_000
    model, tokenizer, image_processor = load_clip_folder()
    assert model.config.text_config.eos_token_id == tokenizer.eos_token_id != 2
    assert model.config.text_config.pad_token_id == tokenizer.pad_token_id
    assert model.config.vision_config.image_size == image_processor.size["height"] == 128
    record = CLIP_FOLDER.parent.parent / "results" / "picturebook_clip.json"
    if record.is_file():
        assert json.loads(record.read_text())["fingerprint"] == fingerprint


@pytest.mark.slow
@needs_clip_folder
def test_the_committed_clip_knows_the_things():
    model, tokenizer, image_processor = load_clip_folder()
    pages = [draw_scene("test", 1, index, kind="object") for index in range(60)]
    text = tokenizer([f"a photo of a {name}" for name in THING_NAMES], padding=True, return_tensors="pt")
    pixels = image_processor([page.image for page in pages], return_tensors="pt").pixel_values
    with torch.no_grad():
        predicted = model(**text, pixel_values=pixels).logits_per_image.argmax(1).numpy()
    expected = np.array([page.label[page.label < NUM_THINGS][0] for page in pages])
    assert (predicted == expected).mean() >= 0.9


@pytest.mark.slow
def test_perfect_tokens_score_high_and_coarser_ones_lower():
    fine, coarse = score_oracle(8, patch_size=8), score_oracle(8, patch_size=32)
    assert 0.8 < fine["hiou"] < 1
    assert coarse["miou"] < fine["miou"]
    assert set(fine["groups"]) == {"things_seen", "things_unseen", "stuff_seen", "stuff_unseen"}
