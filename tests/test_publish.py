"""Publishing: the folder is whole, verified and loads anywhere; what must not be published is refused."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from result_files import NAMES, make_recipe, make_result, write
from safetensors.torch import load_file

from ldvc.commands import experiments as commands
from ldvc.experiments import publish
from ldvc.experiments.publish import PublishError, build_folder
from ldvc.training.recipe import read_recipe


ROOT = Path(__file__).resolve().parents[1]

LOAD = """
import json, sys


class NotInstalled:
    # our modules cannot be imported, also where the checkout is installed in editable mode

    def find_spec(self, name, path=None, target=None):
        if path is None and name.endswith("ldvc"):
            raise ModuleNotFoundError(f"{name} is hidden")


sys.meta_path.insert(0, NotInstalled())
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor

folder, result = sys.argv[1:]
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
inputs = processor(images=Image.new("RGB", (40, 32), "red"), class_names=["cat", "sofa"], return_tensors="pt")
with torch.no_grad():
    logits = model(**inputs).logits
json.dump({"logits": logits.tolist(), "names": list(model.config.id2label.values())}, open(result, "w"))
"""


def make_protocol(**changes):
    """What the audit of a run with sofa held out says."""
    seen = [name for name in NAMES if name != "sofa"]
    classes = [
        {
            "id": index,
            "name": name,
            "is_unseen": name == "sofa",
            "positive_pixels": 0 if name == "sofa" else 90,
            "pixels_told_as_another_class": 0,
            "negative_pixels": 0,
        }
        for index, name in enumerate(NAMES)
    ]
    return {
        "setting": "inductive",
        "classes_given_to_the_loss": seen,
        "seen_classes": seen,
        "unseen_classes": ["sofa"],
        "image_draws": 24,
        "classes": classes,
        "unseen_mask_pixels_in_the_loss": 0,
        "unseen_names_in_the_loss": [],
        "keeps_setting": True,
        "dataset": "/somebody/home/scenes",
    } | changes


@pytest.fixture
def checkpoint(tmp_path, make_model, tiny_processor):
    """What train.py leaves of a run, made up around a tiny model."""
    folder = tmp_path / "run"
    model = make_model()
    model.set_vocabulary(NAMES, tiny_processor)
    model.config.seen_classes = ["cat", "dog", "grass"]
    model.config.clip_name_or_path = "/somebody/home/clip"
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    recipe = replace(
        make_recipe(output_dir=str(folder), model={"num_vision_prompts": 3}, crop_size=32),
        dataset="/somebody/home/scenes",
        clip="/somebody/home/clip",
    )
    (folder / "recipe.yaml").write_text(yaml.safe_dump(asdict(recipe)))
    write(folder / "protocol.json", make_protocol())
    write(folder / "results.json", make_result(recipe=recipe))
    return folder


@pytest.fixture
def published(checkpoint, tmp_path):
    return build_folder(checkpoint, tmp_path / "hub" / "ldvc-toys")


def test_the_folder_holds_weights_code_processor_and_papers(published):
    names = {path.name for path in published.iterdir()}
    assert {"model.safetensors", "config.json", "modeling_ldvc.py", "processing_ldvc.py"} <= names
    assert {"processor_config.json", "tokenizer.json"} <= names
    assert {
        "README.md",
        "LICENSE",
        "protocol.json",
        "results.json",
        "recipe.yaml",
        "files.json",
        "SHA256SUMS",
    } <= names


def test_weights_are_those_of_the_checkpoint_to_the_bit(checkpoint, published):
    before, after = (load_file(folder / "model.safetensors") for folder in (checkpoint, published))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_every_file_has_its_sum_and_code_is_marked_as_executed(published):
    listed = {entry["path"]: entry for entry in json.loads((published / "files.json").read_text())["files"]}
    files = {path.name: path for path in published.iterdir() if path.name not in ("files.json", "SHA256SUMS")}
    assert listed.keys() == files.keys()
    for name, path in files.items():
        assert listed[name]["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert listed[name]["bytes"] == path.stat().st_size
        assert listed[name]["executed"] == name.endswith(".py")


def test_the_sums_are_those_that_sha256sum_checks(published):
    lines = (published / "SHA256SUMS").read_text().splitlines()
    for line in lines:
        digest, name = line.split("  ")
        assert hashlib.sha256((published / name).read_bytes()).hexdigest() == digest, name
    assert {line.split("  ")[1] for line in lines} == {path.name for path in published.iterdir()} - {"SHA256SUMS"}


def test_the_card_has_the_runs_own_numbers(published):
    card = ModelCard((published / "README.md").read_text())
    assert card.data.model_name == "ldvc-toys"
    assert [result.metric_value for result in card.data.eval_results] == [80.0, 60.0, 30.0, 40.0]
    assert "Trained with masks (3): cat, dog, grass." in card.text
    assert "32 x 32 pixels are 4 x 4 patch tokens" in " ".join(card.text.split())


def test_the_folder_names_no_path_of_this_machine(published):
    for path in published.iterdir():
        if path.suffix in (".json", ".yaml", ".md"):
            text = path.read_text()
            assert "/somebody" not in text, path.name
            assert str(published.parent.parent) not in text, path.name


def test_the_recipe_of_the_folder_is_one_that_train_reads(published):
    recipe = read_recipe([str(published / "recipe.yaml")])
    assert recipe.model == {"num_vision_prompts": 3}
    assert recipe.crop_size == 32


@pytest.mark.slow
def test_the_folder_loads_in_a_process_that_knows_no_ldvc(published, tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": "",
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_MODULES_CACHE": str(tmp_path / "modules")}
    done = subprocess.run(
        [sys.executable, "-c", LOAD, str(published), str(tmp_path / "result.json")],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "result.json").read_text())
    assert found["names"] == NAMES
    assert torch.isfinite(torch.tensor(found["logits"])).all()


def test_the_recipe_of_a_transductive_run_makes_both_halves_again(checkpoint, tmp_path):
    values = yaml.safe_load((checkpoint / "recipe.yaml").read_text())
    values |= {"setting": "transductive", "start_from": str(checkpoint / "inductive")}
    (checkpoint / "recipe.yaml").write_text(yaml.safe_dump(values))
    write(checkpoint / "results.json", make_result() | {"recipe": values})
    write(checkpoint / "protocol.json", make_protocol(setting="transductive"))
    folder = build_folder(checkpoint, tmp_path / "hub")
    assert read_recipe([str(folder / "recipe.yaml")]).start_from is None


# ---- what is refused


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("protocol.json", r"has no protocol\.json; publish the output folder"),
        ("recipe.yaml", r"has no recipe\.yaml"),
        ("results.json", "there are no results at"),
    ],
)
def test_a_checkpoint_without_its_papers_is_refused(checkpoint, tmp_path, name, message):
    (checkpoint / name).unlink()
    with pytest.raises(PublishError, match=message):
        build_folder(checkpoint, tmp_path / "hub")
    assert not (tmp_path / "hub").exists()


def test_a_checkpoint_without_a_weight_is_refused_and_nothing_is_left(checkpoint, tmp_path, capsys):
    from safetensors.torch import save_file

    weights = load_file(checkpoint / "model.safetensors")
    weights.pop(next(name for name in weights if name.startswith("decoder")))
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    assert commands.publish([str(checkpoint), "--output", str(tmp_path / "hub")]) == 2
    assert "lacks weights" in capsys.readouterr().err
    assert not list(tmp_path.glob("hub*"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"keeps_setting": False}, "its own audit says that the run broke the inductive setting"),
        ({"setting": "fully_supervised"}, "it was trained fully_supervised, not inductive"),
        ({"unseen_classes": ["dog"]}, "its configuration lists other seen classes than the audit"),
    ],
)
def test_an_audit_that_does_not_fit_the_checkpoint_is_refused(checkpoint, tmp_path, change, message):
    write(checkpoint / "protocol.json", make_protocol(**change))
    with pytest.raises(PublishError, match=message):
        build_folder(checkpoint, tmp_path / "hub")


def test_results_of_another_run_are_refused(checkpoint, tmp_path):
    other = write(tmp_path / "other.json", make_result(seed=1, recipe=make_recipe(max_steps=7)))
    with pytest.raises(PublishError, match=r"is of another run .*max_steps was 20000, now 7.*seed was 0, now 1"):
        build_folder(checkpoint, tmp_path / "hub", results=other)


def test_results_of_other_weights_than_the_audits_are_refused(checkpoint, tmp_path):
    result = json.loads((checkpoint / "results.json").read_text())
    write(checkpoint / "results.json", result | {"weights_sha256": "one"})
    write(checkpoint / "protocol.json", make_protocol(weights_sha256="another"))
    with pytest.raises(PublishError, match=r"is of other weights than .*protocol\.json"):
        build_folder(checkpoint, tmp_path / "hub")


def test_weights_that_the_audit_does_not_know_are_refused(checkpoint, tmp_path):
    write(checkpoint / "protocol.json", make_protocol(weights_sha256="another"))
    with pytest.raises(PublishError, match="does not fit it"):
        build_folder(checkpoint, tmp_path / "hub")


def test_the_card_names_a_recipe_of_the_repository_only_if_the_run_kept_to_it():
    path = "recipes/voc2012_inductive.yaml"
    kept = read_recipe([str(ROOT / path), "--seed", "3"])
    assert publish.choose_recipe(kept, path) == path
    assert publish.choose_recipe(replace(kept, max_steps=7), path) == "recipe.yaml"
    assert publish.choose_recipe(kept, None) == "recipe.yaml"


def test_results_of_an_evaluation_are_refused(checkpoint, tmp_path):
    result = make_result(protocol={}, seconds=1)
    del result["recipe"]
    with pytest.raises(PublishError, match=r"was written by an evaluation; use the one that train\.py wrote"):
        build_folder(checkpoint, tmp_path / "hub", results=write(tmp_path / "other.json", result))


def test_a_result_that_lacks_a_field_is_refused(checkpoint, tmp_path, capsys):
    write(checkpoint / "results.json", {"scores": {}})
    assert commands.publish([str(checkpoint), "--output", str(tmp_path / "hub")]) == 2
    assert "results.json: lacks field 'num_images'" in capsys.readouterr().err


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(PublishError, match="there is no folder"):
        build_folder(tmp_path / "nothing", tmp_path / "hub")


def test_nothing_is_written_over_unless_it_was_built_here(checkpoint, published, tmp_path):
    with pytest.raises(PublishError, match="is there already; choose another folder, or replace it with --overwrite"):
        build_folder(checkpoint, published)
    with pytest.raises(PublishError, match=r"run was not built by ldvc publish \(it has no files\.json\)"):
        build_folder(checkpoint, checkpoint, overwrite=True)
    (published / "README.md").write_text("old")
    build_folder(checkpoint, published, overwrite=True)
    assert "# ldvc-toys" in (published / "README.md").read_text()


@pytest.mark.slow
def test_a_failure_while_building_leaves_the_old_folder_whole(checkpoint, published, monkeypatch):
    def fail(folder):
        raise OSError("disk full")

    before = (published / "SHA256SUMS").read_text()
    monkeypatch.setattr(publish, "write_sums", fail)
    with pytest.raises(OSError, match="disk full"):
        build_folder(checkpoint, published, overwrite=True)
    assert (published / "SHA256SUMS").read_text() == before
    assert [path.name for path in published.parent.iterdir()] == ["ldvc-toys"]


# ---- pushing


def test_pushing_creates_the_repository_and_uploads_the_folder(checkpoint, tmp_path, monkeypatch, capsys):
    calls = []
    hub = SimpleNamespace(
        create_repo=lambda *args, **options: calls.append(("create", args, options)),
        upload_folder=lambda **options: calls.append(("upload", options)) or "https://hub/commit/1",
    )
    monkeypatch.setattr(publish, "HfApi", lambda: hub)
    output = tmp_path / "hub"
    assert commands.publish([str(checkpoint), "--output", str(output), "--push_to_hub", "me/ldvc", "--private"]) == 0
    assert calls[0] == ("create", ("me/ldvc",), {"private": True, "exist_ok": True})
    assert (calls[1][1]["repo_id"], calls[1][1]["folder_path"]) == ("me/ldvc", output)
    assert "*.py" in calls[1][1]["delete_patterns"]  # no code of an upload before stays beside the hashes
    assert "pushed to https://hub/commit/1" in capsys.readouterr().out


def test_nothing_is_pushed_unasked(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "HfApi", lambda: pytest.fail("the Hub was called"))
    assert commands.publish([str(checkpoint), "--output", str(tmp_path / "hub")]) == 0


# ---- other services

ASK = (
    LOAD.partition("import torch\n")[0]
    + """
import base64, io, sys
from pathlib import Path
from PIL import Image

folder, result = sys.argv[1:]
sys.path.insert(0, folder)
from handler import EndpointHandler

handler = EndpointHandler(folder)
file = io.BytesIO()
Image.new("RGB", (40, 32), "red").save(file, format="PNG")
text = base64.b64encode(file.getvalue()).decode()
parameters = {"candidate_labels": ["cat", "sofa|couch"], "threshold": 0.0}
inputs = {"base64": text, "data": "data:image/png;base64," + text, "bytes": file.getvalue()}
inputs["picture"] = Image.open(file)
answers = {kind: handler({"inputs": value, "parameters": parameters}) for kind, value in inputs.items()}
answers["own"] = handler({"inputs": text})
errors = []
for data in ({"inputs": "photo.jpg"}, {"inputs": "/etc/hostname"}, {}, {"inputs": b"hello"},
             {"inputs": text, "parameters": {"num_workers": 4}}, {"inputs": text, "parameters": {"top_k": 0}}):
    try:
        errors.append(str(handler(data)))
    except ValueError as error:
        errors.append(str(error))
json.dump({"answers": answers, "errors": errors}, open(result, "w"))
"""
)


def run_hidden(code, arguments, tmp_path, **environment):
    """Run Python where our modules cannot be imported."""
    environment = {
        **os.environ,
        "PYTHONPATH": "",
        "PYTHONSAFEPATH": "1",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "HF_HOME": str(tmp_path / "hf"),
        "HF_MODULES_CACHE": str(tmp_path / "modules"),
        **environment,
    }
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, arguments)],
        cwd=tmp_path, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_the_handler_answers_where_ldvc_is_not_installed(checkpoint, tmp_path):
    import base64
    import io

    import numpy as np
    from PIL import Image

    folder = build_folder(checkpoint, tmp_path / "hub" / "ldvc-toys", handler=True)
    assert "handler.py" in (folder / "SHA256SUMS").read_text()
    process = run_hidden(ASK, [folder, tmp_path / "result.json"], tmp_path)
    try:
        errors = process.communicate(timeout=600)[1]
    finally:
        process.kill()
    assert process.returncode == 0, errors
    found = json.loads((tmp_path / "result.json").read_text())
    answers = found["answers"]
    assert answers["data"] == answers["bytes"] == answers["picture"] == answers["base64"]
    assert {answer["label"] for answer in answers["base64"]} <= {"cat", "sofa|couch"}
    assert {answer["label"] for answer in answers["own"]} <= set(NAMES)
    masks = [Image.open(io.BytesIO(base64.b64decode(answer["mask"]))) for answer in answers["base64"]]
    assert sum((np.asarray(mask) == 255).astype(int) for mask in masks).tolist() == [[1] * 40] * 32
    starts = ("`inputs` is text, but no base64", "`inputs` is text, but no base64", "`inputs` is NoneType")
    starts += ("`inputs` holds no picture", "parameter 'num_workers' is unknown", "`top_k` is 0")
    assert all(error.startswith(start) for error, start in zip(found["errors"], starts, strict=True)), found["errors"]


def test_no_handler_unless_it_is_asked_for(published):
    assert not (published / "handler.py").exists()


@pytest.fixture
def space(checkpoint, tmp_path):
    folder, output = tmp_path / "hub" / "ldvc-toys", tmp_path / "spaces" / "segment-by-name"
    call = [str(checkpoint), "--output", str(folder), "--space", str(output)]
    assert commands.publish(call) == 0
    return output


def test_a_space_has_page_requirements_card_and_the_model(space):
    pytest.importorskip("gradio")
    from importlib.metadata import version

    assert {path.name for path in space.iterdir()} == {
        *("README.md", "LICENSE", "app.py", "requirements.txt", "model", "files.json", "SHA256SUMS")
    }
    card = ModelCard((space / "README.md").read_text())
    facts = card.data.to_dict()
    assert (facts["title"], facts["sdk"], facts["app_file"]) == ("segment-by-name", "gradio", "app.py")
    assert facts["sdk_version"] == version("gradio")
    pins = dict(line.split("==") for line in (space / "requirements.txt").read_text().splitlines())
    assert pins["transformers"] == version("transformers")
    assert pins["torch"] == version("torch").partition("+")[0]
    assert (space / "model" / "SHA256SUMS").read_text() == (
        space.parent.parent / "hub" / "ldvc-toys" / "SHA256SUMS"
    ).read_text()


def test_a_space_that_is_there_stops_before_anything_is_built(checkpoint, tmp_path, capsys):
    (tmp_path / "space").mkdir()
    call = [str(checkpoint), "--output", str(tmp_path / "hub"), "--space", str(tmp_path / "space")]
    assert commands.publish(call) == 2
    assert "is there already" in capsys.readouterr().err
    assert not (tmp_path / "hub").exists()


@pytest.mark.slow
def test_the_space_starts_where_ldvc_is_not_installed_and_answers_a_client(space, tmp_path):
    pytest.importorskip("gradio")
    import socket
    import time

    from gradio_client import Client, handle_file
    from PIL import Image

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    start = LOAD.partition("import torch\n")[0] + "import runpy\nrunpy.run_path(sys.argv[1], run_name='__main__')\n"
    places = {
        "GRADIO_SERVER_NAME": "127.0.0.1",
        "GRADIO_SERVER_PORT": str(port),
        "GRADIO_TEMP_DIR": str(tmp_path / "g"),
    }
    process = run_hidden(start, [space / "app.py"], tmp_path, **places)
    try:
        for _ in range(6000):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.1)
        Image.new("RGB", (40, 32), "red").save(tmp_path / "a.png")
        client = Client(f"http://127.0.0.1:{port}", verbose=False, download_files=str(tmp_path / "got"))
        picture, scores = client.predict(
            handle_file(str(tmp_path / "a.png")), "cat, sofa|couch", 0, api_name="/segment"
        )
        assert {entry["label"] for entry in scores} <= {"cat", "sofa"}
        assert [part["label"] for part in picture["annotations"]] == [entry["label"] for entry in scores]
    finally:
        process.kill()
        process.communicate()
