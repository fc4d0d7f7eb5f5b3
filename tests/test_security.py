"""What a stranger's file can do here: be read or be refused, never run, never escape a folder, never exhaust memory.

Held elsewhere: SHA-256 of a published folder and which of its files run (`test_publish.py`); the page's loopback
binding, upload limit and private endpoints (`test_demo.py`); no label text opens a file (`test_session.py`); pixel
limits of the command line (`test_formats.py`). Longer fuzzing: `python -m tests.fuzz pictures --seconds 180`.
"""

import ast
import contextlib
import json
import os
import pickle
import shutil
import time
import zipfile
from pathlib import Path, PurePath

import datasets
import numpy as np
import pytest
from accelerate.state import AcceleratorState
from conftest import png_of
from fuzz import FUZZERS, fuzz
from gradio import Request
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors import SafetensorError
from typer.testing import CliRunner

from ldvc.app import page as page_module
from ldvc.app import session
from ldvc.app.cli import app
from ldvc.commands.training import train
from ldvc.data import samples
from ldvc.data.converters import find_voc2012
from ldvc.loading import load_checkpoint
from ldvc.masks.coco import COCO_JOURNAL
from ldvc.masks.files import find_pictures, open_picture
from ldvc.masks.formats import Format, OutputFolder, describe_names
from ldvc.masks.writer import is_whole
from ldvc.model.image_processing_ldvc import LDVCImageProcessor
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.vocabulary_ldvc import LDVCVocabulary
from ldvc.training.recipe import RecipeError, read_recipe


ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(
    path
    for pattern in ("*.py", "ldvc/**/*.py", "metrics/zero_shot_miou/*.py", "picturebook/*.py", "benchmarks/*.py")
    for path in ROOT.glob(pattern)
)


# ---- no code of ours runs what a file says

RUNS_OBJECTS = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "joblib", "runpy", "code"}
RUNS_TEXT = {"eval", "exec", "compile", "__import__"}
RUNS_COMMANDS = {"system", "popen", "execv", "execve", "execvp", "execl", "spawnl", "spawnv"}
# (file, what) -> why it is harmless. An entry that is no longer needed fails the test, too.
ALLOWED = {
    ("ldvc/app/doctor.py", "import_module of a variable"): "names of packages from its own table",
    ("ldvc/data/provenance.py", "subprocess"): "git with fixed words, for the commit in a result",
    ("ldvc/experiments/run.py", "subprocess"): "train.py and ldvc report as a list, without a shell",
    ("ldvc/masks/files.py", "MAX_IMAGE_PIXELS"): "for one picture at a time, and back; tested below",
    ("ldvc/__init__.py", "import_module of a variable"): "homes of its own public names",
    ("ldvc/__main__.py", "import_module of a variable"): "modules of its own subcommands",
    ("benchmarks/__main__.py", "import_module of a variable"): "names of its own benchmarks",
    ("benchmarks/consumers.py", "subprocess"): "the interpreter that the caller names, with its own probe",
    ("benchmarks/consumers_probe.py", "import_module of a variable"): "names of consumers from its own table",
    ("benchmarks/engines.py", "subprocess"): "ldvc segment as a list, without a shell",
    ("benchmarks/readers.py", "subprocess"): "the interpreter that the caller names, with its own probe",
    ("benchmarks/readers_probe.py", "import_module of a variable"): "names of tools from its own tables",
    ("benchmarks/readers_probe.py", "exec"): "the recipes of docs/tools.md, to see that they run",
    ("benchmarks/readers_probe.py", "subprocess"): "pngquant of the same environment, as a list, without a shell",
    ("benchmarks/traps.py", "subprocess"): "pip, and lines of its own in a temporary folder, without a shell",
    ("benchmarks/runtime.py", "subprocess"): "this interpreter and ldvc segment as lists, without a shell",
    ("benchmarks/startup.py", "subprocess"): "this interpreter with fixed lines, to time a fresh start",
    ("ldvc/experiments/hub_files/app.py", "trust_remote_code"): "of the folder `model` beside it alone",
    ("ldvc/experiments/hub_files/handler.py", "trust_remote_code"): "of the folder that the handler lies in",
}


class Scan(ast.NodeVisitor):
    """Lists calls and imports that could run what a file says."""

    def __init__(self):
        self.found = set()

    def visit_Import(self, node):
        for alias in node.names:
            self._module(alias.name.split(".")[0])

    def visit_ImportFrom(self, node):
        self._module((node.module or "").split(".")[0])
        if node.module == "os":
            self.found |= {f"os.{alias.name}" for alias in node.names if alias.name in RUNS_COMMANDS}

    def _module(self, name):
        if name in RUNS_OBJECTS or name == "subprocess":
            self.found.add(name)

    def visit_Assign(self, node):
        for target in node.targets:
            if isinstance(target, ast.Attribute) and target.attr == "MAX_IMAGE_PIXELS":
                self.found.add("MAX_IMAGE_PIXELS")
        self.generic_visit(node)

    def visit_Call(self, node):
        function, options = node.func, {word.arg: ast.unparse(word.value) for word in node.keywords}
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = ast.unparse(function.value) if isinstance(function, ast.Attribute) else ""
        rules = {
            name: not owner and name in RUNS_TEXT,
            f"os.{name}": owner == "os" and name in RUNS_COMMANDS,
            "torch.load of objects": (owner, name) == ("torch", "load") and options.get("weights_only") != "True",
            "np.load of objects": owner in ("np", "numpy") and name == "load" and "allow_pickle" in options,
            f"yaml.{name}": owner == "yaml" and "load" in name and not name.startswith("safe_"),
            f"{name} of an archive": name in ("extractall", "extract", "unpack_archive"),
            "import_module of a variable": name == "import_module" and not isinstance(node.args[0], ast.Constant),
            "shell": options.get("shell", "False") != "False",
            "trust_remote_code": options.get("trust_remote_code", "False") != "False",
            "weights that are no safetensors": options.get("use_safetensors", "True") == "False",
        }
        self.found |= {what for what, is_so in rules.items() if is_so}
        self.generic_visit(node)


def scan(source):
    visitor = Scan()
    visitor.visit(ast.parse(source))
    return visitor.found


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import pickle", "pickle"),
        ("from dill import loads", "dill"),
        ("eval(text)", "eval"),
        ("def f():\n exec(text)", "exec"),
        ("__import__(name)", "__import__"),
        ("os.system(line)", "os.system"),
        ("from os import popen", "os.popen"),
        ("import subprocess", "subprocess"),
        ("run(line, shell=True)", "shell"),
        ("torch.load(path)", "torch.load of objects"),
        ("torch.load(path, weights_only=False)", "torch.load of objects"),
        ("torch.load(path, weights_only=flag)", "torch.load of objects"),
        ("np.load(path, allow_pickle=True)", "np.load of objects"),
        ("yaml.load(text, Loader)", "yaml.load"),
        ("archive.extractall(folder)", "extractall of an archive"),
        ("importlib.import_module(name)", "import_module of a variable"),
        ("load(folder, trust_remote_code=True)", "trust_remote_code"),
        ("Image.MAX_IMAGE_PIXELS = None", "MAX_IMAGE_PIXELS"),
    ],
)
def test_the_scan_sees_what_runs_a_file(source, found):
    assert scan(source) == {found}


@pytest.mark.parametrize(
    "source", ["torch.load(path, weights_only=True)", "yaml.safe_load(text)", "model.eval()", "re.compile(text)"]
)
def test_the_scan_passes_what_does_not(source):
    assert scan(source) == set()


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_module_runs_what_a_file_says(path):
    allowed = {what for name, what in ALLOWED if name == path.relative_to(ROOT).as_posix()}
    assert scan(path.read_text()) == allowed


def test_every_exception_of_the_scan_names_a_file():
    assert {name for name, _ in ALLOWED} <= {path.relative_to(ROOT).as_posix() for path in SOURCES}


# ---- a file that would run if it were unpickled


class Trap:
    """Makes a folder where it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def trap(tmp_path):
    """Return pickled bytes and the folder that they make when they run; here it is shown that they would."""
    marker = tmp_path / "the trap has closed"
    content = pickle.dumps(Trap(marker))
    pickle.loads(content)
    marker.rmdir()
    yield content, marker
    assert not marker.exists()


def as_zip(content, path):
    """Store pickled bytes as torch.save does."""
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", content)
        archive.writestr("archive/version", "3\n")
        archive.writestr("archive/byteorder", "little")


def plant(trap, source, tmp_path, name, is_zip):
    """Copy a folder of weights, and put a pickle in their place."""
    folder = shutil.copytree(source, tmp_path / "model")
    (folder / "model.safetensors").unlink()
    as_zip(trap[0], folder / name) if is_zip else (folder / name).write_bytes(trap[0])
    return folder


@pytest.mark.parametrize("is_zip", [True, False])
@pytest.mark.parametrize(
    "name",
    [
        "pytorch_model.bin",
        "model.safetensors",
    ],
)
def test_a_pickled_checkpoint_is_refused_in_one_line(checkpoint, tmp_path, trap, name, is_zip):
    folder = plant(trap, checkpoint, tmp_path, name, is_zip)
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_checkpoint(folder)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickled_checkpoint_never_runs(checkpoint, tmp_path, trap, is_zip):
    folder = plant(trap, checkpoint, tmp_path, "pytorch_model.bin", is_zip)
    with pytest.raises((pickle.UnpicklingError, ValueError, OSError)):
        LDVCForSemanticSegmentation.from_pretrained(folder)


@pytest.mark.parametrize("is_zip", [True, False])
def test_a_pickled_clip_never_runs(clip_folder, tmp_path, trap, is_zip):
    folder = plant(trap, clip_folder, tmp_path, "pytorch_model.bin", is_zip)
    with pytest.raises((pickle.UnpicklingError, ValueError, OSError)):
        LDVCForSemanticSegmentation.from_clip_pretrained(folder, decoder_attention_heads=4)


def test_a_pickled_adapter_and_vocabulary_are_refused_and_never_run(tiny_model, tiny_processor, tmp_path, trap):
    tiny_model.save_adapter(tmp_path / "adapter")
    (tmp_path / "adapter" / "ldvc_adapter.safetensors").write_bytes(trap[0])
    with pytest.raises(ValueError, match="damaged"):
        tiny_model.load_adapter_weights(tmp_path / "adapter")
    tiny_model.encode_vocabulary(["cat"], tiny_processor).save(tmp_path / "vocabulary")
    (tmp_path / "vocabulary" / "vocabulary.safetensors").write_bytes(trap[0])
    with pytest.raises(ValueError, match="altered"):
        LDVCVocabulary.load(tmp_path / "vocabulary")


@pytest.fixture(scope="module")
def state(tmp_path_factory):
    """Return a function that gives a fresh copy of a run of two steps with its state."""
    kept = []

    def copy(train_arguments, folder):
        if not kept:
            AcceleratorState._reset_state(reset_partial_state=True)
            kept.append(tmp_path_factory.mktemp("state") / "run")
            assert train([*train_arguments, "--max_steps", "2", "--output_dir", str(kept[0])]) == 0
        AcceleratorState._reset_state(reset_partial_state=True)
        return shutil.copytree(kept[0], folder / "run") / "states" / "step_0000002"

    return copy


def resume(train_arguments):
    return train([*train_arguments, "--max_steps", "2", "--resume_from_checkpoint", "latest"])


STATE_FILES = ["model.safetensors", "optimizer.bin", "random_states_0.pkl"]


@pytest.mark.slow
def test_a_training_state_that_someone_changed_never_runs(train_arguments, state, tmp_path):
    """Whatever files a state has: none may run."""
    folder, marker = state(train_arguments, tmp_path), tmp_path / "the trap has closed"
    for path in folder.iterdir():
        before = path.read_bytes()
        as_zip(pickle.dumps(Trap(marker)), path)
        with contextlib.suppress(Exception):
            resume(train_arguments)
        assert not marker.exists(), path.name
        path.write_bytes(before)


@pytest.mark.slow
@pytest.mark.parametrize("name", STATE_FILES)
def test_a_changed_file_of_a_training_state_never_runs(train_arguments, state, tmp_path, trap, name):
    as_zip(trap[0], state(train_arguments, tmp_path) / name)
    with contextlib.suppress(pickle.UnpicklingError, SafetensorError):  # in one line: see the next test
        resume(train_arguments)


@pytest.mark.slow
@pytest.mark.parametrize("name", STATE_FILES)
def test_a_changed_file_of_a_training_state_is_one_line(train_arguments, state, tmp_path, trap, name):
    as_zip(trap[0], state(train_arguments, tmp_path) / name)
    assert resume(train_arguments) == 2


def test_pickled_objects_in_a_result_are_not_unpacked(tmp_path, trap):
    np.savez(tmp_path / "result.npz", label_map=np.array([Trap(trap[1])], dtype=object))
    assert is_whole(tmp_path / "result.npz"), "its sum is right, and that is all that was looked at"


@pytest.mark.parametrize("key", ["output_dir", "class_names", "model", "base", "unknown"])
def test_a_recipe_makes_no_objects(tmp_path, trap, key):
    value = f"!!python/object/apply:os.mkdir ['{trap[1]}']"
    (tmp_path / "recipe.yaml").write_text(f"{key}: {value}\n")
    with pytest.raises(RecipeError, match=r"no valid YAML.*python/object"):
        read_recipe([str(tmp_path / "recipe.yaml")])
    with pytest.raises(RecipeError, match=f"--{key}.*is no valid value"):
        read_recipe([f"--{key}", value])


# ---- bombs


class Rows(list):
    """Rows of a dataset, decoded when they are asked for."""

    def __getitem__(self, index):
        cell = {"bytes": super().__getitem__(index), "path": None}
        return {name: datasets.Image().decode_example(cell) for name in ("image", "label")}


READERS = {
    "command line": lambda path: open_picture(path),
    "page": lambda path: session.read_picture(path),
    "processor": lambda path: LDVCImageProcessor()(path, return_tensors="pt"),
    "label map": lambda path: LDVCImageProcessor()(
        Image.new("RGB", (8, 8)), segmentation_maps=path, return_tensors="pt"
    ),
    "pipeline": lambda path: LDVCImageProcessor().load_rgb(path),
    "data": lambda path: samples.read_sample(Rows([path.read_bytes()]), 0),
}


@pytest.mark.parametrize(
    "reader",
    READERS,
)
def test_a_decompression_bomb_is_refused_by_every_reader_before_it_is_unpacked(tmp_path, reader):
    (tmp_path / "bomb.png").write_bytes(png_of(100_000, 100_000))
    limit, start = Image.MAX_IMAGE_PIXELS, time.monotonic()
    with pytest.raises(ValueError, match=r"bomb|more than|too large|exceeds limit"):
        READERS[reader](tmp_path / "bomb.png")
    assert time.monotonic() - start < 5, "ten gigabytes would take longer"
    assert limit == Image.MAX_IMAGE_PIXELS


def test_pillow_keeps_its_own_limit_whatever_was_imported():
    own_limit = 89_478_485  # a quarter of a gigabyte in three channels
    assert own_limit == Image.MAX_IMAGE_PIXELS


def test_a_result_that_is_a_bomb_is_not_unpacked_to_see_whether_it_is_whole(tmp_path):
    (tmp_path / "bomb.png").write_bytes(png_of(100_000, 100_000))
    start = time.monotonic()
    is_whole(tmp_path / "bomb.png")
    assert time.monotonic() - start < 5


# ---- paths

HOSTILE = st.text("ab./\\~ \u202e*?[", min_size=1, max_size=12)


def everything_under(folder):
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


@pytest.mark.slow
@settings(
    max_examples=60,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(names=st.lists(HOSTILE, min_size=1, max_size=4))
def test_results_stay_in_their_folder_whatever_pictures_are_called(tmp_path_factory, names):
    folder = tmp_path_factory.mktemp("hostile")
    for name in names:
        path = folder / "pictures" / f"{name.replace('/', '_')}.png"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"")
    output = OutputFolder(folder / "out", list(Format), describe_names(["cat"]), 1)
    try:
        found = find_pictures([str(path) for path in (folder / "pictures").iterdir()])
    except ValueError:
        return  # refused for its name
    for picture in found.pictures:
        for path in output.paths(picture.name):
            assert path.resolve().is_relative_to((folder / "out").resolve())


def test_a_link_in_a_folder_of_pictures_moves_no_result(tmp_path, images):
    outside, folder = tmp_path / "outside", tmp_path / "pictures"
    outside.mkdir()
    folder.mkdir()
    images[0].save(outside / "far.png")
    (folder / "link.png").symlink_to(outside / "far.png")
    (folder / "loop").symlink_to(folder)
    found = find_pictures([str(folder)], recursive=True)
    assert [picture.name for picture in found.pictures] == [PurePath("link")]


def test_what_an_old_journal_and_names_say_writes_nothing_outside(checkpoint, tmp_path, images):
    images[0].save(tmp_path / "picture.png")
    folder = tmp_path / "deep" / "masks"
    arguments = ["segment", str(tmp_path / "picture.png"), "--model", str(checkpoint), "--output", str(folder)]
    arguments += ["--format", "coco-rle", "--format", "png", "--device", "cpu"]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    stranger = {
        "name": "../../escaped",
        "image": {"file_name": "../../../etc/passwd", "width": 1, "height": 1},
        "annotations": [],
    }
    (folder / COCO_JOURNAL).write_text(json.dumps(stranger) + "\n")
    before = [path for path in everything_under(tmp_path) if not path.startswith("deep/masks")]
    result = CliRunner().invoke(app, [*arguments, "--skip-existing"])
    assert result.exit_code == 0, result.output
    assert [path for path in everything_under(tmp_path) if not path.startswith("deep/masks")] == before
    assert set(everything_under(folder)) == {"coco.json", "names.json", "picture.png"}


@pytest.mark.parametrize("image_id", ["../../outside", "/etc/passwd", "a/../../../outside"])
def test_a_list_of_images_does_not_lead_out_of_its_source(tmp_path, image_id):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for name in ("ImageSets/Segmentation", "JPEGImages", "SegmentationClass"):
        (root / name).mkdir(parents=True)
    for split in ("train", "val"):
        (root / "ImageSets" / "Segmentation" / f"{split}.txt").write_text(f"{image_id}\n")
    with pytest.raises(ValueError, match=r"no id of an image"):
        find_voc2012(tmp_path)


@pytest.mark.slow
def test_the_zip_of_the_page_has_flat_names_whatever_the_classes_are_called(tmp_path):
    segmenter = session.Segmenter()
    visit = session.Visit(segmenter.encode(session.EXAMPLE_PICTURE))
    answer = segmenter.segment(visit, "../../etc/passwd, /tmp/x, C:\\x, ~", 0.5)
    segmenter.write_masks(answer, tmp_path / "masks.zip")
    with zipfile.ZipFile(tmp_path / "masks.zip") as archive:
        assert archive.namelist() == ["masks.png", "names.json", "overlay.png"]


@pytest.fixture(scope="module")
def page():
    return page_module.Page(session.Segmenter())


@pytest.mark.slow
@pytest.mark.parametrize("session_hash", ["../escaped", "{tmp_path}/escaped", "..", "a/../../escaped"])
def test_a_visitor_does_not_choose_where_the_page_writes(page, tmp_path, session_hash):
    """Browsers send the name of their session themselves, and so may anybody send another."""
    page.downloads = inside = tmp_path / "downloads" / "inside"
    request = Request(session_hash=session_hash.format(tmp_path=tmp_path))
    path = Path(page.on_download(page.first_visit, request)[1])
    assert path.resolve().parent.parent == inside.resolve()
    assert not (tmp_path / "escaped").exists()
    assert everything_under(tmp_path / "downloads") == [
        "inside",
        f"inside/{path.parent.name}",
        f"inside/{path.parent.name}/ldvc_masks.zip",
    ]


# ---- what the README says


def test_the_readme_pins_a_revision_where_it_runs_remote_code():
    text = (ROOT / "README.md").read_text()
    assert "no remote code" in text
    for paragraph in text.split("\n\n"):
        if "trust_remote_code=True" in paragraph:
            assert "revision=" in paragraph


# ---- fuzzing

CASES = {"pictures": 60, "recipes": 60, "vocabularies": 200}  # about two seconds together


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    sorted(FUZZERS),
)
def test_damaged_files_are_read_or_refused(name):
    findings = fuzz(name, seconds=30, seed=1, max_cases=CASES[name])
    assert findings.cases == CASES[name]
    assert findings.errors == {}
    assert findings.taken, "some damage does no harm"


@pytest.mark.parametrize("text", ["!!bool x", "!!timestamp x", "12: cat"])
def test_a_recipe_that_breaks_the_yaml_reader_is_refused(tmp_path, text):
    (tmp_path / "recipe.yaml").write_text(f"seed: {text}\n" if text.startswith("!") else text)
    with pytest.raises(RecipeError, match=r"recipe"):
        read_recipe([str(tmp_path / "recipe.yaml")])


def test_a_decoder_s_own_error_is_a_value_error_of_the_processor(tmp_path, images, monkeypatch):
    """Pillow's AVIF decoder raises RuntimeError at some damaged files."""
    images[0].save(tmp_path / "picture.png")

    def fail(self):
        raise RuntimeError("Conversion from YUV failed")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fail)
    with pytest.raises(ValueError, match=r"picture\.png.*YUV"):
        LDVCImageProcessor()(tmp_path / "picture.png", return_tensors="pt")
