"""One picture, asked many times: what the web page does, without the page."""

import dataclasses
import io
import json
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from ldvc.app import session
from ldvc.app.session import Segmenter, Visit, make_preview, read_picture, split_labels
from ldvc.masks.drawing import class_colors


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, make_model, tiny_processor):
    folder = tmp_path_factory.mktemp("ldvc")
    model = make_model(seen_classes=["dog", "sofa"])
    model.set_vocabulary(["cat", "dog", "grass"], tiny_processor)
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def segmenter(model_folder):
    return Segmenter(model_folder)


@pytest.fixture
def picture_file(tmp_path, images):
    images[0].save(tmp_path / "picture.png")  # 40 x 56 pixels
    return tmp_path / "picture.png"


@pytest.fixture
def visit(segmenter, picture_file):
    """Return a visit whose picture was segmented."""
    scene = segmenter.encode(picture_file)
    return Visit(scene, segmenter.segment(Visit(scene), "cat, dog, grass", 0.0))


def empty_png(width, height):
    """Return a small PNG file that claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


# ---- labels


@pytest.mark.parametrize(
    "text",
    [
        "cat, sofa|couch, grass",
        "cat;sofa | couch;grass",
        "cat\nsofa|couch\r\ngrass\n",
        " cat,, sofa|couch| ,grass, ",
        "cat\uff0csofa|couch\u3001grass",
    ],
)
def test_names_are_read_as_people_type_them(text):
    classes = split_labels(text)
    assert classes == {"cat": ["cat"], "sofa": ["sofa", "couch"], "grass": ["grass"]}
    assert list(classes) == ["cat", "sofa", "grass"]


@pytest.mark.parametrize("text", ["", " ,;\n| ,", "\n"])
def test_no_name_is_a_mistake_with_an_example(text):
    with pytest.raises(ValueError, match=r"no class name is given; .* cat, sofa\|couch, grass"):
        split_labels(text)


@pytest.mark.parametrize("text", ["cat, Cat", "cat, sofa|cat", "cat|dog, dog"])
def test_a_repeated_name_is_a_mistake(text):
    with pytest.raises(ValueError, match=r"given twice|a word stands for one class only"):
        split_labels(text)


def test_no_label_text_opens_a_file_of_this_machine(tmp_path):
    (tmp_path / "secret.txt").write_text("password")
    path = str(tmp_path / "secret.txt")
    assert split_labels(path) == {path: [path]}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (", ".join(f"name {number}" for number in range(2001)), "2001 class names; this page takes 2000"),
        ("cat, other", "'other' is what pixels below the threshold are called"),
        (" ".join(["grass"] * 300), "tokens long, the text tower reads"),
    ],
)
def test_names_that_a_page_cannot_take_are_refused(segmenter, visit, text, message):
    with pytest.raises(ValueError, match=message):
        segmenter.segment(visit, text, 0.0)


# ---- pictures


def test_a_picture_is_upright_and_in_colour_whatever_its_mode(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: a quarter turn clockwise makes it upright
    Image.new("L", (30, 20), 200).save(tmp_path / "grey.jpg", exif=exif)
    picture = read_picture(tmp_path / "grey.jpg")
    assert (picture.mode, picture.size) == ("RGB", (20, 30))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"this is text", "the file is no picture that can be read; use PNG, JPEG or WebP"),
        (b"", "the file is no picture that can be read"),
        (empty_png(8000, 8000), "8000 x 8000 pixels; this page takes pictures of up to 50 million"),
        (empty_png(30_000, 30_000), "far too large, perhaps a decompression bomb; this page takes"),
    ],
)
def test_a_file_that_is_no_usable_picture_is_refused(tmp_path, content, message):
    (tmp_path / "upload.png").write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_picture(tmp_path / "upload.png")


def test_a_truncated_picture_is_refused_without_naming_a_path_of_this_machine(tmp_path, images):
    buffer = io.BytesIO()
    images[0].save(buffer, format="PNG")
    (tmp_path / "upload.png").write_bytes(buffer.getvalue()[:1000])
    with pytest.raises(ValueError, match=r"the picture cannot be decoded .* truncated or damaged") as caught:
        read_picture(tmp_path / "upload.png")
    assert str(tmp_path) not in str(caught.value)


def test_a_decoder_that_fails_in_its_own_way_is_a_mistake_in_the_file(tmp_path, images, monkeypatch):
    def fail(image):
        raise RuntimeError("broken chunk")

    images[0].save(tmp_path / "upload.png")
    monkeypatch.setattr(session, "to_rgb", fail)
    with pytest.raises(ValueError, match=r"cannot be decoded \(broken chunk\); save it again"):
        read_picture(tmp_path / "upload.png")


@pytest.mark.parametrize(
    ("size", "expected"), [((64, 32), (640, 320)), ((700, 900), (700, 900)), ((3000, 20), (1024, 7))]
)
def test_a_preview_is_neither_tiny_nor_huge(size, expected):
    assert make_preview(Image.new("RGB", size)).size == expected


# ---- segmentation


def test_an_answer_is_what_model_and_processor_give(segmenter, visit, images):
    inputs = segmenter.processor(images=images[0], class_names=["cat", "dog", "grass"], return_tensors="pt")
    with torch.no_grad():
        outputs = segmenter.model(**inputs)
    expected = segmenter.processor.post_process_semantic_segmentation(outputs, target_sizes=[(40, 56)])[0]
    np.testing.assert_array_equal(segmenter.label_map(visit.answer, (40, 56)), expected.numpy())


def test_new_names_and_thresholds_never_run_the_vision_tower_again(segmenter, visit, monkeypatch):
    def refuse(*_):
        raise AssertionError("the vision tower ran")

    monkeypatch.setattr(segmenter.model, "get_image_features", refuse)
    answer = segmenter.segment(visit, "sky, cat", 0.5)
    assert answer.names == ["sky", "cat", "other"]
    segmenter.explain(answer)


def test_a_new_threshold_does_not_run_the_text_tower_again(segmenter, visit, monkeypatch):
    monkeypatch.setattr(session, "encode_classes", None)
    assert segmenter.segment(visit, "cat, dog, grass", 0.9).class_embeds is visit.answer.class_embeds


def test_pixels_below_the_threshold_are_other_and_with_zero_none_is(segmenter, visit):
    everything = segmenter.segment(visit, "cat, dog, grass", 1.0)
    assert (segmenter.label_map(everything, (40, 56)) == 3).all()
    assert segmenter.label_map(visit.answer, (40, 56)).max() < 3


def test_without_a_picture_there_is_no_answer(segmenter):
    with pytest.raises(ValueError, match="there is no picture yet"):
        segmenter.segment(Visit(), "cat", 0.0)


def test_a_visit_cannot_be_changed_by_another(segmenter, visit, picture_file):
    before = segmenter.label_map(visit.answer, (40, 56)).copy()
    other = Visit(segmenter.encode(picture_file))
    segmenter.segment(other, "sky, sofa", 0.3)
    np.testing.assert_array_equal(segmenter.label_map(visit.answer, (40, 56)), before)
    with pytest.raises(dataclasses.FrozenInstanceError):
        visit.scene = None


def test_a_class_is_unseen_when_none_of_its_words_had_masks(segmenter, visit):
    answer = segmenter.segment(visit, "cat, couch|sofa, dog", 0.0)
    assert segmenter.unseen_names(answer) == ["cat"]


def test_a_hidden_class_shows_the_plain_picture(segmenter, visit):
    names = frozenset(visit.answer.names)
    answer = dataclasses.replace(visit.answer, hidden=names)
    label_map = segmenter.label_map(answer, visit.scene.preview.size[::-1])
    assert segmenter.draw(answer, label_map) == visit.scene.preview
    assert segmenter.draw(visit.answer, label_map) != visit.scene.preview


def test_a_new_picture_is_explained_in_its_middle_and_the_same_one_where_it_was(segmenter, visit, picture_file):
    assert visit.answer.point == (228, 320)  # the preview is 457 x 640
    moved = Visit(visit.scene, dataclasses.replace(visit.answer, point=(3, 4)))
    assert segmenter.segment(moved, "sky", 0.0).point == (3, 4)
    assert segmenter.segment(Visit(segmenter.encode(picture_file), moved.answer), "sky", 0.0).point == (228, 320)


def test_points_go_from_picture_to_preview_and_back(segmenter, visit):
    for point in [(0, 0), (39, 55), (12, 40)]:
        assert segmenter.picture_point(segmenter.point_at(visit.answer, *point)) == point


@pytest.mark.parametrize("point", [(40, 0), (0, 56), (-1, 0), (None, 3)])
def test_a_point_outside_the_picture_is_refused(segmenter, visit, point):
    with pytest.raises(ValueError, match="rows go from 0 to 39, columns from 0 to 55"):
        segmenter.point_at(visit.answer, *point)


def test_a_point_of_no_answer_is_refused(segmenter):
    with pytest.raises(ValueError, match="there is no result yet"):
        segmenter.point_at(None, 0, 0)


def test_a_baked_checkpoint_answers_for_its_own_names_in_any_order(segmenter, visit):
    expected = segmenter.segment(visit, "grass, cat", 0.0)
    segmenter.model.set_vocabulary(["cat", "dog", "grass"], segmenter.processor, bake=True)
    answer = segmenter.segment(Visit(visit.scene), "grass, cat", 0.0)
    torch.testing.assert_close(answer.outputs.logits, expected.outputs.logits)
    with pytest.raises(ValueError, match="baked vocabulary without 'sky'; choose among: cat, dog, grass"):
        segmenter.segment(visit, "cat, sky", 0.0)


def test_a_checkpoint_that_does_not_know_the_example_starts_with_its_own_names(segmenter):
    assert segmenter.start() == (Visit(), "cat, dog, grass")


# ---- downloads


def test_the_zip_holds_ids_at_the_size_of_the_picture_their_names_and_the_overlay(segmenter, visit, tmp_path):
    answer = segmenter.segment(visit, "cat, sofa|couch", 0.4)
    segmenter.write_masks(answer, tmp_path / "masks.zip")
    with zipfile.ZipFile(tmp_path / "masks.zip") as archive:
        assert sorted(archive.namelist()) == ["masks.png", "names.json", "overlay.png"]
        names = json.loads(archive.read("names.json"))
        with Image.open(archive.open("masks.png")) as masks:
            np.testing.assert_array_equal(np.asarray(masks), segmenter.label_map(answer, (40, 56)))
            assert masks.getpalette()[:3] == class_colors(answer.names)[0].tolist()
        with Image.open(archive.open("overlay.png")) as overlay:
            assert overlay.width == 640
    assert names["names"] == {"0": "cat", "1": "sofa", "2": "other"}
    assert (names["words"], names["threshold"]) == ({"cat": ["cat"], "sofa": ["sofa", "couch"]}, 0.4)


# ---- what competes, and long lists


def test_names_that_compete_come_back_as_other_and_are_explained(segmenter, visit, tmp_path):
    everything = segmenter.segment(Visit(visit.scene), "cat, dog, grass, sky", 0.0)
    answer = segmenter.segment(visit, "cat, dog", 0.0, "grass; sky")
    assert answer.names == ["cat", "dog", "other"]
    size = answer.scene.picture_size
    assert np.array_equal(segmenter.label_map(answer, size), segmenter.label_map(everything, size).clip(max=2))
    names = [best.name for best in segmenter.explain(answer).top_classes]
    assert set(names) == {"cat", "dog", "grass", "sky"}, "a pixel may be other because a rival won"
    segmenter.write_masks(answer, tmp_path / "masks.zip")
    with zipfile.ZipFile(tmp_path / "masks.zip") as archive:
        assert json.loads(archive.read("names.json"))["negative_labels"] == {"grass": ["grass"], "sky": ["sky"]}
    with pytest.raises(ValueError, match="'cat' is a class of this call and a negative label too"):
        segmenter.segment(visit, "cat, dog", 0.0, "cat")


def test_the_name_of_a_vocabulary_stands_for_its_classes_and_of_many_those_found_are_listed(segmenter, visit):
    answer = segmenter.segment(visit, "coco_stuff", 0.0)
    assert len(answer.names) == 171
    label_map = segmenter.label_map(answer, answer.scene.picture_size)
    listed = segmenter.listed_names(answer, label_map)
    assert listed == [answer.names[index] for index in np.unique(label_map)]
    few = segmenter.segment(visit, "cat, dog, grass", 0.0)
    assert segmenter.listed_names(few, label_map * 0) == ["cat", "dog", "grass"]
