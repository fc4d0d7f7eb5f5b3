"""Exported programs give the model's logits for other batches, sizes and class counts, and refuse what they cannot."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ldvc.commands.export import export as main
from ldvc.export import (
    EXPORT_FILE,
    ExportedLDVC,
    ExportedSizes,
    Program,
    export_onnx,
    export_torch,
    measure_agreement,
    size_multiple,
    write_sizes,
)


SIZES = ExportedSizes(16, 32, 3, 32, "onnx", "model.onnx")
CALLS = [(2, 32, 48, 5), (1, 64, 64, 1), (3, 96, 32, 17), (1, 48, 128, 3)]  # images, height, width, classes


def make_inputs(images, height, width, classes):
    return torch.randn(images, 3, height, width), F.normalize(torch.randn(classes, 32), dim=-1)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(scope="module")
def onnx_folder(model, tmp_path_factory):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    folder = tmp_path_factory.mktemp("onnx")
    assert export_onnx(model, folder) == folder / "model.onnx"
    return folder


@pytest.mark.slow
@torch.no_grad()
def test_onnx_gives_the_logits_of_other_batches_sizes_and_class_counts(model, onnx_folder):
    program = ExportedLDVC(onnx_folder)
    for call in [*CALLS, (1, 16, 16, 2)]:
        pixels, embeds = make_inputs(*call)
        expected = model(pixel_values=pixels, class_embeds=embeds).logits
        torch.testing.assert_close(program(pixels, embeds), expected, atol=1e-3, rtol=0)


@pytest.mark.slow
def test_the_onnx_graph_has_named_inputs_and_free_axes(onnx_folder):
    import onnx

    graph = onnx.load(onnx_folder / "model.onnx", load_external_data=False).graph
    axes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.input}
    assert axes == {"pixel_values": [0, 3, 0, 0], "class_embeds": [0, 32]}  # 0: free
    assert [value.name for value in graph.output] == ["logits"]


@pytest.mark.slow
def test_int8_is_smaller_and_its_agreement_is_measured(model, tmp_path, onnx_folder):
    folder = tmp_path / "int8"
    assert export_onnx(model, folder, int8=True) == folder / "model_int8.onnx"
    assert not (folder / "model.onnx").exists()
    pixels, embeds = make_inputs(2, 32, 48, 5)
    agreement = measure_agreement(model, ExportedLDVC(folder), pixels, embeds)
    exact = measure_agreement(model, ExportedLDVC(onnx_folder), pixels, embeds)
    assert exact == {"same_class": 1.0, "largest_difference": pytest.approx(0, abs=1e-3)}
    assert agreement["largest_difference"] > 0
    assert 0 <= agreement["same_class"] <= 1


@pytest.mark.slow
@torch.no_grad()
def test_a_torch_program_gives_the_logits_of_other_batches_sizes_and_class_counts(model, tmp_path):
    export_torch(model, tmp_path)
    program = ExportedLDVC(tmp_path)
    for call in CALLS:
        pixels, embeds = make_inputs(*call)
        expected = model(pixel_values=pixels, class_embeds=embeds).logits
        torch.testing.assert_close(program(pixels, embeds), expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_what_is_exported_is_the_model_itself(model):
    pixels, embeds = make_inputs(2, 32, 48, 5)
    assert torch.equal(Program(model)(pixels, embeds), model(pixel_values=pixels, class_embeds=embeds).logits)


@pytest.mark.parametrize(
    ("fields", "multiple"),
    [
        ({}, 16),
        ({"decoder_attention": "full"}, 8),
        ({"decoder_attention": "none"}, 8),
        ({"decoder_attention": "window", "window_size": 3}, 24),
        ({"decoder_query": "class"}, 8),
    ],
)
def test_sides_are_whole_patches_and_whole_regions(make_model, fields, multiple):
    assert size_multiple(make_model(**fields).config) == multiple


@pytest.mark.parametrize(
    ("pixels", "embeds", "message"),
    [
        (
            (1, 3, 40, 64),
            (5, 32),
            r"`pixel_values` is 40 x 64 pixels; .* multiples of 16 from 32 on: resize to 32 x 64",
        ),
        ((1, 3, 16, 64), (5, 32), r"`pixel_values` is 16 x 64 pixels; .* resize to 32 x 64"),
        ((3, 32, 32), (5, 32), r"`pixel_values` has shape \(3, 32, 32\); it must be \(images, 3, height, width\)"),
        ((1, 3, 32, 32), (5, 16), r"`class_embeds` has shape \(5, 16\); it must be \(classes, 32\)"),
        ((1, 3, 32, 32), (0, 32), r"`class_embeds` has shape \(0, 32\)"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(pixels, embeds, message):
    with pytest.raises(ValueError, match=message):
        SIZES.check(np.zeros(pixels), np.zeros(embeds))


def test_the_folder_says_what_its_program_takes(model, tmp_path):
    write_sizes(model.config, tmp_path, "torch", "model.pt2")
    written = json.loads((tmp_path / EXPORT_FILE).read_text())
    assert (written["size_multiple"], written["smallest_side"], written["projection_dim"]) == (16, 32, 32)


def test_a_folder_without_an_export_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no ldvc_export.json; write one with ldvc export"):
        ExportedLDVC(tmp_path)


def test_only_a_float32_model_in_eval_mode_is_exported(make_model, tmp_path):
    with pytest.raises(ValueError, match=r"the model is training; export model.float\(\).cpu\(\).eval\(\)"):
        export_torch(make_model().train(), tmp_path)
    with pytest.raises(ValueError, match=r"the model is in torch.bfloat16 on cpu"):
        export_torch(make_model().bfloat16(), tmp_path)


def test_int8_belongs_to_onnx(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["nowhere", "--output", str(tmp_path), "--format", "torch", "--int8"])
    assert "--int8 quantises ONNX programs" in capsys.readouterr().err
