"""Which Transformers, which LDVC, whose code: what does not fit is refused in one sentence, with the remedy."""

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
import transformers
import versions
from PIL import Image
from test_remote_code import MODEL, SHIPPED
from transformers import AutoConfig, pipeline
from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig

import ldvc as package
from ldvc.app import doctor
from ldvc.experiments.publish import NO_DIGESTS, PublishError, write_code_digests
from ldvc.loading import load_checkpoint
from ldvc.model import compat_ldvc
from ldvc.model.compat_ldvc import (
    LDVC_VERSION,
    check_code,
    check_release,
    check_saved_version,
    code_digest,
    on_white,
)
from ldvc.model.configuration_ldvc import LDVCConfig
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.pipeline_ldvc import ZeroShotImageSegmentationPipeline
from ldvc.places import EMBEDDED_CHECKPOINT


pytestmark = pytest.mark.filterwarnings("ignore:.*quantiz")

TASK = "zero-shot-image-segmentation"

# ---- releases of Transformers


@pytest.mark.parametrize("release", [*versions.REFUSED, "4.57.6", "5.3.0.dev0", "6.0.0", "6.0.0rc1", "unknown", ""])
def test_a_release_outside_the_range_is_refused_in_one_sentence(release):
    with pytest.raises(ImportError) as caught:
        check_release(release)
    assert str(caught.value) == versions.SENTENCE.format(release)


@pytest.mark.parametrize("release", [*versions.RELEASES, "5.4.0.dev0", "5.25.0", "5.100.1"])
def test_a_release_of_the_range_is_taken(release):
    check_release(release)


@pytest.mark.parametrize("entry", ["configuration_ldvc", "image_processing_ldvc", "processing_ldvc", "modeling_ldvc"])
def test_every_entry_of_a_folder_says_the_sentence_before_anything_fails(entry, tmp_path):
    """A library that has nothing but its version number: whatever else is imported first, would fail otherwise."""
    (tmp_path / "transformers.py").write_text("__version__ = '4.57.6'\n")
    for name in SHIPPED:
        (tmp_path / "folder").mkdir(exist_ok=True)
        shutil.copyfile(MODEL / f"{name}.py", tmp_path / "folder" / f"{name}.py")
    done = subprocess.run(
        [sys.executable, "-c", f"import folder.{entry}"], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.stderr.splitlines()[-1] == f"ImportError: {versions.SENTENCE.format('4.57.6')}"


def test_doctor_says_whether_this_release_was_tested(monkeypatch):
    monkeypatch.setattr(doctor, "version", lambda package: "5.23.0")
    assert doctor.check_transformers() == doctor.Check("this Transformers", "tested")
    monkeypatch.setattr(doctor, "version", lambda package: "5.19.0")
    assert doctor.check_transformers().value.startswith("not tested; 5.4.0, 5.6.0, ")
    monkeypatch.setattr(doctor, "version", lambda package: "5.6.0")
    assert "before 5.10 saving a stranger's processor" in doctor.check_transformers().remedy


def test_doctor_names_the_remedy_for_a_release_outside_the_range(monkeypatch):
    monkeypatch.setattr(transformers, "__version__", "5.3.0")
    monkeypatch.delitem(sys.modules, "ldvc.model.compat_ldvc")
    check = doctor.check_transformers()
    assert check.value == "LDVC needs Transformers 5.4 or newer and below 6, and this is 5.3.0"
    assert check.remedy == "pip install 'transformers>=5.4,<6'"
    assert check.is_failure


def test_doctor_and_the_page_name_the_releases_that_the_command_tests():
    assert doctor.TESTED == versions.RELEASES
    page, record = versions.PAGE.read_text(), json.loads(versions.RECORD.read_text())
    assert set(record["found"]) == {*versions.RELEASES, *versions.REFUSED}
    assert page == versions.render_page(page, record), "run `python -m tests.versions`"


def test_nothing_on_the_page_differs_without_a_reason():
    record = json.loads(versions.RECORD.read_text())
    expected = record["found"][record["pinned"]]
    assert [release for release, found in record["found"].items() if versions.differs(found, expected)] == []


def test_a_fact_that_differs_is_told_from_one_that_is_explained():
    expected = dict.fromkeys(versions.FACTS, "1")
    found = expected | {
        "logits": "2",
        "auto_image_processor": "ImportError: AutoImageProcessor requires the Torchvision",
    }
    found["auto_image_processor"] += " library but it was not found"
    cells = versions.compare(found, expected)
    assert (cells["logits"], cells["auto_image_processor"]) == ("**differs**: 2", "needs torchvision")
    assert set(cells.values()) == {"equal", "**differs**: 2", "needs torchvision"}


def test_sub_configurations_become_clips_own():
    config = LDVCConfig(text_config={"hidden_size": 64}, vision_config=None)
    assert (type(config.text_config), type(config.vision_config)) == (CLIPTextConfig, CLIPVisionConfig)
    assert (config.text_config.hidden_size, config.vision_config.patch_size) == (64, 16)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_arrays_become_rgb_on_white_by_the_rule_of_pillow(channels, dtype):
    array = np.random.default_rng(0).integers(0, 256, (channels, 5, 7), dtype=np.uint8)
    modes = {1: "L", 3: "RGB", 4: "RGBA"}
    picture = Image.fromarray(array[0] if channels == 1 else np.moveaxis(array, 0, -1), mode=modes[channels])
    white = Image.new("RGBA", picture.size, "white")
    expected = np.moveaxis(np.asarray(Image.alpha_composite(white, picture.convert("RGBA")).convert("RGB")), -1, 0)
    scale = 255 if dtype == np.float32 else 1
    found = on_white((array / scale).astype(dtype)) * scale
    assert found.shape == (3, 5, 7)
    assert np.abs(found - expected.astype(float)).max() <= 1  # Pillow rounds in integers


def test_floats_with_alpha_out_of_their_range_are_refused():
    with pytest.raises(ValueError, match=r"an image with alpha has floats from 0\.0 to 2\.0, outside of 0 to 1"):
        on_white(np.linspace(0, 2, 4 * 6, dtype=np.float32).reshape(4, 2, 3))


@pytest.mark.slow
def test_importing_the_package_needs_none_of_the_optional_libraries():
    hidden = ("torchvision", "accelerate", "datasets", "evaluate", "matplotlib", "gradio")
    code = f"import sys; sys.modules.update(dict.fromkeys({hidden!r})); from ldvc import LDVCProcessor as found; "
    done = subprocess.run([sys.executable, "-c", code + "print(found.__name__)"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "LDVCProcessor\n"), done.stderr


# ---- folders of other versions of LDVC


def change_version(checkpoint, folder, version):
    shutil.copytree(checkpoint, folder)
    config = json.loads((folder / "config.json").read_text())
    assert config["ldvc_version"] == LDVC_VERSION == package.__version__
    (folder / "config.json").write_text(json.dumps(config | {"ldvc_version": version, "decoder_query": "of another"}))
    return folder


@pytest.mark.parametrize("version", ["0.1.1", "0.2.0", "1.0"])
def test_a_folder_of_a_newer_ldvc_is_refused_with_the_remedy(checkpoint, tmp_path, version):
    folder = change_version(checkpoint, tmp_path / "folder", version)
    words = rf"saved by LDVC {version}, and this is 0\.1\.0: update LDVC, or let the folder bring its own code"
    for load in (LDVCForSemanticSegmentation.from_pretrained, AutoConfig.from_pretrained, load_checkpoint):
        with pytest.raises(ValueError, match=words):
            load(folder)


def test_a_folder_of_an_older_ldvc_that_is_no_longer_read_is_refused_with_the_remedy(checkpoint, tmp_path):
    folder = change_version(checkpoint, tmp_path / "folder", "0.0.9")
    words = r"saved by LDVC 0\.0\.9, and this one, 0\.1\.0, reads those from 0\.1\.0 on: save it again with"
    with pytest.raises(ValueError, match=words):
        LDVCForSemanticSegmentation.from_pretrained(folder)


def test_a_folder_that_does_not_say_who_saved_it_is_read(tmp_path):
    check_saved_version(None)
    config = json.loads((EMBEDDED_CHECKPOINT / "config.json").read_text())
    config.pop("ldvc_version", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert AutoConfig.from_pretrained(tmp_path).to_dict()["ldvc_version"] == LDVC_VERSION


# ---- whose code runs


@pytest.fixture(scope="module")
def stamped(checkpoint, tmp_path_factory):
    """A folder with digests of its code, as it is published."""
    folder = shutil.copytree(checkpoint, tmp_path_factory.mktemp("stamped") / "model")
    write_code_digests(folder)
    return folder


def load_apart(tmp_path, script, *arguments):
    """Run a script in a process that cannot import LDVC; returns what it printed and the end of its errors."""
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run(
        [sys.executable, str(tmp_path / "script.py"), *map(str, arguments)], cwd=tmp_path, capture_output=True,
        text=True, check=False,
        env={**os.environ, "PYTHONPATH": "", "PYTHONSAFEPATH": "1", "HF_MODULES_CACHE": str(tmp_path / "modules")},
    )  # fmt: skip
    return done.stdout.strip(), done.stderr.strip()


def test_digests_are_of_every_other_code_file(stamped):
    text = (stamped / "configuration_ldvc.py").read_text()
    assert NO_DIGESTS not in text
    assert text.count('.py": "') == len(SHIPPED) - 1
    names = {"CODE_DIGESTS": {}}
    exec(text[text.index("CODE_DIGESTS: dict") : text.index("\n}\n") + 3], names)
    assert set(names["CODE_DIGESTS"]) == {f"{name}.py" for name in SHIPPED} - {"configuration_ldvc.py"}
    check_code(stamped, names["CODE_DIGESTS"])


def test_a_configuration_without_a_place_for_digests_is_not_published(stamped):
    with pytest.raises(PublishError, match=r"configuration_ldvc\.py has no line 'CODE_DIGESTS"):
        write_code_digests(stamped)  # a second time


def test_a_code_file_of_another_version_is_refused_with_the_remedy(tmp_path, monkeypatch):
    (tmp_path / "a.py").write_text("a = 1\n")
    digests = {"a.py": code_digest(tmp_path / "a.py"), "b.py": "of a file that is not there yet"}
    (tmp_path / "a.py").write_bytes(b"a = 1\r\n")  # the same in a checkout of Windows
    check_code(tmp_path, digests)
    (tmp_path / "a.py").write_text("a = 2\n")
    monkeypatch.setattr(transformers, "__version__", "5.7.0")
    check_code(tmp_path, digests)
    monkeypatch.setattr(transformers, "__version__", "5.8.0")
    with pytest.raises(
        ImportError,
        match=r"^a\.py is not the one .* Fetch the whole folder again; or, if you changed it yourself, empty",
    ):
        check_code(tmp_path, digests)


LOAD_ONE = """
import sys
from transformers import AutoModel, AutoProcessor
{kind}.from_pretrained(sys.argv[1], trust_remote_code=True)
"""


@pytest.mark.slow
@pytest.mark.skipif(compat_ldvc.read_version(transformers.__version__) < (5, 8), reason="see check_code")
@pytest.mark.parametrize(
    ("kind", "file"), [("AutoModel", "decoder_ldvc.py"), ("AutoProcessor", "image_processing_ldvc.py")]
)
def test_code_files_of_two_versions_are_refused_with_the_remedy(stamped, tmp_path, kind, file):
    folder = shutil.copytree(stamped, tmp_path / "model")
    (folder / file).write_text((folder / file).read_text() + "# of another version\n")
    _, said = load_apart(tmp_path, LOAD_ONE.format(kind=kind), folder)
    assert said.splitlines()[-1] == (
        f"ImportError: {file} is not the one that was published with this folder: the code files of two versions were "
        "mixed. Fetch the whole folder again; or, if you changed it yourself, empty CODE_DIGESTS in "
        "configuration_ldvc.py."
    )


TWO = """
import sys
from transformers import AutoModel, AutoProcessor, pipeline
models = [AutoModel.from_pretrained(folder, trust_remote_code=True) for folder in sys.argv[1:3]]
processors = [AutoProcessor.from_pretrained(folder, trust_remote_code=True) for folder in sys.argv[1:3]]
pipes = [pipeline("zero-shot-image-segmentation", model=m, processor=p) for m, p in zip(models, processors)]
print(*[sys.modules[type(model).__module__].WHOSE for model in models])
print(*[type(pipe) is type(model).pipeline_class for pipe, model in zip(pipes, models)])
print(*[sys.modules[type(pipe).__module__].WHOSE for pipe in pipes])
"""


@pytest.mark.slow
@pytest.mark.skipif(compat_ldvc.read_version(transformers.__version__) < (5, 8), reason="docs/versions.md says so")
def test_two_folders_of_one_name_and_configuration_run_their_own_code(checkpoint, tmp_path):
    folders = []
    for whose in ("one", "two"):
        folder = shutil.copytree(checkpoint, tmp_path / whose / "model")
        for name in ("modeling_ldvc", "pipeline_ldvc"):
            with (folder / f"{name}.py").open("a") as file:
                file.write(f"WHOSE = {whose!r}\n")
        write_code_digests(folder)
        folders.append(folder)
    printed, said = load_apart(tmp_path, TWO, *folders)
    assert printed.splitlines() == ["one two", "True True", "one two"], said


HOSTILE = {
    "_attn_implementation": "stranger/kernels",
    "attn_implementation": "stranger/kernels",
    "_attn_implementation_internal": "stranger/kernels",
    "auto_map": {"AutoModel": "stranger/code--evil.Model", "AutoConfig": "stranger/code--evil.Config"},
    "custom_pipelines": {TASK: {"impl": "stranger/code--evil.Pipeline", "pt": ["AutoModel"]}},
    "trust_remote_code": True,
}


@pytest.fixture
def hostile(checkpoint, tmp_path, monkeypatch):
    """A checkpoint whose config.json names code of a stranger wherever it can; whatever is fetched or run fails."""
    folder = shutil.copytree(checkpoint, tmp_path / "hostile")
    config = json.loads((folder / "config.json").read_text())
    config |= HOSTILE
    for name in ("text_config", "vision_config"):
        config[name] |= HOSTILE
    (folder / "config.json").write_text(json.dumps(config))
    for file in folder.glob("*.py"):
        file.write_text("raise SystemExit('the code of the folder ran')\n")

    def fail(*arguments, **options):
        raise AssertionError(f"fetched or ran {arguments}")

    monkeypatch.setattr("transformers.dynamic_module_utils.get_class_in_module", fail)
    monkeypatch.setattr("socket.socket.connect", fail)
    monkeypatch.setattr("socket.getaddrinfo", fail)
    return folder


def test_a_hostile_configuration_runs_and_fetches_nothing(hostile, ldvc, tmp_path):
    for load in (LDVCForSemanticSegmentation.from_pretrained, lambda folder: load_checkpoint(folder, "cpu")[0]):
        model = load(hostile)
        assert type(model) is LDVCForSemanticSegmentation
        assert model.config._attn_implementation in ("sdpa", "eager")
        assert model.clip.text_model.config._attn_implementation in ("sdpa", "eager")
    Image.new("RGB", (40, 32), "red").save(tmp_path / "red.png")
    result = ldvc("segment", tmp_path / "red.png", "--model", hostile, "--output", tmp_path / "masks")
    assert result.exit_code == 0, result.output
    assert list((tmp_path / "masks").glob("red*"))


# ---- a model that is loaded already


@pytest.mark.parametrize("kind", ["float32", "bfloat16", "quantised", "wrapped"])
def test_a_model_object_goes_into_its_own_pipeline(make_model, tiny_processor, images, kind):
    model = make_model()
    expected = pipeline(TASK, model=model, processor=tiny_processor)(images[0], candidate_labels=["cat", "dog"])
    if kind == "bfloat16":
        model = model.to(torch.bfloat16)
    elif kind == "quantised":
        model = torch.ao.quantization.quantize_dynamic(model, {torch.nn.Linear}, dtype=torch.qint8)
    elif kind == "wrapped":
        model = LoraLike(model).eval()
    segmenter = pipeline(TASK, model=model, processor=tiny_processor, trust_remote_code=True)
    assert type(segmenter) is ZeroShotImageSegmentationPipeline
    found = segmenter(images[0], candidate_labels=["cat", "dog"])
    scores = {part["label"]: part["score"] for part in found}
    for part in expected:
        assert scores[part["label"]] == pytest.approx(part["score"], abs=0.03)  # of 8 bits


class LoraLike(torch.nn.Module):
    """Hands on to the model inside what it does not have, as peft's wrapper does."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def __getattr__(self, name):
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, *arguments, **options):
        return self.inner(*arguments, **options)


@pytest.mark.parametrize("part", ["image_processor", "tokenizer"])
def test_parts_that_the_pipeline_would_not_use_are_refused(make_model, tiny_processor, part):
    with pytest.raises(ValueError, match=rf"`{part}` is no argument of its own here .* give `processor=`"):
        pipeline(TASK, model=make_model(), processor=tiny_processor, **{part: getattr(tiny_processor, part)})


def test_a_subclass_of_the_pipeline_stays_what_it_is(make_model, tiny_processor):
    class Mine(ZeroShotImageSegmentationPipeline):
        pass

    assert type(Mine(model=make_model(), processor=tiny_processor)) is Mine
