"""A saved folder works in a process that cannot import LDVC, and what is shipped there imports nothing else."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import HIDE_LDVC
from PIL import Image


ROOT = Path(__file__).resolve().parent.parent
MODEL = ROOT / "ldvc" / "model"
SHIPPED = (
    "compat_ldvc",
    "configuration_ldvc",
    "modeling_ldvc",
    "prompts_ldvc",
    "decoder_ldvc",
    "dense_ldvc",
    "dense_settings_ldvc",
    "regions_ldvc",
    "weights_ldvc",
    "loss_ldvc",
    "options_ldvc",
    "pixels_ldvc",
    "image_processing_ldvc",
    "processing_ldvc",
    "vocabulary_ldvc",
    "segmenter_ldvc",
    "inference_ldvc",
    "pipeline_ldvc",
)
ALLOWED = {"torch", "transformers", "huggingface_hub", "safetensors", "PIL", "numpy"}
NAMES = ["cat", "sofa", "grass"]

LOAD = (
    HIDE_LDVC
    + """
from PIL import Image
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForSemanticSegmentation, AutoProcessor, AutoTokenizer, pipeline
)

folder, again, image_file, result = sys.argv[1:]
image = Image.open(image_file)
found = {}
options = {"trust_remote_code": True}
config = AutoConfig.from_pretrained(folder, **options)
found["config"] = [type(config).__name__, config.num_vision_prompts]
processor = AutoProcessor.from_pretrained(folder, **options)
found["processor"] = [type(processor).__name__, type(processor.image_processor).__name__, processor.prompt_templates]
found["image_processor"] = type(AutoImageProcessor.from_pretrained(folder, **options)).__name__
found["ids"] = AutoTokenizer.from_pretrained(folder, **options)("a photo of a cat")["input_ids"]
inputs = processor(images=image, class_names=["sky", "dog"], return_tensors="pt")
for auto_class in (AutoModel, AutoModelForSemanticSegmentation):
    model = auto_class.from_pretrained(folder, **options)
    with torch.no_grad():
        outputs = model(**inputs)
        found[auto_class.__name__] = [
            type(model).__name__, type(model).__module__.split(".")[0], outputs.logits.tolist(),
            model(inputs["pixel_values"]).logits.tolist(),
            sorted(n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad),
        ]
maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[image.size[::-1]])
found["map"] = maps[0].tolist()

model.set_vocabulary(["dog", "sky"], processor)
model.save_pretrained(again)
processor.save_pretrained(again)
reloaded = AutoModel.from_pretrained(again, **options)
with torch.no_grad():
    found["again"] = reloaded(inputs["pixel_values"]).logits.tolist()
found["again processor"] = type(AutoProcessor.from_pretrained(again, **options)).__name__

segment = pipeline("image-segmentation", model=folder, trust_remote_code=True)
found["pipeline"] = {part["label"]: sum(part["mask"].point(bool).get_flattened_data()) for part in segment(image)}
zero_shot = pipeline("zero-shot-image-segmentation", model=folder, **options)
answers = zero_shot([image, image], candidate_labels=["dog", "sky"], batch_size=2)
found["zero-shot labels"] = [mask["label"] for mask in answers[1]]
found["own modules"] = [name for name in sys.modules if name.endswith("ldvc") and "." not in name]
with open(result, "w") as file:
    json.dump(found, file)
"""
)


@pytest.fixture(scope="module")
def image():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def model(make_model, tiny_processor):
    model = make_model()
    model.set_vocabulary(NAMES, tiny_processor)
    return model


@pytest.fixture(scope="module")
def published(tmp_path_factory, model, tiny_processor):
    """Return a folder as it would be uploaded."""
    folder = tmp_path_factory.mktemp("published") / "ldvc-tiny.v1"
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def fresh_process(tmp_path_factory, published, image):
    """Return what a process without our modules found, and where it saved the model again."""
    work = tmp_path_factory.mktemp("elsewhere")
    image.save(work / "image.png")
    environment = {
        **os.environ,
        "PYTHONPATH": "",
        "PYTHONSAFEPATH": "1",
        "HF_HOME": str(work / "hf"),
        "HF_MODULES_CACHE": str(work / "modules"),
        "HF_HUB_OFFLINE": "1",
    }
    arguments = [published, work / "again", work / "image.png", work / "result.json"]
    done = subprocess.run(
        [sys.executable, "-c", LOAD, *map(str, arguments)], cwd=work, env=environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return json.loads((work / "result.json").read_text()), work / "again"


@pytest.mark.slow
def test_every_auto_class_gives_the_class_of_the_folder(fresh_process, tokenizer):
    found, _ = fresh_process
    assert found["own modules"] == []
    assert found["config"] == ["LDVCConfig", 3]
    assert found["processor"] == ["LDVCProcessor", "LDVCImageProcessor", ["a photo of a {}"]]
    assert found["image_processor"] == "LDVCImageProcessor"
    assert found["ids"] == tokenizer("a photo of a cat")["input_ids"]
    for auto_class in ("AutoModel", "AutoModelForSemanticSegmentation"):
        assert found[auto_class][:2] == ["LDVCForSemanticSegmentation", "transformers_modules"]


@pytest.mark.slow
@torch.no_grad()
def test_logits_and_label_map_equal_those_of_this_process(fresh_process, model, tiny_processor, image):
    found, _ = fresh_process
    inputs = tiny_processor(images=image, class_names=["sky", "dog"], return_tensors="pt")
    outputs, default = model(**inputs), model(inputs["pixel_values"]).logits
    for auto_class in ("AutoModel", "AutoModelForSemanticSegmentation"):
        torch.testing.assert_close(torch.tensor(found[auto_class][2]), outputs.logits, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(torch.tensor(found[auto_class][3]), default, atol=1e-5, rtol=1e-5)
    maps = tiny_processor.post_process_semantic_segmentation(outputs, target_sizes=[(37, 50)])
    assert (torch.tensor(found["map"]) == maps[0]).float().mean() > 0.999  # rounding may decide a tie


@pytest.mark.slow
def test_clip_is_frozen_in_the_fresh_process(fresh_process):
    found, _ = fresh_process
    assert "clip" not in found["AutoModel"][4]
    assert {"vision_prompts", "text_prompts", "prompt_norm", "text_adapter", "decoder"} == set(found["AutoModel"][4])


@pytest.mark.slow
@torch.no_grad()
def test_a_model_saved_there_again_keeps_its_code_and_its_new_names(fresh_process, model, tiny_processor, image):
    found, again = fresh_process
    for name in SHIPPED:
        assert (again / f"{name}.py").read_text() == (MODEL / f"{name}.py").read_text(), name
    inputs = tiny_processor(images=image, class_names=["dog", "sky"], return_tensors="pt")
    torch.testing.assert_close(torch.tensor(found["again"]), model(**inputs).logits, atol=1e-5, rtol=1e-5)
    assert found["again processor"] == "LDVCProcessor"
    assert json.loads((again / "config.json").read_text())["id2label"] == {"0": "dog", "1": "sky"}


@pytest.mark.slow
def test_the_stock_pipeline_names_labels_and_covers_the_picture_once(fresh_process):
    found, _ = fresh_process
    assert set(found["pipeline"]) <= set(NAMES)
    assert sum(found["pipeline"].values()) == 37 * 50


@pytest.mark.slow
def test_the_zero_shot_pipeline_of_the_folder_takes_any_names(fresh_process):
    found, _ = fresh_process
    assert found["zero-shot labels"]
    assert set(found["zero-shot labels"]) <= {"dog", "sky"}


def test_the_folder_holds_all_the_code_and_nothing_unknown(published):
    code = {path.name for path in published.glob("*.py")}
    assert code == {f"{name}.py" for name in SHIPPED}
    others = {path.name for path in published.iterdir()} - code
    assert {
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    } <= others


def test_the_folder_names_no_path_of_this_machine(published):
    for path in published.glob("*.json"):
        text = path.read_text()
        assert str(ROOT) not in text, path.name
        assert "/tmp/" not in text, path.name


def test_every_auto_map_entry_names_a_class_in_a_shipped_file(published):
    config = json.loads((published / "config.json").read_text())
    processor = json.loads((published / "processor_config.json").read_text())
    references = {**config["auto_map"], **processor["auto_map"], **processor["image_processor"]["auto_map"]}
    for reference in references.values():
        module, name = reference.split(".")
        assert re.search(rf"^class {name}\b", (published / f"{module}.py").read_text(), re.MULTILINE), reference


# ---- the import graph


def imported_modules(name):
    """Top-level names that a shipped file imports, and the local ones that it imports relatively."""
    absolute, relative = set(), set()
    for node in ast.walk(ast.parse((MODEL / f"{name}.py").read_text())):
        if isinstance(node, ast.Import):
            absolute |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level:
            assert node.level == 1, f"{name} imports from a parent package"
            assert node.module, f"{name}: `from . import x` is not found by the loader of remote code"
            relative.add(node.module)
        elif isinstance(node, ast.ImportFrom):
            absolute.add(node.module.split(".")[0])
            assert node.names[0].name != "*", name
    return absolute, relative


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_file_imports_only_what_a_checkpoint_needs(name):
    absolute, relative = imported_modules(name)
    assert absolute - set(sys.stdlib_module_names) - ALLOWED - set(SHIPPED) == set()
    assert relative <= set(SHIPPED)
    assert absolute & set(SHIPPED) == set(), "siblings are imported by one dot, so that they are never loaded twice"


@pytest.mark.parametrize("name", SHIPPED)
def test_no_line_of_text_looks_like_a_relative_import_to_the_loader(name):
    """The loader searches text, docstrings included, with this pattern."""
    found = re.findall(r"^\s*from\s+\.(\S+)\s+import", (MODEL / f"{name}.py").read_text(), flags=re.MULTILINE)
    assert set(found) == imported_modules(name)[1]


@pytest.mark.parametrize(
    "entry", ["configuration_ldvc", "image_processing_ldvc", "processing_ldvc", "pipeline_ldvc", "modeling_ldvc"]
)
def test_a_file_that_the_library_loads_imports_itself_all_that_it_needs(entry):
    """Until 5.7 the loader copies of a local folder what the file itself imports, and nothing that its siblings do."""
    direct = imported_modules(entry)[1]
    assert set().union(*(imported_modules(name)[1] for name in direct)) - {entry} <= direct
    first = next(node for node in ast.parse((MODEL / f"{entry}.py").read_text()).body if is_foreign_import(node))
    assert first.module == "compat_ldvc", "the release is checked before anything is imported that it may lack"


def is_foreign_import(node):
    modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [getattr(node, "module", None)]
    return isinstance(node, ast.Import | ast.ImportFrom) and modules[0].split(".")[0] not in sys.stdlib_module_names


def test_the_folder_of_the_model_holds_what_ships_and_nothing_else():
    assert {path.stem for path in MODEL.glob("*.py")} == {"__init__", *SHIPPED}


@pytest.mark.parametrize("door", ["configuration_ldvc", "modeling_ldvc", "processing_ldvc"])
def test_a_door_opens_on_the_very_classes_of_the_model(door):
    opened, home = importlib.import_module(door), importlib.import_module(f"ldvc.model.{door}")
    assert opened.__all__ == home.__all__
    for name in home.__all__:
        assert getattr(opened, name) is getattr(home, name)
