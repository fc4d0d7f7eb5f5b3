"""Name files, published protocols, and scores by them."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from ldvc import TrainingFreeCLIP
from ldvc.commands.scoring import evaluate as main
from ldvc.data.names import BENCHMARK_FILES, FOLDER, read_name_file
from ldvc.data.vocabularies import PROMPT_TEMPLATES, VOCABULARIES
from ldvc.scoring.dense_benchmarks import (
    AUTHORS,
    BENCHMARKS,
    RESCLIP,
    best_class,
    choose_protocol,
    class_probabilities,
    drop_small,
    encode_words,
    label_picture,
    read_settings,
)
from ldvc.segmenters.smoothing import pamr


# ---- names

SHA256 = {
    "voc20": "c68f65a2b342397c",
    "voc21": "80e643a9a1439668",
    "context59": "cd808465f06a1616",
    "context60": "5e620446a8699f29",
    "coco_object": "3475d03d61f85ce0",
    "coco_stuff": "fb98709b9ab1baff",
    "ade20k": "e53ded02c488bdb9",
    "cityscapes": "6f6782fc1bf92bfd",
}
WORDS = {"voc20": 30, "voc21": 56, "coco_object": 113}


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_the_usual_name_files_are_those_in_common_use(benchmark):
    names = read_name_file(benchmark)
    assert names.sha256.startswith(SHA256[benchmark])
    assert len(names.classes) == BENCHMARKS[benchmark].num_classes
    assert len(names.words) == WORDS.get(benchmark, len(names.classes))
    assert len(set(names.class_names)) == len(names.classes)


@pytest.mark.parametrize("benchmark", BENCHMARKS)
def test_plain_names_have_one_word_a_class_with_blanks(benchmark):
    usual, plain = read_name_file(benchmark), read_name_file(benchmark, "plain")
    assert len(plain.classes) == len(plain.words) == len(usual.classes)
    assert not {"trafficlight", "pottedplant", "diningtable", "chestofdrawers"} & set(plain.words)
    assert plain.sha256 == hashlib.sha256((FOLDER / "plain" / BENCHMARK_FILES[benchmark]).read_bytes()).hexdigest()


def test_name_files_follow_the_ids_of_our_own_lists():
    for name, benchmark in (("coco_stuff", "coco_stuff"), ("pascal_context", "context59")):
        ours = [word.replace(" ", "") for word in VOCABULARIES[name].class_names]
        assert [word.replace(" ", "") for word in read_name_file(benchmark).words] == ours
    assert read_name_file("voc20", "plain").words[17:] == ["sofa", "train", "tv monitor"]
    assert read_name_file("voc21").class_names[:2] == ("background", "aeroplane")


def test_the_notice_comes_with_the_files():
    assert "Sina Hajimiri" in (FOLDER / "LICENSE").read_text()
    assert "0cac3a6" in (FOLDER / "README.md").read_text()
    assert (
        '"ldvc.data" = ["name_files/*", "name_files/plain/*"]'
        in (Path(__file__).parents[1] / "pyproject.toml").read_text()
    )


def test_wrong_name_files_are_named(tmp_path):
    with pytest.raises(ValueError, match="did you mean 'cityscapes'"):
        read_name_file("cityscape")
    with pytest.raises(ValueError, match="names are 'usual' or 'plain', not 'short'"):
        read_name_file("voc20", "short")
    (tmp_path / "gap.txt").write_text("cat\n\ndog\n")
    with pytest.raises(ValueError, match="line 2 names no class"):
        read_name_file(str(tmp_path / "gap.txt"))
    (tmp_path / "own.txt").write_text("cat, kitten\ndog\n\n")
    assert read_name_file(str(tmp_path / "own.txt")).classes == (("cat", "kitten"), ("dog",))
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not a text file in UTF-8"):
        read_name_file(str(tmp_path / "binary.txt"))


def test_the_ensembles_have_as_many_templates_as_they_are_called():
    for count in (7, 15, 80):
        assert len(set(PROMPT_TEMPLATES[f"ensemble{count}"])) == count
    assert set(PROMPT_TEMPLATES["ensemble7"]) <= set(PROMPT_TEMPLATES["ensemble80"])


# ---- protocols


def test_the_published_settings():
    voc21 = choose_protocol("voc21", "sclip")
    assert (voc21.authors, voc21.softmax_scale, voc21.threshold, voc21.area_threshold) == ("sclip", 65.0, 0.1, 0.1)
    naclip = choose_protocol("voc20", "naclip")
    assert (naclip.window, naclip.short_side, naclip.smoothing, naclip.threshold) == (0, 336, "pamr", 0.0)
    assert choose_protocol("cityscapes", "pearl").short_side == 560
    assert choose_protocol("cityscapes", "pearl").settings == {"rotated_key_weight": 0.3}
    assert choose_protocol("voc20", "pearl").settings == {}
    clearclip = choose_protocol("coco_object", "clearclip")
    assert (clearclip.threshold, clearclip.softmax_scale, clearclip.names) == (0.4, 50.0, "plain")
    assert (clearclip.window, clearclip.stride, clearclip.short_side) == (448, 224, 448)
    assert choose_protocol("voc20", "resclip").settings["middle_weight"] == 0.6
    assert set(RESCLIP) == set(BENCHMARKS)
    for authors in AUTHORS:
        for benchmark in BENCHMARKS:
            assert choose_protocol(benchmark, authors=authors).authors == authors
    changed = choose_protocol("voc20", "naclip", smoothing="none", threshold=None)
    assert (changed.smoothing, changed.threshold) == ("none", 0.0)


def test_the_short_side_gives_way_where_the_long_one_would_pass_its_limit():
    protocol = choose_protocol("voc20")
    assert protocol.inference((375, 500)).short_side == 336
    assert protocol.inference((100, 1000)).short_side == 204


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"benchmark": "voc"}, r"--protocol is 'voc'; did you mean 'voc2"),
        ({"benchmark": "voc20", "authors": "x"}, r"--protocol_of is 'x'; use one of sclip, naclip, clearclip"),
        ({"benchmark": "voc20", "smoothing": "crf"}, r"smoothing is 'crf'; use one of none, pamr"),
        ({"benchmark": "voc20", "threshold": 2.0}, r"threshold 2\.0.*shares of 0 to 1"),
        ({"benchmark": "voc20", "window": -1}, r"window is -1"),
    ],
)
def test_wrong_protocols_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_protocol(**arguments)


def test_settings_come_as_names_and_values():
    assert read_settings(["residual=1", "middle_blocks=[3, 4]", "feedback=false", "rotation=svd"]) == {
        "residual": 1,
        "middle_blocks": [3, 4],
        "feedback": False,
        "rotation": "svd",
    }
    with pytest.raises(ValueError, match="'residual' is not of the form name=value"):
        read_settings(["residual"])


@pytest.mark.parametrize(
    ("benchmark", "stored", "expected"),
    [
        ("voc20", [0, 1, 20, 255], [255, 0, 19, 255]),
        ("voc21", [0, 1, 20, 255], [0, 1, 20, 255]),
        ("context59", [0, 58, 255], [0, 58, 255]),
        ("context60", [0, 58, 255], [1, 59, 0]),
        ("coco_object", [0, 79, 80, 170, 255], [1, 80, 0, 0, 255]),
        ("coco_stuff", [0, 170, 255], [0, 170, 255]),
        ("ade20k", [0, 1, 150], [255, 0, 149]),
        ("cityscapes", [0, 18, 255], [0, 18, 255]),
    ],
)
def test_stored_ids_become_class_ids(benchmark, stored, expected):
    found = BENCHMARKS[benchmark].map_labels(np.array([stored], dtype=np.uint8))
    assert found.tolist() == [expected]
    highest = max(i for i in stored if i != 255)
    with pytest.raises(ValueError, match=rf"label id {highest + 1} is outside those of .*, 0 to {highest} and 255"):
        BENCHMARKS[benchmark].map_labels(np.array([[highest + 1]]))


# ---- from words to labels


def test_the_best_word_of_a_class_speaks_for_it():
    scores = torch.tensor([[0.3], [0.1], [0.25]]).unsqueeze(-1)
    p = (10 * scores).softmax(0).flatten().tolist()
    found = class_probabilities(scores, torch.tensor([0, 1, 1]), 10.0)
    assert found.flatten().tolist() == pytest.approx([p[0], p[2]])
    assert class_probabilities(scores, torch.tensor([0, 0, 1]), None).flatten().tolist() == pytest.approx([0.3, 0.25])


def test_uncertain_pixels_become_the_first_class_and_equal_scores_go_to_the_first():
    classes = torch.tensor([[[0.1, 0.4]], [[0.5, 0.4]], [[0.4, 0.2]]])
    assert best_class(classes, 0.0).tolist() == [[1, 0]]
    assert best_class(classes, 0.45).tolist() == [[1, 0]]
    assert best_class(classes, 0.6).tolist() == [[0, 0]]


def test_small_classes_give_their_pixels_to_the_next_best():
    classes = torch.zeros(4, 1, 10)
    classes[0, 0, :2] = 0.9  # background, whose pixels do not count
    classes[1, 0, 2:9] = 0.8
    classes[2, 0, 9] = 0.8  # one of eight
    classes[3, 0, 9] = 0.7
    classes[1, 0, 9] = 0.6
    assert drop_small(classes, 0.1).argmax(0)[0, 9] == 2
    assert drop_small(classes, 0.2).argmax(0)[0, 9] == 1  # 3 has no pixel at all and goes, too
    assert drop_small(classes, 0.2).argmax(0)[0].tolist() == [0, 0, *[1] * 8]


@torch.no_grad()
@pytest.mark.parametrize("changes", [{}, {"smoothing": "pamr"}, {"area_threshold": 0.2, "threshold": 0.3}], ids=str)
def test_labels_equal_the_protocol_written_out(clip_model, changes):
    model = TrainingFreeCLIP(clip_model, softmax_scale=None)
    pixels, size = torch.randn(3, 40, 56, generator=torch.Generator().manual_seed(0)), (57, 80)
    embeds = F.normalize(torch.randn(5, 32, generator=torch.Generator().manual_seed(1)), dim=-1)
    class_ids = torch.tensor([0, 0, 1, 2, 2])
    protocol = replace(choose_protocol("voc21"), threshold=0.0, window=32, stride=16, softmax_scale=60.0)
    protocol = replace(protocol, **changes)
    found = label_picture(model, pixels, embeds, class_ids, protocol, size)
    totals, counts = torch.zeros(5, 40, 56), torch.zeros(40, 56)
    for top in (0, 8):
        for left in (0, 16, 24):
            window = pixels[None, :, top : top + 32, left : left + 32]
            cosines = F.interpolate(model(window, embeds).logits, size=(32, 32), mode="bilinear")[0]
            totals[:, top : top + 32, left : left + 32] += cosines
            counts[top : top + 32, left : left + 32] += 1
    words = F.interpolate((totals / counts)[None], size=size, mode="bilinear")
    if protocol.smoothing == "pamr":
        words = pamr(words, F.interpolate(pixels[None], size=size, mode="bilinear"))
    p = (60 * words[0]).softmax(0)
    classes = torch.stack([p[:2].amax(0), p[2], p[3:].amax(0)])
    if protocol.area_threshold:
        first = classes.argmax(0)
        for index in (1, 2):
            if (first == index).sum() <= 0.2 * (first > 0).sum():
                classes[index] = 0
    expected = torch.where(classes.amax(0) < protocol.threshold, 0, classes.argmax(0))
    assert (torch.from_numpy(found) == expected).float().mean() > 0.999  # rounding may turn a tie


def test_a_word_of_two_classes_keeps_both_places(clip_model, tiny_processor):
    names = read_name_file("coco_object")
    embeds, class_ids = encode_words(TrainingFreeCLIP(clip_model), tiny_processor, names)
    beds = [index for index, word in enumerate(names.words) if word == "bed"]
    assert [int(class_ids[index]) for index in beds] == [0, 60]
    assert torch.equal(embeds[beds[0]], embeds[beds[1]])


# ---- the command


@pytest.fixture
def voc(tmp_path):
    rng = np.random.default_rng(0)
    columns = {
        "image": [Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(2)],
        "label": [Image.fromarray(rng.choice([*range(21), 255], (30, 40)).astype(np.uint8)) for _ in range(2)],
    }
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    (tmp_path / "data").mkdir()
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    return str(tmp_path / "data")


SMALL = ["--short_side", "32", "--prompt_templates", "single"]


def test_a_clip_is_scored_by_a_protocol_in_one_command(clip_folder, voc, tmp_path, capsys):
    output = tmp_path / "r.json"
    arguments = ["--model", str(clip_folder), "--method", "naclip", "--protocol", "voc21", "--dataset", voc, *SMALL]
    assert main([*arguments, "--settings", "gaussian_std=2", "--output", str(output)]) == 0
    told = capsys.readouterr().out
    assert "| naclip |" in told
    assert "names: name_files/cls_voc21.txt, 56 words, sha256 80e643a9a1439668" in told
    result = json.loads(output.read_text())
    assert (result["num_images"], result["benchmark"], result["method"]) == (2, "voc21", "naclip")
    assert result["method_settings"]["gaussian_std"] == 2
    assert result["names"]["sha256"].startswith(SHA256["voc21"])
    assert result["protocol"]["smoothing"] == "pamr"
    assert len(result["scores"]["0.0"]["per_class_iou"]) == 21


def test_ldvc_is_scored_by_the_same_protocol(checkpoint, voc, tmp_path):
    output = tmp_path / "r.json"
    arguments = [str(checkpoint), "--protocol", "voc20", "--dataset", voc, "--short_side", "32", "--names", "plain"]
    assert main([*arguments, "--window", "32", "--smoothing", "propagation", "--output", str(output)]) == 0
    result = json.loads(output.read_text())
    assert (result["method"], result["names"]["words"]) == (None, 20)
    assert result["protocol"]["stride"] == 16
    assert result["protocol"]["prompt_templates"] == ["a photo of a {}"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["CLIP", "--protocol", "voc20", "--offsets", "0"], "--offsets is decided by --protocol; leave it out"),
        (["CLIP", "--smoothing", "pamr"], "--smoothing belongs to --protocol; leave it out"),
        (["CLIP", "--method", "naclip"], "--method is of a CLIP without training; add --training_free"),
        (["--protocol", "voc20"], "name one checkpoint or CLIP: as the first argument, or by --model"),
        (["CLIP", "--model", "CLIP", "--protocol", "voc20"], "name one checkpoint or CLIP"),
        (["CLIP", "--protocol", "ade"], "--protocol is 'ade'; did you mean 'ade20k'?"),
        (["CLIP", "--protocol", "voc20", "--method", "naclp"], "`method` is 'naclp'; did you mean 'naclip'?"),
        (["CLIP", "--protocol", "voc20", "--names", "nowhere"], "'nowhere' is no benchmark's name file and no file"),
        (["LDVC", "--protocol", "voc20", "--method", "naclip"], "--method is of a CLIP without training, which"),
        (["CLIP", "--protocol", "cityscapes"], "label id 20 is outside those of Cityscapes"),
    ],
)
def test_wrong_arguments_end_in_one_line(clip_folder, checkpoint, voc, arguments, message, capsys):
    folders = {"CLIP": str(clip_folder), "LDVC": str(checkpoint)}
    small = SMALL if "--offsets" not in arguments else []
    try:
        code = main([*(folders.get(word, word) for word in arguments), "--dataset", voc, *small])
    except SystemExit as error:
        code = error.code
    assert code == 2
    assert message in capsys.readouterr().err
