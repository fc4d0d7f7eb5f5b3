"""The runtime without PyTorch gives what PyTorch gives, of the same programs, pixels, names and arithmetic."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldvc.app import cli, runtimes
from ldvc.model.image_processing_ldvc import LDVCImageProcessor
from ldvc.model.image_processing_ldvc import PixelClasses as TorchPixels
from ldvc.model.inference_ldvc import InferenceSettings, WindowScores, encode_classes, normalise, segment
from ldvc.model.inference_ldvc import resized_blocks as torch_blocks
from ldvc.places import EMBEDDED_CHECKPOINT, ROOT
from ldvc.runtime import RuntimeSegmenter, cache, programs, scores, windows
from ldvc.runtime.pictures import PictureReader
from ldvc.runtime.programs import Precision, Runtime, read_export


PICTURE = str(ROOT / "assets" / "demo_page.jpg")
NAMES = {"cat": ["cat", "kitten"], "dog": ["dog"], "grass": ["grass"], "sky": ["sky"]}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("LDVC_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def checkpoint(make_model, tiny_processor, tmp_path_factory):
    """A tiny model with names of its own, one of them trained without masks."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = make_model(seen_classes=["cat", "sofa"], seen_score_offset=0.1)
    model.set_vocabulary(["cat", "dog", "sofa", "grass"], tiny_processor)
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def program(checkpoint, tmp_path_factory):
    """The same, exported once for all tests."""
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from ldvc.export import export_folder

    folder = tmp_path_factory.mktemp("program")
    export_folder(checkpoint, folder)
    return folder


@pytest.fixture(scope="module")
def torch_path(checkpoint):
    from ldvc.loading import load

    return load(checkpoint, "cpu")


# ---- arithmetic


@pytest.mark.parametrize("size", [(37, 61), (5, 4), (96, 80)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"threshold": 0.6},
        {"threshold": [0.2, 0.9, 0.0, 0.5, 0.7], "keep_scores": True},
        {"top_k": 1},
        {"top_k": 3, "keep_scores": True},
        {"top_k": 99},
    ],
    ids=str,
)
def test_label_maps_are_those_of_pytorch(size, options):
    logits = torch.randn(5, 9, 11) * 3
    expected = TorchPixels(5, size, **options)
    expected.add_upsampled(logits)
    found = scores.PixelClasses(5, size, **options)
    found.add_upsampled(np.ascontiguousarray(np.moveaxis(logits.numpy(), 0, -1)))
    np.testing.assert_array_equal(found.label_map, expected.label_map.numpy())
    for field in ("top_ids", "top_scores", "scores"):
        ours, theirs = getattr(found, field), getattr(expected, field)
        assert (ours is None) == (theirs is None)
        if ours is not None:
            np.testing.assert_allclose(ours, theirs.numpy(), atol=1e-6)  # of float32, by another order of sums


@pytest.mark.parametrize("class_ids", [[0, 1, 2, 2, 2], [0, 1, 2, -1, -1], [0, 1, 2, 3, -1]])
def test_rivals_compete_as_in_pytorch(class_ids):
    logits, num_classes = torch.randn(5, 7, 6) * 3, max(class_ids) + 1
    expected = TorchPixels(num_classes, (29, 31), 0.5, top_k=2, class_ids=class_ids)
    expected.add_upsampled(logits)
    found = scores.PixelClasses(num_classes, (29, 31), 0.5, 2, class_ids=class_ids)
    found.add_upsampled(np.ascontiguousarray(np.moveaxis(logits.numpy(), 0, -1)))
    np.testing.assert_array_equal(found.label_map, expected.label_map.numpy())
    np.testing.assert_array_equal(found.top_ids, expected.top_ids.numpy())


def test_of_equal_scores_the_lower_id_wins():
    best, ids = scores.best_scores(np.zeros((1, 2, 12), np.float32), 10)
    np.testing.assert_array_equal(ids[0, 0], np.arange(10))
    assert scores.best_scores(np.zeros((1, 2, 12), np.float32), 1)[1].tolist() == [[[0], [0]]]
    assert best.shape == (1, 2, 10)


@pytest.mark.parametrize("threshold", [1.5, [0.1, 0.2], "high", float("nan")])
def test_a_threshold_that_is_none_is_named(threshold):
    with pytest.raises(ValueError, match="`threshold`"):
        scores.PixelClasses(3, (4, 4), threshold)


@pytest.mark.parametrize("size", [(48, 40), (24, 20), (60, 55)])
@pytest.mark.parametrize("stride", [8, 16])
def test_windows_are_averaged_as_in_pytorch(size, stride):
    settings = InferenceSettings(0, 16, stride, 3)
    pixels = torch.randn(3, 48, 40)

    def logits_of(pixel_values):
        return torch.stack([pixel_values[:, 0, ::8, ::8], pixel_values[:, 1, ::8, ::8]], dim=1)

    def model(pixel_values, class_embeds):
        return type("Output", (), {"logits": logits_of(pixel_values)})()

    def read(top, left):
        return pixels[:, top : top + 16, left : left + 16]

    expected = torch.empty(2, *size)
    for rows, columns, block in torch_blocks(WindowScores(model, read, (48, 40), None, settings), size, 2):
        expected[:, rows, columns] = block
    ours = windows.WindowScores(
        lambda batch: np.moveaxis(logits_of(torch.from_numpy(batch)).numpy(), 1, -1),
        lambda *corner: read(*corner).numpy(),
        (48, 40),
        settings,
    )
    found = np.empty((*size, 2), np.float32)
    for rows, columns, block in windows.resized_blocks(ours, size, 2):
        found[rows, columns] = block
    np.testing.assert_allclose(np.moveaxis(found, -1, 0), expected.numpy(), atol=1e-6)


@pytest.mark.parametrize("size", [{"height": 48, "width": 64}, {"shortest_edge": 33}], ids=str)
@pytest.mark.parametrize("resample", [2, 3])
def test_pixels_are_equal_to_the_last_bit(size, resample):
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (57, 71, 3), dtype=np.uint8))
    theirs = LDVCImageProcessor(size=size, resample=resample)
    reader = PictureReader({"size": size, "resample": resample, "mean": theirs.image_mean, "std": theirs.image_std})
    np.testing.assert_array_equal(reader.prepare(picture).pixels, theirs.prepare_rgb(picture).numpy())
    window = normalise(picture, theirs.image_mean, theirs.image_std).numpy()
    np.testing.assert_array_equal(reader.normalise(picture), window)


# ---- a checkpoint and its program


@pytest.mark.slow
def test_names_get_the_embeddings_of_pytorch(program, torch_path):
    found = RuntimeSegmenter(program).encode_classes(NAMES)[1]
    # one kernel for both would be chance: products of other blocks round differently
    np.testing.assert_allclose(found, encode_classes(*torch_path, NAMES)[1].numpy(), atol=1e-5)


@pytest.mark.slow
def test_kept_embeddings_need_no_text_tower(program, monkeypatch):
    first = RuntimeSegmenter(program).encode_classes(["cat", "sky"])[1]
    again = RuntimeSegmenter(program)
    monkeypatch.setattr(again.names, "_open_text", None)
    np.testing.assert_array_equal(again.encode_classes(["cat", "sky"])[1], first)


@pytest.mark.slow
def test_embeddings_that_were_cut_off_are_made_again(program, tmp_path):
    first = RuntimeSegmenter(program).encode_classes(["cat", "sky"])[1]
    (place,) = (tmp_path / "cache" / "names").glob("*.npy")
    place.write_bytes(place.read_bytes()[:-40])
    np.testing.assert_array_equal(RuntimeSegmenter(program).encode_classes(["cat", "sky"])[1], first)
    place.write_bytes(b"")
    np.testing.assert_array_equal(RuntimeSegmenter(program).encode_classes(["cat", "sky"])[1], first)


@pytest.mark.slow
def test_kept_embeddings_are_of_one_tokenizer(program, tmp_path):
    folder = shutil.copytree(program, tmp_path / "copy")
    key = RuntimeSegmenter(folder).names.key({"cat": ["cat"]})
    assert RuntimeSegmenter(program).names.key({"cat": ["cat"]}) == key
    path = folder / "tokenizer.json"
    path.write_text(path.read_text() + " ")
    assert RuntimeSegmenter(folder).names.key({"cat": ["cat"]}) != key


@pytest.mark.slow
def test_a_program_of_another_configuration_goes_on_no_folder(program, tmp_path):
    def fingerprint(folder):
        return runtimes.LightModel(
            runtimes.Choice(Runtime.ONNX, Precision.FLOAT32, ""), str(folder)
        ).settings_fingerprint([])

    assert fingerprint(shutil.copytree(program, tmp_path / "copy")) == fingerprint(program)
    source = json.loads((program / programs.EXPORT_FILE).read_text())["source"]
    assert fingerprint(spoil(program, tmp_path, source=source | {"config": "00"})) != fingerprint(program)


@pytest.mark.slow
def test_an_export_over_another_leaves_nothing_of_its_classes(program, clip_folder, tmp_path):
    from ldvc.export import export_folder

    folder = shutil.copytree(program, tmp_path / "copy")
    assert (folder / "vocabulary.json").is_file()
    export_folder(str(clip_folder), folder)
    assert not list(folder.glob("vocabulary.*"))
    assert RuntimeSegmenter(folder).own_names() == []


@pytest.mark.slow
def test_a_vocabulary_of_the_same_text_tower_serves_a_clip(clip_folder, tmp_path):
    from ldvc.export import export_folder
    from ldvc.loading import load

    model, processor = load(clip_folder, "cpu")
    vocabulary = model.encode_vocabulary(["cat", "dog"], processor)
    vocabulary.save(tmp_path / "names")
    export_folder(str(clip_folder), tmp_path / "clip")
    segmenter = RuntimeSegmenter(tmp_path / "clip")
    segmenter.use_vocabulary(tmp_path / "names")
    assert segmenter.own_names() == ["cat", "dog"]
    dataclasses.replace(vocabulary, fingerprint="0" * 64).save(tmp_path / "others")
    with pytest.raises(ValueError, match="has other text weights; encode the names by that model, or give them as"):
        segmenter.use_vocabulary(tmp_path / "others")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"class_names": None},
        {"settings": InferenceSettings(96, 32, 16), "threshold": {"cat": 0.6}},
        {"background": ["sofa", "photo"], "negative_labels": ["of"], "top_k": 2},
    ],
    ids=str,
)
def test_pictures_are_segmented_as_in_pytorch(program, torch_path, options):
    options = {"class_names": NAMES, **options}
    expected, found = segment(*torch_path, PICTURE, **options), RuntimeSegmenter(program).segment(PICTURE, **options)
    assert found.class_names == expected.class_names
    assert (found.label_map == expected.label_map.numpy()).mean() >= 0.999


@pytest.mark.slow
@pytest.mark.parametrize("names", [["cat", "cat "], [""], [], ["cat" * 200], {"cat": []}])
def test_bad_names_are_refused_with_the_words_of_pytorch(program, torch_path, names):
    with pytest.raises(ValueError, match=r".") as expected:
        encode_classes(*torch_path, names)
    with pytest.raises(ValueError, match=r".") as found:
        RuntimeSegmenter(program).encode_classes(names)
    assert str(found.value) == str(expected.value)


@pytest.mark.slow
def test_a_size_that_the_program_does_not_take_is_named(program):
    with pytest.raises(ValueError, match=r"33 x 32 pixels; this program takes multiples of"):
        RuntimeSegmenter(program).logits(np.zeros((1, 3, 33, 32), np.float32), np.zeros((2, 32), np.float32))


BLOCKER = """
import sys

class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("torch", "transformers", "torchvision"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Blocker())
from ldvc.__main__ import main
sys.argv = ["ldvc", *sys.argv[1:]]
main()
"""
FORMATS = [part for kind in ("png", "overlay", "grey", "npz", "labelme", "cutout") for part in ("--format", kind)]


def run_segment(output, *options, light=False):
    command = [sys.executable, *(["-c", BLOCKER] if light else ["-m", "ldvc"]), "segment", PICTURE, *FORMATS]
    command += ["--output", str(output), *options]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )


@pytest.mark.slow
def test_the_command_writes_the_files_of_pytorch_where_that_cannot_be_imported(checkpoint, program, tmp_path):
    done = run_segment(tmp_path / "light", "--model", str(program), light=True)
    assert done.returncode == 0, done.stderr
    assert "Runtime: onnx, float32" in done.stdout
    done = run_segment(tmp_path / "torch", "--model", str(checkpoint), "--runtime", "torch")
    assert done.returncode == 0, done.stderr
    files = sorted(path.relative_to(tmp_path / "torch") for path in (tmp_path / "torch").rglob("*") if path.is_file())
    assert len(files) > 6
    for file in files:
        if file.name != "names.json":
            assert (tmp_path / "light" / file).read_bytes() == (tmp_path / "torch" / file).read_bytes(), file
    facts = json.loads((tmp_path / "light" / "names.json").read_text())
    assert (facts["runtime"], facts["precision"]) == ("onnx", "float32")


def test_a_checkpoint_without_pytorch_is_told_what_to_install(tmp_path):
    done = run_segment(tmp_path / "out", "--runtime", "torch", light=True)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "needs the package 'torch'" in done.stderr
    assert "pip install" in done.stderr


# ---- bad folders, and the cache


def spoil(program, tmp_path, **changes):
    folder = tmp_path / "spoilt"
    shutil.copytree(program, folder)
    path = folder / programs.EXPORT_FILE
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"export_version": 1}, "format 1"),
        ({"format": "torch"}, "a program of PyTorch"),
        ({"picture_program": "gone.onnx"}, "has no gone.onnx"),
    ],
    ids=str,
)
def test_folders_of_other_exports_are_refused_in_one_line(program, tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        RuntimeSegmenter(spoil(program, tmp_path, **changes))
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_a_program_that_was_cut_off_is_named(program, tmp_path):
    folder = spoil(program, tmp_path)
    path = folder / read_export(folder).picture_program
    path.write_bytes(path.read_bytes()[:1000])
    for other in folder.glob("*onnxruntime*.onnx"):
        other.write_bytes(other.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"\.onnx' cannot be opened .*ldvc export"):
        RuntimeSegmenter(folder)


@pytest.fixture
def exporter(monkeypatch):
    """Writes what only looks like a program, and counts."""
    calls = []

    def export(model, folder, settings):
        calls.append(model)
        for name in (programs.EXPORT_FILE, "model.onnx"):
            (folder / name).write_text("{}")

    monkeypatch.setattr(cache, "export_into", export)
    return calls


def test_a_checkpoint_is_exported_once(exporter):
    said = []
    for _ in range(2):
        cache.exported_folder(EMBEDDED_CHECKPOINT, say=said.append)
    assert len(exporter) == len(said) == 1


def test_another_checkpoint_has_another_key(tmp_path):
    shutil.copytree(EMBEDDED_CHECKPOINT, tmp_path / "own")
    key = cache.checkpoint_key(EMBEDDED_CHECKPOINT)
    assert cache.checkpoint_key(tmp_path / "own") == key  # its place does not matter
    assert cache.checkpoint_key(tmp_path / "own", {"method": "nacl"}) != key
    weights = tmp_path / "own" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    assert cache.checkpoint_key(tmp_path / "own") != key


def test_a_damaged_cache_is_named(exporter):
    folder = cache.exported_folder(EMBEDDED_CHECKPOINT)
    (folder / "model.onnx").write_text("{")
    with pytest.raises(ValueError, match=r"is damaged .*model.onnx is cut off.*delete that folder") as error:
        RuntimeSegmenter.from_checkpoint(EMBEDDED_CHECKPOINT)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()], ids=repr)
def test_an_export_that_fails_leaves_nothing(monkeypatch, tmp_path, error):
    def fail(model, folder, settings):
        (folder / "model.onnx").write_bytes(b"half")
        raise error

    monkeypatch.setattr(cache, "export_into", fail)
    with pytest.raises(type(error)) as caught:
        cache.exported_folder(EMBEDDED_CHECKPOINT)
    assert list((tmp_path / "cache" / "exports").iterdir()) == []
    if isinstance(error, OSError):
        assert "the disk is full" in str(caught.value)
        assert "LDVC_CACHE" in str(caught.value)


# ---- the choice


def choose(runtime="auto", precision="float32", device="auto", model=str(EMBEDDED_CHECKPOINT)):
    return runtimes.choose(model, device, Runtime(runtime), Precision(precision))


def test_nothing_measured_is_pytorch_in_float32():
    assert choose()[:2] == (Runtime.TORCH, Precision.FLOAT32)


def test_what_was_measured_is_taken_for_this_model_and_these_releases(monkeypatch):
    best = {"float32": {"runtime": "onnx", "reason": "the fastest of 2"}}
    runtimes.remember(str(EMBEDDED_CHECKPOINT), None, best)
    assert choose().runtime is Runtime.ONNX
    assert "the fastest of 2" in str(choose())
    assert choose(device="cuda").runtime is Runtime.TORCH
    free = runtimes.choose(
        str(EMBEDDED_CHECKPOINT), "auto", Runtime.AUTO, Precision.FLOAT32, None, InferenceSettings(200)
    )
    assert (free.runtime, free.reason) == (Runtime.TORCH, "which takes pictures and windows of every size")
    assert runtimes.recall(str(EMBEDDED_CHECKPOINT), {"method": "nacl"}) == {}
    monkeypatch.setattr(runtimes, "versions", dict)
    assert choose().runtime is Runtime.TORCH


def test_damaged_measurements_count_for_none(tmp_path):
    runtimes.remember(str(EMBEDDED_CHECKPOINT), None, {})
    for content in ("{", "{}", "[]"):
        runtimes.measurements_file().write_text(content)
        assert choose().runtime is Runtime.TORCH
        runtimes.remember(str(EMBEDDED_CHECKPOINT), None, {"float32": {"runtime": "onnx", "reason": "measured"}})
        assert choose().runtime is Runtime.ONNX


@pytest.mark.slow
def test_an_exported_folder_runs_without_pytorch(program):
    assert choose(model=str(program)).runtime is Runtime.ONNX


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"runtime": "onnx", "precision": "bf16"}, "float32 on a CPU; use --runtime openvino"),
        ({"runtime": "onnx", "device": "cuda"}, "leave --device cuda out"),
    ],
    ids=str,
)
def test_what_a_runtime_does_not_serve_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        choose(**options)


def test_a_runtime_that_is_missing_names_the_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    with pytest.raises(ImportError, match=r"needs openvino, which is not installed: pip install .*openvino"):
        choose("openvino")


def test_folders_of_earlier_versions_go_on(tmp_path, monkeypatch):
    arguments = ["segment", PICTURE, "--output", str(tmp_path / "out"), "--format", "png"]
    assert run_cli(arguments) == 0
    path = Path(tmp_path / "out" / "names.json")
    facts = json.loads(path.read_text())
    assert (facts.pop("runtime"), facts.pop("precision")) == ("torch", "float32")
    path.write_text(json.dumps(facts))
    assert run_cli([*arguments, "--skip-existing"]) == 0


def run_cli(arguments):
    with pytest.raises(SystemExit) as left:
        cli.app(arguments)
    return left.value.code
