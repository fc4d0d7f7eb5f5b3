"""The command `ldvc`, as a user types it: outputs, exit codes, and one clear line for every mistake."""

import json
import os
import re
import shutil
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

import ldvc.__main__ as ldvc_command
from ldvc import loading
from ldvc.app import batch, bench, cli, doctor, segment
from ldvc.commands.data import ARCHIVES
from ldvc.data.converters import CONVERTERS
from picturebook import draw_scene


ROOT = Path(__file__).resolve().parents[1]
COMMANDS = (["segment"], ["labels", "check"], ["bench"], ["doctor"], ["demo"])


@pytest.fixture
def picture(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def assert_one_line(result, *mentions, code=2):
    assert result.exit_code == code, result.output
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("ldvc: ")
    for mention in mentions:
        assert mention in result.stderr
    assert "Traceback" not in result.output


def read_names(folder):
    return json.loads((folder / "names.json").read_text())["names"]


# ---- the command itself


@pytest.mark.slow
def test_help_and_version_import_no_heavy_library():
    code = (
        "import sys; sys.argv[0] = 'ldvc'\n"
        "from ldvc.__main__ import app\n"
        "try: app(sys.argv[1:])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'transformers', 'gradio', 'datasets', 'matplotlib', 'pycocotools', 'pandas', 'scipy'}\n"
        "print('HEAVY', sorted(heavy & set(sys.modules)))\n"
    )
    helps = [[name, "--help"] for name in ldvc_command.COMMANDS if name != "train"]  # which lists the model's keys
    for arguments in (["--help"], ["--version"], ["segment", "--help"], ["segment", "nosuch.png"], ["labels"], *helps):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
        )
        assert done.stdout.endswith("HEAVY []\n"), arguments


@pytest.mark.slow
def test_the_script_runs_and_reports_its_exit_code():
    done = subprocess.run(
        [sys.executable, "-m", "ldvc", "segment", "nosuch.png"], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "ldvc: no picture to segment: nosuch.png: no such file.\n"


@pytest.mark.parametrize(("given", "expected"), [(None, "PASSIVE"), ("ACTIVE", "ACTIVE")])
def test_waiting_threads_sleep_unless_the_user_decides_otherwise(monkeypatch, given, expected):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    if given:
        monkeypatch.setenv("OMP_WAIT_POLICY", given)
    seen = []
    monkeypatch.setattr(ldvc_command, "app", lambda: seen.append(os.environ["OMP_WAIT_POLICY"]))
    ldvc_command.main()
    assert seen == [expected]


def test_the_version_is_the_library_s(ldvc):
    import ldvc as library

    assert ldvc("--version").output == f"ldvc {library.__version__}\n"


def test_without_a_command_help_is_shown(ldvc):
    result = ldvc()
    assert (result.exit_code, result.output) == (0, ldvc("--help").output)
    assert all(command[0] in result.output for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_help_has_examples_that_the_command_understands(ldvc, command):
    result = ldvc(*command, "--help")
    assert result.exit_code == 0
    examples = re.findall(rf"^ +ldvc {' '.join(command)}(.*)$", result.output, re.MULTILINE)
    assert examples
    options = {option for example in examples for option in re.findall(r" (--[\w-]+)", example)}
    described = result.output.partition("Options:")[2].partition("Examples:")[0]
    assert all(f"{option} " in described for option in options)


USAGE_ERRORS = [
    (["segmnt"], "Did you mean 'segment'"),
    (["segment"], "name files, folders or patterns, or a --dataset. See 'ldvc segment --help'"),
    (["segment", "a.png", "--lables", "cat"], "--labels"),
    (
        ["segment", "a.png", "--format", "tiff"],
        "'tiff' is not one of 'png', 'overlay', 'coco-rle', 'npz', 'grey'",
    ),
    (["labels"], "Missing command"),
    (["bench", "--repeats", "0"], "greater than or equal to 1"),
    (["demo", "--port", "99999"], "65535"),
]


@pytest.mark.parametrize(("arguments", "mention"), USAGE_ERRORS, ids=[" ".join(a) for a, _ in USAGE_ERRORS])
def test_a_wrong_call_is_one_line_and_names_the_help(ldvc, arguments, mention):
    assert_one_line(ldvc(*arguments), mention, "--help'")


def test_debug_shows_where_an_error_came_from(ldvc):
    result = ldvc("segment", "nosuch.png", "--debug")
    assert isinstance(result.exception, ValueError)


@pytest.mark.parametrize(
    ("error", "mentions"),
    [
        (MemoryError(), ("out of memory", "--window")),
        (RuntimeError("two\nlines"), ("two lines",)),
        (ModuleNotFoundError("", name="pycocotools.mask"), ("'pycocotools'", "pip install -e '.[cli]'")),
        (ModuleNotFoundError("", name="gradio"), ("'gradio'", "pip install -e '.[demo]'")),
        (ModuleNotFoundError("", name="datasets"), ("'datasets'", "pip install -e '.[train]'")),
    ],
    ids=repr,
)
def test_errors_of_every_kind_become_one_line(ldvc, monkeypatch, error, mentions):
    def fail(*_):
        raise error

    monkeypatch.setattr(segment, "find_pictures", fail)
    assert_one_line(ldvc("segment", "a.png"), *mentions)


def test_a_closed_pipe_is_no_error_to_speak_of(ldvc, monkeypatch):
    def fail(*_):
        raise BrokenPipeError(32, "Broken pipe")

    monkeypatch.setattr(segment, "find_pictures", fail)
    result = ldvc("segment", "a.png")
    assert (result.exit_code, result.stderr) == (1, "")


# ---- segment


@pytest.mark.slow
def test_a_folder_of_20_pictures_gives_outputs_that_agree(ldvc, checkpoint, tmp_path, capsys):
    (tmp_path / "photos" / "more").mkdir(parents=True)
    for index in range(20):
        place = tmp_path / "photos" / ("more" if index % 4 == 0 else ".")
        scene = draw_scene("test", 0, index, image_size=64)
        suffix = ("png", "jpg", "webp")[index % 3]
        scene.image.resize((40 + index, 33)).save(place / f"scene{index}.{suffix}")
    formats = [f"--format={name}" for name in ("png", "overlay", "coco-rle", "npz")]
    out = tmp_path / "out"
    labels = ["--labels", "cat, sofa|couch, grass"]
    result = ldvc(
        "segment", tmp_path / "photos", "-r", *labels, "--model", checkpoint, "-o", out, "--scores", *formats
    )
    assert result.exit_code == 0, result.output
    assert "20 of 20 pictures segmented" in result.stdout
    assert read_names(out) == {"0": "cat", "1": "sofa", "2": "grass"}
    coco = COCO(out / "coco.json")
    assert {c["id"]: c["name"] for c in coco.loadCats(coco.getCatIds())} == {1: "cat", 2: "sofa", 3: "grass"}
    assert len(coco.imgs) == 20
    for image in coco.imgs.values():
        with (
            Image.open(tmp_path / "photos" / image["file_name"]) as source,
            Image.open(out / f"{image['name']}.png") as png,
        ):
            assert png.size == source.size == (image["width"], image["height"])
            assert png.mode == "P"
            label_map = np.asarray(png)
        decoded = np.full(label_map.shape, 255)
        for annotation in coco.imgToAnns[image["id"]]:
            decoded[coco.annToMask(annotation).astype(bool)] = annotation["category_id"] - 1
            assert annotation["area"] == (label_map == annotation["category_id"] - 1).sum()
        assert np.array_equal(decoded, label_map)
        arrays = np.load(out / f"{image['name']}.npz")
        assert np.array_equal(arrays["label_map"], label_map)
        assert np.array_equal(arrays["scores"].argmax(axis=0), label_map)
        assert Image.open(out / f"{image['name']}.overlay.png").width >= label_map.shape[1]


def test_the_label_map_is_that_of_the_python_call(ldvc, checkpoint, picture, tmp_path):
    from ldvc.model.inference_ldvc import InferenceSettings, segment

    model, processor = loading.load_checkpoint(checkpoint)
    wholes = {"own": ([], None), "windows": (["--window=16", "--stride=8"], InferenceSettings(0, 16, 8))}
    for name, (options, settings) in wholes.items():
        out = tmp_path / name
        assert ldvc("segment", picture, "-m", checkpoint, "-o", out, "-f", "png", *options).exit_code == 0
        expected = segment(model, processor, picture, settings=settings).label_map.numpy()
        assert np.array_equal(np.asarray(Image.open(out / "picture.png")), expected)


@pytest.mark.slow
def test_labels_from_a_file_and_the_own_vocabulary(ldvc, checkpoint, picture, tmp_path):
    (tmp_path / "classes.txt").write_text("dog\nsofa | couch\n")
    ldvc("segment", picture, "-l", tmp_path / "classes.txt", "-m", checkpoint, "-o", tmp_path / "a")
    assert read_names(tmp_path / "a") == {"0": "dog", "1": "sofa"}
    ldvc("segment", picture, "-m", checkpoint, "-o", tmp_path / "b")
    assert read_names(tmp_path / "b") == {"0": "cat", "1": "dog", "2": "sofa"}


def test_a_saved_vocabulary_names_the_classes(ldvc, checkpoint, picture, tmp_path):
    model, processor = loading.load_checkpoint(checkpoint)
    model.encode_vocabulary(["grass", "sky"], processor).save(tmp_path / "vocabulary")
    options = ["--vocabulary", tmp_path / "vocabulary", "-m", checkpoint]
    assert ldvc("segment", picture, *options, "-o", tmp_path / "out").exit_code == 0
    assert read_names(tmp_path / "out") == {"0": "grass", "1": "sky"}
    assert_one_line(ldvc("segment", picture, *options, "-l", "cat"), "--labels", "--vocabulary", "one of them")


@pytest.mark.slow
def test_pixels_below_the_threshold_are_other(ldvc, checkpoint, picture, tmp_path):
    options = ["-m", checkpoint, "-f", "png", "-f", "coco-rle"]
    assert ldvc("segment", picture, *options, "-o", tmp_path / "a", "--threshold", "1").exit_code == 0
    assert read_names(tmp_path / "a") == {"0": "cat", "1": "dog", "2": "sofa", "3": "other"}
    assert set(np.unique(Image.open(tmp_path / "a" / "picture.png"))) == {3}
    whole = np.asarray(plain_map(ldvc, checkpoint, picture, tmp_path / "plain"))
    best = int(np.bincount(whole.flatten()).argmax())
    name = ["cat", "dog", "sofa"][best]
    single = ["--threshold", f"0, {name}=1", "--other", "nothing"]
    assert ldvc("segment", picture, *options, "-o", tmp_path / "b", *single).exit_code == 0
    changed = np.asarray(Image.open(tmp_path / "b" / "picture.png"))
    assert np.array_equal(changed, np.where(whole == best, 3, whole))
    assert read_names(tmp_path / "b")["3"] == "nothing"


def plain_map(ldvc, checkpoint, picture, out):
    assert ldvc("segment", picture, "-m", checkpoint, "-o", out, "-f", "png").exit_code == 0
    return Image.open(out / f"{picture.stem}.png")


def test_one_bad_picture_stops_no_other(ldvc, checkpoint, picture, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    picture.rename(photos / "good.png")
    whole = (photos / "good.png").read_bytes()
    (photos / "cut.png").write_bytes(whole[: len(whole) // 2])
    (photos / "text.jpg").write_text("hello")
    (photos / "phone.heic").write_text("hello")
    Image.new("1", (20000, 20000)).save(photos / "bomb.png")
    Image.new("L", (30000, 8)).save(photos / "wide.png")
    result = ldvc("segment", photos, "nosuch.png", "-m", checkpoint, "-o", tmp_path / "out", "-f", "png")
    assert result.exit_code == 1
    assert "2 of 5 pictures segmented" in result.stdout
    assert "Runtime: torch, float32" in result.stdout
    left_out, *lines = result.stderr.splitlines()
    assert left_out == "Left out, as no picture format that is searched for: 1 .heic."
    assert lines[0] == "4 failed:"
    reasons = {Path(line.split(": ")[0].strip()).name: line for line in lines[1:]}
    assert "no such file" in reasons["nosuch.png"]
    assert "decompression bomb; raise --max-pixels" in reasons["bomb.png"]
    assert "truncated or damaged" in reasons["cut.png"]
    assert "no picture, or of a format" in reasons["text.jpg"]
    assert Image.open(tmp_path / "out" / "wide.png").size == (30000, 8)
    assert Image.open(tmp_path / "out" / "good.png").size == (40, 30)


def test_an_error_of_the_model_stops_no_other_either(ldvc, checkpoint, picture, tmp_path, monkeypatch):
    def fail(*_):
        raise RuntimeError("no\nmemory")

    monkeypatch.setattr(batch.Segmenter, "segment", fail)
    result = ldvc("segment", picture, "-m", checkpoint, "-o", tmp_path / "out")
    assert (result.exit_code, result.stderr) == (1, f"1 failed:\n  {picture}: no memory\n")
    result = ldvc("segment", picture, "-m", checkpoint, "-o", tmp_path / "out", "--debug")
    assert isinstance(result.exception, RuntimeError)


@pytest.mark.slow
def test_existing_results_are_kept_skipped_or_replaced_as_asked(ldvc, checkpoint, picture, tmp_path):
    call = ["segment", picture, "-m", checkpoint, "-o", tmp_path / "out"]
    assert ldvc(*call).exit_code == 0
    assert_one_line(ldvc(*call), "is there already", "--overwrite", "--skip-existing")
    skipped = ldvc(*call, "--skip-existing")
    assert (skipped.exit_code, "0 of 1" in skipped.stdout, "1 were there already" in skipped.stdout) == (0, True, True)
    assert "1 of 1" in ldvc(*call, "--overwrite").stdout
    assert_one_line(ldvc(*call, "--overwrite", "--skip-existing"), "exclude each other")
    assert_one_line(ldvc(*call, "--skip-existing", "-l", "cat"), "made with other settings", "--output")


def test_two_pictures_of_one_stem_give_two_results(ldvc, checkpoint, tmp_path):
    for name in ("x.jpg", "x.png"):
        Image.new("RGB", (20, 20)).save(tmp_path / name)
    result = ldvc(
        "segment", tmp_path / "x.jpg", tmp_path / "x.png", "-m", checkpoint, "-o", tmp_path / "out", "-f", "png"
    )
    assert result.exit_code == 0
    assert {path.name for path in (tmp_path / "out").glob("*.png")} == {"x.jpg.png", "x.png.png"}


BAD_OPTIONS = [
    (["-l", "cat,,dog"], ("empty", "give every class a name")),
    (["-l", "cat, Cat"], ("'Cat' is given twice",)),
    (["-l", "word " * 300], ("tokens long", "reads 77", "shorten")),
    (["-l", "nosuch.txt"], ("'nosuch.txt' cannot be read",)),
    (["--threshold", "1.5"], ("'1.5' is no probability",)),
    (["--threshold", "high"], ("'high' is no probability", "NAME=0.5")),
    (["--threshold", "cta=0.5"], ("'cta', which is no class; did you mean 'cat'",)),
    (["--threshold", "xyz=0.5"], ("'xyz', which is no class; the classes are cat, dog, sofa",)),
    (["--threshold", "0.5", "--other", "dog"], ("'dog' is one of the classes", "--other")),
    (["--stride", "8"], ("--stride goes with --window",)),
    (["--window", "8", "--stride", "9"], ("stride is 9", "1 to 8")),
    (["--scores"], ("--format npz",)),
    (["--device", "nonsense"], ("device 'nonsense'", "--device cpu")),
    (["--vocabulary", "nosuch"], ("nosuch",)),
]


@pytest.mark.parametrize(("options", "mentions"), BAD_OPTIONS, ids=[" ".join(o)[:30] for o, _ in BAD_OPTIONS])
def test_bad_options_are_one_line(ldvc, checkpoint, picture, tmp_path, options, mentions):
    assert_one_line(ldvc("segment", picture, "-m", checkpoint, "-o", tmp_path / "out", *options), *mentions)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_ten_thousand_labels_are_one_run(ldvc, checkpoint, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(
        batch, "describe_names", lambda names, **_: {"names": {str(i): name for i, name in enumerate(names)}}
    )  # 10,000 colours are another module's
    (tmp_path / "many.txt").write_text("\n".join(f"cat {index}" for index in range(10_000)))
    call = ["segment", picture, "-l", tmp_path / "many.txt", "-m", checkpoint, "-f", "png", "-o", tmp_path / "out"]
    assert ldvc(*call).exit_code == 0
    assert Image.open(tmp_path / "out" / "picture.png").mode == "I;16"


def test_scores_that_would_not_fit_are_refused_before_they_are_made(ldvc, checkpoint, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(batch, "MAX_SCORE_BYTES", 100)
    call = ["segment", picture, "-m", checkpoint, "-o", tmp_path / "out", "-f", "npz", "--scores"]
    result = ldvc(*call)
    assert result.exit_code == 1
    assert "scores of 3 classes at 40 x 30 pixels take" in result.stderr
    assert "leave --scores out" in result.stderr


def test_an_offset_lowers_the_classes_that_trained_with_masks_alone(ldvc, damaged, picture, tmp_path):
    config = json.loads((damaged / "config.json").read_text())
    (damaged / "config.json").write_text(json.dumps(config | {"seen_classes": ["dog"]}))
    scores = {}
    for offset in ("0", "0.1"):
        call = ["segment", picture, "-m", damaged, "-l", "cat, dog|puppy, sofa", "-f", "npz", "--scores"]
        result = ldvc(*call, "-o", tmp_path / offset, "--seen-score-offset", offset)
        assert result.exit_code == 0, result.output
        scores[offset] = np.load(tmp_path / offset / "picture.npz")["scores"].astype(float)
    lost = (scores["0"] - scores["0.1"]).mean(axis=(1, 2))
    assert np.allclose(lost, [0, 0.1, 0], atol=1e-3)  # half precision
    assert json.loads((tmp_path / "0.1" / "names.json").read_text())["seen_score_offset"] == 0.1


def test_a_name_for_other_needs_a_threshold(ldvc, checkpoint, picture):
    assert_one_line(ldvc("segment", picture, "-m", checkpoint, "--other", "rest"), "--other 'rest'", "--threshold too")


def test_no_window_is_the_checkpoints_own_size(ldvc, checkpoint, picture, tmp_path):
    for name, options in (("plain", []), ("zero", ["--window", "0"])):
        assert ldvc("segment", picture, "-m", checkpoint, "-f", "png", "-o", tmp_path / name, *options).exit_code == 0
    plain, zero = ((tmp_path / name / "picture.png").read_bytes() for name in ("plain", "zero"))
    assert plain == zero
    assert json.loads((tmp_path / "zero" / "names.json").read_text())["inference"] is None


def test_an_offset_needs_a_checkpoint_that_says_what_it_trained_on(ldvc, checkpoint, picture):
    call = ["segment", picture, "-m", checkpoint, "--seen-score-offset", "0.1"]
    assert_one_line(ldvc(*call), "--seen-score-offset 0.1", "does not say which classes it trained on")


# ---- checkpoints


def test_a_folder_that_is_no_checkpoint_is_one_line(ldvc, checkpoint, picture, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("{")
    (tmp_path / "siglip").mkdir()
    (tmp_path / "siglip" / "config.json").write_text('{"model_type": "siglip"}')
    cases = [
        (tmp_path / "empty", "it has no config.json"),
        (tmp_path / "nosuch", "no such folder"),
        (tmp_path / "broken", "is no LDVC model ("),
        (picture, "is a file, not a model folder"),
        (tmp_path / "siglip", "it holds a 'siglip' model"),
    ]
    for folder, mention in cases:
        result = ldvc("segment", picture, "-m", folder, "-o", tmp_path / "out")
        assert_one_line(result, mention, "give ")


def test_without_the_embedded_checkpoint_a_model_is_asked_for(ldvc, picture, tmp_path, monkeypatch):
    monkeypatch.setattr(loading, "EMBEDDED_CHECKPOINT", tmp_path / "nosuch")
    assert_one_line(ldvc("segment", picture, "-m", tmp_path / "nosuch"), "part of a checkout", "name a model yourself")


@pytest.fixture
def damaged(checkpoint, tmp_path):
    """Return a copy of the checkpoint, to be damaged."""
    return shutil.copytree(checkpoint, tmp_path / "damaged")


def test_damaged_weights_are_one_line(ldvc, damaged, picture, tmp_path):
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    assert_one_line(ldvc("segment", picture, "-m", damaged, "-o", tmp_path / "out"), "cannot be loaded")
    weights.unlink()
    assert_one_line(ldvc("segment", picture, "-m", damaged, "-o", tmp_path / "out"), "cannot be loaded")


def test_missing_weights_are_never_filled_at_random(ldvc, damaged, picture, tmp_path):
    from safetensors.torch import load_file, save_file

    weights = load_file(damaged / "model.safetensors")
    del weights["text_adapter.projection.bias"]
    save_file(weights, damaged / "model.safetensors", metadata={"format": "pt"})
    result = ldvc("segment", picture, "-m", damaged, "-o", tmp_path / "out")
    assert_one_line(result, "lacks weights, first text_adapter.projection.bias")


def test_a_checkpoint_without_a_processor_is_one_line(ldvc, damaged, picture, tmp_path):
    for file in damaged.glob("*processor*"):
        file.unlink()
    for file in damaged.glob("*token*"):
        file.unlink()
    assert_one_line(ldvc("segment", picture, "-m", damaged, "-o", tmp_path / "out"), "cannot be loaded")


def test_a_checkpoint_without_a_vocabulary_asks_for_labels(make_model, tiny_processor, ldvc, picture, tmp_path):
    make_model().save_pretrained(tmp_path / "bare")
    tiny_processor.save_pretrained(tmp_path / "bare")
    result = ldvc("segment", picture, "-m", tmp_path / "bare", "-o", tmp_path / "out")
    assert_one_line(result, "no vocabulary of its own; name the classes with --labels")


@pytest.fixture
def baked(checkpoint, tmp_path):
    model, processor = loading.load_checkpoint(checkpoint)
    model.set_vocabulary(["cat", "dog"], processor, bake=True)
    model.save_pretrained(tmp_path / "baked")
    processor.save_pretrained(tmp_path / "baked")
    return tmp_path / "baked"


def test_a_baked_checkpoint_segments_its_own_vocabulary_only(ldvc, baked, picture, tmp_path):
    assert ldvc("segment", picture, "-m", baked, "-o", tmp_path / "out").exit_code == 0
    assert read_names(tmp_path / "out") == {"0": "cat", "1": "dog"}
    assert_one_line(ldvc("segment", picture, "-m", baked, "-l", "sofa", "-o", tmp_path / "b"), "baked vocabulary")


def test_an_adapter_is_put_on_the_clip_that_it_names(ldvc, clip_folder, tiny_processor, picture, tmp_path):
    from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation

    fields = {"decoder_attention_heads": 4, "decoder_intermediate_size": 32, "num_regions": 2, "route_top_k": 2}
    model = LDVCForSemanticSegmentation.from_clip_pretrained(str(clip_folder), **fields)
    model.config.seen_classes = ["cat"]
    model.save_adapter(tmp_path / "adapter")
    tiny_processor.save_pretrained(tmp_path / "adapter")
    call = ["segment", picture, "-m", tmp_path / "adapter", "-l", "cat, dog", "-o", tmp_path / "out"]
    result = ldvc(*call, "--seen-score-offset", "0.2")
    assert result.exit_code == 0, result.output
    assert read_names(tmp_path / "out") == {"0": "cat", "1": "dog"}
    assert json.loads((tmp_path / "out" / "names.json").read_text())["seen_score_offset"] == 0.2


# ---- settings and stars


def test_settings_follow_the_options():
    settings = batch.make_settings
    assert settings(None, None, None) is None
    assert (settings(64, None, None).short_side, settings(64, None, None).window) == (64, 0)
    window = settings(None, 512, None)
    assert (window.short_side, window.window, window.stride) == (0, 512, 426)  # ZegCLIP's
    assert settings(448, 512, 100).stride == 100


def test_classes_that_trained_without_masks_get_a_star(make_model, tiny_processor, tmp_path):
    model = make_model()
    model.config.seen_classes = ["Cat", "couch"]
    model.save_pretrained(tmp_path)
    tiny_processor.save_pretrained(tmp_path)
    classes = {"cat": ["cat"], "sofa": ["sofa", "couch"], "sky": ["sky"]}
    segmenter = batch.Segmenter(str(tmp_path), "cpu", classes, None, None)
    assert segmenter.unseen_names() == ["sky"]


# ---- evaluate


def test_evaluate_hands_every_argument_over(ldvc, monkeypatch):
    seen = []
    monkeypatch.setattr("ldvc.commands.scoring.evaluate", lambda arguments: seen.append(arguments) or 3)
    arguments = ["folder", "--dataset", "data", "--offsets", "0", "0.1", "--reduce_labels", "-h"]
    assert ldvc("evaluate", *arguments).exit_code == 3
    assert seen == [arguments]


@pytest.mark.parametrize("name", sorted(ldvc_command.COMMANDS))
def test_every_subcommand_shows_its_own_help_with_examples(ldvc, name):
    result = ldvc(name, "--help")
    assert result.exit_code == 0
    assert re.search(rf"^ +(ldvc {name}|accelerate launch .*|.*`ldvc {name}) ?", result.stdout, re.MULTILINE) or (
        f"`ldvc {name} " in result.stdout
    )
    assert ldvc_command.COMMANDS[name][1] in " ".join(ldvc("--help").stdout.split())


def test_what_an_archive_may_be_is_what_can_be_converted():
    assert set(ARCHIVES) == set(CONVERTERS)


def test_evaluate_shows_its_own_help(ldvc):
    result = ldvc("evaluate", "--help")
    assert result.exit_code == 0
    assert "usage: ldvc evaluate" in result.stdout
    assert "--dataset" in result.stdout


# ---- labels check


def test_labels_check_fails_on_errors_and_passes_with_warnings(ldvc, checkpoint):
    result = ldvc("labels", "check", "cat, kitten, cat", "-m", checkpoint)
    assert result.exit_code == 1
    assert "error    duplicate: 'cat'" in result.stdout
    assert "| cat   | kitten |" in result.stdout
    result = ldvc("labels", "check", "cat, kitten", "-m", checkpoint)
    assert result.exit_code == 0
    assert "warning  split badly: 'kitten'" in result.stdout


def test_labels_check_prints_json_and_knows_the_own_vocabulary(ldvc, checkpoint):
    result = ldvc("labels", "check", "--json", "-m", checkpoint, "--max-cosine", "-1", "--pairs", "2")
    content = json.loads(result.stdout)
    assert (content["labels"], content["model"]) == (["cat", "dog", "sofa"], str(checkpoint))
    assert (content["warnings"], len(content["pairs"])) == (3, 2)


def test_labels_check_of_a_baked_checkpoint_compares_nothing(ldvc, baked):
    result = ldvc("labels", "check", "cat, dog", "-m", baked)
    assert result.exit_code == 0
    assert "embeddings were not compared" in result.stdout


# ---- bench


@pytest.mark.slow
def test_bench_prints_a_table_and_writes_json(ldvc, checkpoint, tmp_path):
    options = ["--classes", "1,3", "--sizes", "32", "--batches", "2", "--repeats", "2", "--json", tmp_path / "b.json"]
    result = ldvc("bench", "-m", checkpoint, *options)
    assert result.exit_code == 0, result.output
    assert [line.split("|")[1:4] for line in result.stdout.splitlines()[2:4]] == [
        [" 1 ", " 32 ", " 2 "],
        [" 3 ", " 32 ", " 2 "],
    ]
    content = json.loads((tmp_path / "b.json").read_text())
    assert content["repeats"] == 2
    row = content["rows"][1]
    assert row["case"] == {"num_classes": 3, "side": 32, "batch_size": 2}
    assert all(0 < row[name]["p50"] <= row[name]["p95"] for name in ("tower", "model", "whole"))
    assert row["model_ratio"] > 0
    assert row["text_ms"] > 0


@pytest.mark.slow
def test_bench_times_a_baked_checkpoint_without_its_text_tower(baked):
    model, processor = loading.load_checkpoint(baked)
    [row] = bench.run_bench(model, processor, [bench.BenchCase(5, 32, 1)], repeats=1)
    assert row.text_ms is None
    assert "| - |" in bench.render_rows([row])


def test_bench_uses_the_checkpoint_s_own_size_by_default(tiny_processor):
    assert cli.own_side(tiny_processor) == 32


@pytest.mark.parametrize("text", ["0", "1,x", "", "-1", "1.5"])
def test_bench_refuses_what_is_no_list_of_numbers(ldvc, text):
    assert_one_line(ldvc("bench", f"--classes={text}"), f"--classes is {text!r}", "1,20,100")


def test_bench_cases_are_checked():
    with pytest.raises(ValueError, match="side is 0; use at least 1"):
        bench.BenchCase(1, 0, 1)
    with pytest.raises(ValueError, match="repeats is 0; use at least 1"):
        list(bench.run_bench(None, None, [], 0))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux lets the peak start again")
def test_the_peak_of_memory_is_that_of_the_case():
    device = torch.device("cpu")
    bench.reset_peak(device)
    before, on_device = bench.read_peak(device)
    block = np.ones(25_000_000)  # 200 MB
    after, _ = bench.read_peak(device)
    assert on_device is None
    assert after - before > 150, block.size


# ---- doctor


def test_doctor_finds_this_machine_well(ldvc, checkpoint):
    result = ldvc("doctor", "--model", checkpoint)
    assert result.exit_code == 0, result.output
    assert result.stdout.endswith("OK: LDVC works on this machine.\n")
    assert f"  torch: {torch.__version__}" in result.stdout
    assert "an image alone and in a batch: same logits" in result.stdout


def test_doctor_tests_itself_without_any_checkpoint(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "EMBEDDED_CHECKPOINT", tmp_path / "nosuch")
    checks = doctor.check_itself()
    assert checks[0].value == "tiny random weights, made in memory"
    assert not any(check.is_failure for check in checks), checks


def test_doctor_sees_a_broken_promise(ldvc, checkpoint, monkeypatch):
    real = doctor.logits_of
    monkeypatch.setattr(
        doctor, "logits_of", lambda *arguments: real(*arguments) * len(arguments[2])
    )  # as if a batch changed its pictures
    result = ldvc("doctor", "--model", checkpoint)
    assert result.exit_code == 1
    failed = result.stdout.partition("FAILED")[2]
    assert "an image alone and in a batch: logits differ by" in failed
    assert "the order of the names" not in failed


def test_doctor_sees_label_maps_of_a_wrong_size(checkpoint, monkeypatch):
    from ldvc.model import inference_ldvc

    wrong = inference_ldvc.Segmentation(torch.zeros(2, 2, dtype=torch.int64), list("abcde"))
    monkeypatch.setattr(inference_ldvc, "segment", lambda *_, **__: wrong)
    failed = [check for check in doctor.check_itself(checkpoint) if check.is_failure]
    assert [check.name for check in failed] == ["a label map of the picture's size"]
    assert "gave ids [0] of shape (2, 2)" in failed[0].value


def test_doctor_names_the_remedy_for_a_model_that_does_not_load(ldvc, tmp_path):
    result = ldvc("doctor", "--model", tmp_path)
    assert result.exit_code == 1
    assert "it has no config.json" in result.stdout
    assert "-> give another --model" in result.stdout


def test_doctor_names_the_remedy_for_a_torchvision_that_does_not_fit(monkeypatch):
    def fail(package):
        if package == "torchvision":
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setattr(doctor, "version", lambda package: "9.9")
    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    text = doctor.render(doctor.examine())
    assert "torchvision: 9.9 does not fit torch (operator torchvision::nms does not exist)" in text
    assert "-> install torch and torchvision together from one index, or pip uninstall torchvision" in text


def test_doctor_names_what_is_missing_or_broken(monkeypatch):
    def find(package):
        if package in ("safetensors", "torchvision"):
            raise doctor.PackageNotFoundError(package)
        return "1.0"

    def fail(package):
        raise ImportError("libtorch not found")

    monkeypatch.setattr(doctor, "version", find)
    monkeypatch.setattr(doctor.importlib, "import_module", fail)
    failed = {check.name: check.remedy for check in doctor.check_versions() if check.is_failure}
    assert failed["safetensors"] == "pip install safetensors"
    assert failed["import torch"] == "install it again: pip install --force-reinstall torch"
    assert not doctor.check_torchvision().is_failure


def test_doctor_lists_extras_with_their_use(monkeypatch):
    def find(package):
        raise doctor.PackageNotFoundError(package)

    monkeypatch.setattr(doctor, "version", find)
    extras = {check.name: check for check in doctor.check_extras()}
    assert extras["gradio"].value == "not installed; only for ldvc demo"
    assert extras["gradio"].remedy == "pip install -e '.[demo]' in the checkout"
    assert not extras["gradio"].is_failure


# ---- demo


def test_demo_launches_the_page(ldvc, monkeypatch):
    calls = []
    module = types.SimpleNamespace(launch=lambda *arguments, **options: calls.append((arguments, options)))
    monkeypatch.setitem(sys.modules, "ldvc.app.page", module)
    assert ldvc("demo", "folder", "--host", "::1", "--port", "8080").exit_code == 0
    assert ldvc("demo").exit_code == 0
    assert calls[0] == (("folder",), {"host": "::1", "port": 8080})
    assert calls[1] == ((str(loading.EMBEDDED_CHECKPOINT),), {"host": "127.0.0.1", "port": 7860})


def test_demo_reports_a_taken_port_in_one_line(ldvc, monkeypatch):
    def launch(*_, **__):
        raise OSError("port 7860 of 127.0.0.1 cannot be used (Address already in use); choose another with --port.")

    monkeypatch.setitem(sys.modules, "ldvc.app.page", types.SimpleNamespace(launch=launch))
    assert_one_line(ldvc("demo"), "port 7860", "--port")
