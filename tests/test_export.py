"""Exported programs give the model's logits for other batches, sizes and class counts, and refuse what they cannot."""

import errno
import json
from collections import Counter

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import build_clipseg

from benchmarks.consumers_probe import CONSUMERS, PICTURES, PROMPTS
from ldvc.commands.export import export as main
from ldvc.export import export_folder, export_model, folder, measure_agreement
from ldvc.export.programs import PictureProgram, TextProgram, find_kind, picture_program, size_multiple
from ldvc.segmenters.clipseg import CLIPSegSegmenter
from ldvc.segmenters.exported import ExportedLDVC, ExportedSegmenter
from ldvc.segmenters.exported_folder import EXPORT_FILE, ExportedFolder, read_exported_folder
from ldvc.segmenters.training_free import TrainingFreeCLIP


DESCRIBED = ExportedFolder(
    kind="ldvc",
    format="onnx",
    picture_program="model.onnx",
    size_multiple=16,
    smallest_side=32,
    num_channels=3,
    projection_dim=32,
    max_length=77,
    pad_token_id=0,
    prompt_templates=["a photo of a {}"],
    image={},
    source={},
)
CALLS = [(2, 32, 48, 5), (1, 64, 64, 1), (3, 96, 32, 17), (1, 48, 128, 3)]  # images, height, width, classes
NAMES = ["cat", "zebra", "dog", "sofa grass", "sky"]


def make_inputs(images, height, width, classes):
    return torch.randn(images, 3, height, width), F.normalize(torch.randn(classes, 32), dim=-1)


def needs_onnx():
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)


@pytest.fixture(scope="module")
def model(make_model):
    return make_model()


@pytest.fixture(scope="module")
def models(model, clip_model):
    return {
        "ldvc": model,
        "training_free": TrainingFreeCLIP(clip_model, "naclip"),
        "clipseg": CLIPSegSegmenter(build_clipseg()),
    }


@pytest.fixture(scope="module")
def exported(models, tiny_processor, tmp_path_factory):
    """Return a function from a kind to the folder that it is exported to, once."""
    needs_onnx()
    done = {}

    def export(kind):
        if kind not in done:
            done[kind] = tmp_path_factory.mktemp(kind)
            export_model(models[kind], tiny_processor, done[kind])
        return done[kind]

    return export


@pytest.fixture(scope="module")
def int8_folder(model, tiny_processor, tmp_path_factory):
    needs_onnx()
    place = tmp_path_factory.mktemp("int8")
    export_model(model, tiny_processor, place, int8=True)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ldvc", "training_free", "clipseg"])
@torch.no_grad()
def test_onnx_gives_the_logits_of_other_batches_sizes_and_class_counts(models, exported, kind):
    program = ExportedLDVC(exported(kind))
    for call in [*CALLS, (1, 16, 16, 2)]:
        pixels, embeds = make_inputs(*call)
        expected = models[kind](pixel_values=pixels, class_embeds=embeds).logits
        torch.testing.assert_close(program(pixels, embeds), expected, atol=1e-3, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ldvc", "training_free", "clipseg"])
@torch.no_grad()
def test_new_names_get_the_models_embeddings_and_synonyms_its_means(models, exported, tiny_processor, kind):
    segmenter = ExportedSegmenter(exported(kind))
    for names in (NAMES, ["cat"], {"animal": ["cat", "zebra"], "sky": ["sky"]}):
        prompts = tiny_processor(class_names=names, return_tensors="pt")
        expected = models[kind].get_class_embeds(**prompts)
        torch.testing.assert_close(segmenter.get_class_embeds(**prompts), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_call_of_many_classes_goes_in_parts_where_the_folder_says_so(models, exported, monkeypatch):
    program = ExportedLDVC(exported("clipseg"))
    assert program.folder.classes_at_a_time == 64
    pixels, embeds = make_inputs(2, 32, 32, 70)
    expected = models["clipseg"](pixel_values=pixels, class_embeds=embeds).logits
    torch.testing.assert_close(program(pixels, embeds), expected, atol=1e-4, rtol=0)


@pytest.mark.slow
def test_the_onnx_graph_has_named_inputs_free_axes_and_operators_that_others_run(exported):
    import onnx

    graph = onnx.load(exported("ldvc") / "model.onnx", load_external_data=False).graph
    axes = {value.name: [axis.dim_value for axis in value.type.tensor_type.shape.dim] for value in graph.input}
    assert axes == {"pixel_values": [0, 3, 0, 0], "class_embeds": [0, 32]}  # 0: free
    assert [value.name for value in graph.output] == ["logits"]
    shapes = {value.name: str(value.type.tensor_type.shape) for value in graph.value_info}
    reshapes = [node for node in graph.node if node.op_type == "Reshape"]
    assert not any(shapes.get(node.input[0]) == shapes.get(node.output[0], "") for node in reshapes)
    assert {node.domain for node in graph.node} <= {"", "ai.onnx"}
    operators = Counter(node.op_type for node in graph.node)
    assert not {"Sign", "Loop", "If", "SplitToSequence", "SequenceAt"} & set(operators), "some consumers lack these"
    text = onnx.load(exported("ldvc") / "text.onnx", load_external_data=False).graph
    assert [value.name for value in text.input] == ["input_ids", "attention_mask"]


@pytest.mark.slow
def test_onnx_runtime_gets_its_own_attention_on_the_same_weights(exported):
    import onnx

    place = exported("ldvc")
    plain, fused = (
        Counter(node.op_type for node in onnx.load(place / name, load_external_data=False).graph.node)
        for name in ("model.onnx", "model_onnxruntime.onnx")
    )
    assert fused["MultiHeadAttention"] == plain["Attention"] > 0
    assert not fused["Attention"]
    assert (place / "model_onnxruntime.onnx").stat().st_size < (place / "model.onnx.data").stat().st_size
    assert b"stack_trace" not in (place / "model.onnx").read_bytes(), "no paths of the machine that exported"


@pytest.mark.slow
@pytest.mark.parametrize("consumer", CONSUMERS)
@torch.no_grad()
def test_programs_run_in_every_consumer_that_is_installed(model, exported, tiny_processor, consumer):
    module, run = CONSUMERS[consumer]
    package = pytest.importorskip(module, reason=f"{consumer} is not installed")
    if module == "cv2" and int(package.__version__.split(".")[0]) < 5:
        pytest.skip(f"OpenCV {package.__version__} has no Attention; 5.0 is the first that runs the program")
    place = exported("ldvc")
    for call in ((2, 32, 48, 5), (1, 48, 32, 3)):
        pixels, embeds = make_inputs(*call)
        expected = model(pixel_values=pixels, class_embeds=embeds).logits
        found = run(place / PICTURES, {"pixel_values": pixels.numpy(), "class_embeds": embeds.numpy()})
        np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)
    prompts = tiny_processor(class_names=NAMES, return_tensors="np")
    expected = model.get_class_embeds(**tiny_processor(class_names=NAMES, return_tensors="pt"))
    found = run(place / PROMPTS, {name: prompts[name] for name in ("input_ids", "attention_mask")})
    np.testing.assert_allclose(found, expected.numpy(), atol=1e-4)


@pytest.mark.slow
def test_int8_is_smaller_and_its_agreement_is_measured(model, int8_folder, exported):
    data = [place / "model.onnx.data" for place in (int8_folder, exported("ldvc"))]
    assert data[0].stat().st_size < 0.6 * data[1].stat().st_size
    pixels, embeds = make_inputs(2, 32, 48, 5)
    agreement = measure_agreement(model, ExportedLDVC(int8_folder), pixels, embeds)
    exact = measure_agreement(model, ExportedLDVC(exported("ldvc")), pixels, embeds)
    assert exact == {"same_class": 1.0, "largest_difference": pytest.approx(0, abs=1e-3)}
    assert agreement["largest_difference"] > 0
    assert 0 <= agreement["same_class"] <= 1


@pytest.mark.slow
def test_in_8_bits_a_picture_has_the_same_logits_alone_and_beside_others(int8_folder, monkeypatch):
    program = ExportedLDVC(int8_folder)
    assert program.folder.one_picture_at_a_time
    pixels, embeds = make_inputs(3, 32, 48, 5)
    pixels[1] *= 20  # a picture that would set the scale of all
    together = program(pixels, embeds)
    for index in range(3):
        assert torch.equal(program(pixels[index : index + 1], embeds)[0], together[index])
    assert not torch.equal(program._run(pixels, embeds), together), "one call for all would change them"


@pytest.mark.slow
@torch.no_grad()
def test_a_torch_program_gives_the_logits_of_other_batches_sizes_and_class_counts(model, tiny_processor, tmp_path):
    described = export_model(model, tiny_processor, tmp_path / "program", file_format="torch")
    assert (described.text_program, described.smallest_side) == (None, 32)
    program = ExportedLDVC(tmp_path / "program")
    for call in CALLS:
        pixels, embeds = make_inputs(*call)
        expected = model(pixel_values=pixels, class_embeds=embeds).logits
        torch.testing.assert_close(program(pixels, embeds), expected, atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="this exported program has no text tower"):
        program.encode_prompts(torch.ones(1, 4, dtype=torch.long))


@pytest.mark.slow
def test_prompts_that_are_none_of_the_programs_are_refused(exported, tiny_processor):
    program = ExportedLDVC(exported("ldvc"))
    prompts = tiny_processor(class_names=NAMES, prompt_templates="sky {}", return_tensors="pt")
    with pytest.raises(ValueError, match="do not begin with the words of the template"):
        program.encode_prompts(prompts["input_ids"])
    with pytest.raises(ValueError, match=r"has shape \(1, 78\)"):
        program.encode_prompts(torch.ones(1, 78, dtype=torch.long))


@torch.no_grad()
def test_what_is_exported_is_the_model_itself(models, tiny_processor):
    prompts = tiny_processor(class_names=NAMES, return_tensors="pt")
    for model in models.values():
        pixels, embeds = make_inputs(1, 32, 48, 5)
        expected = model(pixel_values=pixels, class_embeds=embeds).logits
        torch.testing.assert_close(picture_program(model)(pixels, embeds), expected, atol=1e-5, rtol=0)
        expected = model.get_class_embeds(**prompts)
        torch.testing.assert_close(TextProgram(model)(**prompts), expected, atol=1e-6, rtol=1e-5)


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
    assert size_multiple(make_model(**fields)) == multiple


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
        DESCRIBED.check(pixels, embeds)


def write_description(place, **changes):
    content = {**vars(DESCRIBED), **changes}
    (place / EXPORT_FILE).write_text(json.dumps({k: v for k, v in content.items() if v is not ...}))


def test_a_folder_says_what_its_programs_take(tmp_path):
    DESCRIBED.write(tmp_path)
    (tmp_path / "model.onnx").touch()
    assert read_exported_folder(tmp_path) == DESCRIBED


def test_a_folder_without_an_export_or_of_another_format_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no ldvc_export.json; write one with ldvc export"):
        ExportedLDVC(tmp_path)
    old = {"size_multiple": 16, "smallest_side": 16, "num_channels": 3, "projection_dim": 32, "format": "onnx"}
    (tmp_path / EXPORT_FILE).write_text(json.dumps({**old, "file": "model.onnx"}))
    with pytest.raises(ValueError, match=r"was exported in format 1, and this LDVC reads format 2; export .* again"):
        ExportedLDVC(tmp_path)
    (tmp_path / EXPORT_FILE).write_text("{")
    with pytest.raises(ValueError, match=r"ldvc_export.json in .* is damaged"):
        ExportedLDVC(tmp_path)
    write_description(tmp_path, kind=...)
    with pytest.raises(ValueError, match=r"lacks a field .*kind"):
        ExportedLDVC(tmp_path)
    write_description(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no model.onnx; export the checkpoint again"):
        ExportedLDVC(tmp_path)


def test_a_full_disk_leaves_nothing(model, tiny_processor, tmp_path, monkeypatch):
    def write(model, folder, **options):
        (folder / "model.onnx").touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(folder, "write_programs", write)
    with pytest.raises(OSError, match=r"cannot be written \(the disk is full\), and nothing was left there") as caught:
        export_model(model, tiny_processor, tmp_path / "program")
    assert caught.value.errno == errno.ENOSPC
    assert not list(tmp_path.iterdir())


def test_an_export_takes_the_place_of_an_older_one(model, tiny_processor, tmp_path, monkeypatch):
    def write(model, folder, **options):
        (folder / "model.onnx").write_text("new")
        return {"picture_program": "model.onnx"}

    monkeypatch.setattr(folder, "write_programs", write)
    (tmp_path / "model.onnx").write_text("old")
    (tmp_path / EXPORT_FILE).write_text("old")
    described = export_model(model, tiny_processor, tmp_path, load_settings={"size": 32})
    assert (tmp_path / "model.onnx").read_text() == "new"
    assert read_exported_folder(tmp_path) == described
    assert described.load_settings == {"size": 32}
    assert described.image["size"] == dict(tiny_processor.image_processor.size)
    assert described.prompt_token_ids == model.config.prompt_token_ids
    with pytest.raises(ValueError, match="is exported already"):
        export_folder(tmp_path, tmp_path / "again")


def test_a_baked_vocabulary_has_no_text_program_and_its_embeddings_beside_it(
    make_model, tiny_processor, tmp_path, monkeypatch
):
    model = make_model()
    model.set_vocabulary(["cat", "sky"], tiny_processor, bake=True)
    monkeypatch.setattr(folder, "write_pictures", lambda model, place, int8: {"picture_program": EXPORT_FILE})
    described = export_model(model, tiny_processor, tmp_path)
    assert described.text_program is None
    assert described.default_class_names == ["cat", "sky"]
    assert np.array_equal(np.load(tmp_path / "class_embeds.npy"), model.baked_vocabulary().numpy())


def test_only_a_float32_model_in_eval_mode_is_exported(make_model, tiny_processor, tmp_path):
    with pytest.raises(ValueError, match=r"the model is training; export model.float\(\).cpu\(\).eval\(\)"):
        export_model(make_model().train(), tiny_processor, tmp_path, file_format="torch")
    with pytest.raises(ValueError, match=r"the model is in torch.bfloat16 on cpu"):
        export_model(make_model().bfloat16(), tiny_processor, tmp_path, file_format="torch")
    assert not list(tmp_path.iterdir())


def test_what_no_program_can_follow_is_refused(clip_model):
    with pytest.raises(ValueError, match="looks at a picture twice, which no program does; set feedback to false"):
        find_kind(TrainingFreeCLIP(clip_model, "naclip", feedback=True))
    with pytest.raises(ValueError, match="programs have no singular value decomposition; use 'newton_schulz'"):
        find_kind(TrainingFreeCLIP(clip_model, "pearl", rotation="svd"))
    with pytest.raises(ValueError, match="a PictureProgram cannot be exported; give LDVC, a CLIP or a CLIPSeg"):
        find_kind(PictureProgram(TrainingFreeCLIP(clip_model)))


def test_int8_belongs_to_onnx(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["nowhere", "--output", str(tmp_path), "--format", "torch", "--int8"])
    assert "--int8 quantises ONNX programs" in capsys.readouterr().err
