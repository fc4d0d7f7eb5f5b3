"""The audit: no way to "matches" for weights that another protocol trained, but protocol.json written by hand.

The rules of settings, and which checkpoint is scored as what, are in `test_settings.py`; counting in `test_train.py`.
"""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from safetensors.torch import load_file, save_file

from ldvc.commands import scoring
from ldvc.commands.training import train
from ldvc.data.provenance import stored_fingerprint
from ldvc.data.samples import load_split
from ldvc.scoring.protocol import checkpoint_fingerprints, is_of_training_split, read_protocol, unaudited_parts
from ldvc.training.recipe import RecipeError
from ldvc.training.state import Origin


pytestmark = pytest.mark.usefixtures("fresh_accelerator")

ROOT = Path(__file__).resolve().parents[1]
PARTS = {
    "decoder.layers.0.cross_attn.q_proj.weight": "LDVC's own weights",
    "text_prompts.tokens": "text prompts",
    "clip.text_model.encoder.layers.0.self_attn.q_proj.weight": "CLIP's weights",
    "clip.vision_model.encoder.layers.0.self_attn.q_proj.weight": "CLIP's weights",
    "clip.visual_projection.weight": "CLIP's weights",
}


def evaluate(checkpoint, scenes, *options):
    arguments = [str(checkpoint), "--dataset", str(scenes), "--short_side", "32", "--window", "0", "--num_images", "2"]
    return scoring.evaluate(
        [*arguments, "--class_names", "cat, dog, sofa, grass", "--unseen_classes", "sofa", *options]
    )


def add_noise(path, name):
    weights = load_file(path)
    weights[name] = weights[name] + 1e-3
    save_file(weights, path, metadata={"format": "pt"})


def protocol_of(folder):
    return json.loads((Path(folder) / "protocol.json").read_text())


# ---- weights


@pytest.mark.parametrize(("name", "part"), PARTS.items())
def test_a_checkpoint_with_any_weight_replaced_is_refused(finished_run, scenes, capsys, name, part):
    add_noise(finished_run / "model.safetensors", name)
    assert evaluate(finished_run, scenes) == 2
    assert f"its weights are not those that the audit was written for ({part} differ)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["text_prompts.tokens", pytest.param("decoder.layers.0.cross_attn.q_proj.weight", marks=pytest.mark.slow)]
)
def test_a_run_does_not_start_from_weights_that_evaluation_refuses(
    train_arguments, whole_run, tmp_path, told, scenes, name
):
    start = shutil.copytree(whole_run(train_arguments), tmp_path / "start")
    add_noise(start / "model.safetensors", name)
    options = ["--start_from", str(start), "--max_steps", "1", "--learning_rate", "1e-9"]
    assert train([*train_arguments, *options]) == 2
    assert f"`start_from` {str(start)!r} does not fit its protocol.json: its weights are not those" in told.text
    assert not (tmp_path / "run").exists()
    (start / "protocol.json").unlink()  # the remedy, which does not launder
    AcceleratorState._reset_state(reset_partial_state=True)
    assert train([*train_arguments, *options, "--num_eval_images", "2"]) == 0
    assert evaluate(tmp_path / "run", scenes, "--output", str(tmp_path / "r.json")) == 0
    for path in (tmp_path / "r.json", tmp_path / "run" / "results.json"):
        audit = json.loads(path.read_text())["audit"]
        assert audit["status"] == "unaudited"
        assert audit["findings"] == [f"it started from {str(start)!r}, of whose training no whole audit is known"]


@pytest.mark.slow
def test_supervised_weights_beside_an_inductive_audit_are_no_start(train_arguments, whole_run, tmp_path, told, scenes):
    supervised = ["--setting", "fully_supervised", "--max_steps", "2", "--num_eval_images", "2"]
    assert train([*train_arguments, *supervised, "--output_dir", str(tmp_path / "supervised")]) == 0
    start = shutil.copytree(whole_run(train_arguments), tmp_path / "start")
    shutil.copy(tmp_path / "supervised" / "model.safetensors", start)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert evaluate(start, scenes) == 2
    for setting in ("inductive", "transductive", "fully_supervised"):
        assert train([*train_arguments, "--start_from", str(start), "--setting", setting]) == 2
        AcceleratorState._reset_state(reset_partial_state=True)
    assert told.text.count("does not fit its protocol.json") == 3


def test_a_start_whose_run_broke_its_setting_is_refused(train_arguments, whole_run, tmp_path, told):
    start = shutil.copytree(whole_run(train_arguments), tmp_path / "start")
    (start / "protocol.json").write_text(json.dumps(protocol_of(start) | {"keeps_setting": False}))
    assert train([*train_arguments, "--start_from", str(start)]) == 2
    assert "its own audit says that the run broke the inductive setting" in told.text


def test_the_account_of_a_start_names_its_weights(train_arguments, whole_run, tmp_path, scenes):
    start = whole_run(train_arguments)
    assert train([*train_arguments, "--start_from", str(start), "--max_steps", "1", "--num_eval_images", "2"]) == 0
    account, before = protocol_of(tmp_path / "run")["start"], protocol_of(start)
    assert account["is_audited"]
    assert {field: account[field] for field in account if field.endswith("sha256")} == {
        field: before[field] for field in ("weights_sha256", "text_prompts_sha256", "clip_sha256")
    }
    assert evaluate(tmp_path / "run", scenes, "--output", str(tmp_path / "r.json")) == 0
    assert json.loads((tmp_path / "r.json").read_text())["audit"]["status"] == "matches"


def test_a_clip_that_brings_trained_weights_along_is_none(train_arguments, whole_run, clip_folder, tmp_path, told):
    """Else the weights of any run would pass for new ones, behind a CLIP's configuration."""
    clip = shutil.copytree(clip_folder, tmp_path / "clip")
    shutil.copy(whole_run(train_arguments) / "model.safetensors", clip)
    assert train([*train_arguments, "--clip", str(clip)]) == 2
    assert "holds weights of an LDVC beside CLIP's, first 'decoder." in told.text
    assert not (tmp_path / "run").exists()


def test_an_audit_of_an_older_version_is_no_whole_one(finished_run, scenes, tmp_path, capsys):
    protocol = protocol_of(finished_run)
    for field in ("text_prompts_sha256", "clip_sha256"):
        protocol.pop(field)
    (finished_run / "protocol.json").write_text(json.dumps(protocol))
    assert evaluate(finished_run, scenes, "--output", str(tmp_path / "r.json")) == 0
    audit = json.loads((tmp_path / "r.json").read_text())["audit"]
    assert audit["status"] == "unaudited"
    assert "does not cover text prompts and CLIP's weights, which may have been replaced" in audit["findings"][0]
    assert "UNAUDITED: its audit was written by an older version" in capsys.readouterr().out
    add_noise(finished_run / "model.safetensors", "decoder.layers.0.cross_attn.q_proj.weight")
    assert evaluate(finished_run, scenes) == 2  # what it covers still counts


def test_a_start_with_an_audit_of_an_older_version_leaves_the_run_unaudited(
    train_arguments, whole_run, tmp_path, told, scenes
):
    start = shutil.copytree(whole_run(train_arguments), tmp_path / "start")
    protocol = protocol_of(start)
    protocol.pop("clip_sha256")
    (start / "protocol.json").write_text(json.dumps(protocol))
    assert train([*train_arguments, "--start_from", str(start), "--max_steps", "1", "--num_eval_images", "2"]) == 0
    assert "does not cover CLIP's weights" in told.text
    assert not protocol_of(tmp_path / "run")["start"]["is_audited"]


def test_the_audit_of_the_embedded_checkpoint_covers_all_its_weights():
    from ldvc.scoring.evaluate import load_checkpoint

    protocol, (model, _) = (
        read_protocol(str(ROOT / "picturebook" / "ldvc")),
        load_checkpoint(str(ROOT / "picturebook" / "ldvc")),
    )
    assert unaudited_parts(protocol) == []
    assert {field: protocol[field] for field in protocol if field.endswith("sha256")} == checkpoint_fingerprints(model)


@pytest.mark.slow
def test_an_adapter_is_audited_with_the_clip_that_it_is_put_on(train_arguments, clip_folder, tmp_path, scenes, capsys):
    clip = shutil.copytree(clip_folder, tmp_path / "clip")
    options = ["--clip", str(clip), "--save_adapter_only", "true", "--max_steps", "1", "--num_eval_images", "2"]
    assert train([*train_arguments, *options]) == 0
    assert evaluate(tmp_path / "run", scenes, "--output", str(tmp_path / "r.json")) == 0
    assert json.loads((tmp_path / "r.json").read_text())["audit"]["status"] == "matches"
    path = tmp_path / "run" / "ldvc_adapter.safetensors"
    kept = path.read_bytes()
    add_noise(path, "text_prompts.tokens")
    assert evaluate(tmp_path / "run", scenes) == 2
    assert "(text prompts differ)" in capsys.readouterr().err
    path.write_bytes(kept)
    add_noise(clip / "model.safetensors", "text_projection.weight")
    assert evaluate(tmp_path / "run", scenes) == 2
    assert "belongs to the CLIP" in capsys.readouterr().err


# ---- states


def cut_to(folder, step):
    """Leave a run as if it had been killed after a step."""
    for state in (folder / "states").glob("step_*"):
        if int(state.name[5:]) > step:
            shutil.rmtree(state)
    for name in ("model.safetensors", "results.json", "protocol.json"):
        (folder / name).unlink()
    return folder / "states" / f"step_{step:07d}"


def resume(train_arguments, *options):
    AcceleratorState._reset_state(reset_partial_state=True)
    return train([*train_arguments, "--resume_from_checkpoint", "latest", "--num_eval_images", "2", *options])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.bin", "random_states_0.pkl"])
def test_a_state_whose_files_were_replaced_is_not_continued(train_arguments, finished_run, told, name):
    state = cut_to(finished_run, 4)
    if name == "model.safetensors":
        add_noise(state / name, "text_prompts.tokens")
    elif name == "optimizer.bin":  # its moments are weights of the next step
        moments = torch.load(state / name, weights_only=True)
        moments["state"][0]["exp_avg"] += 1
        torch.save(moments, state / name)
    else:
        (state / name).unlink()
    assert resume(train_arguments) == 2
    assert f"is damaged ({name} is not the file that was saved with it); remove this folder to continue" in told.text
    assert not (finished_run / "protocol.json").exists()


def test_a_state_that_nobody_knows_the_recipe_of_is_not_continued(train_arguments, finished_run, told):
    cut_to(finished_run, 4)
    (finished_run / "recipe.yaml").unlink()
    assert resume(train_arguments) == 2
    assert "holds states but no recipe.yaml, so that nobody knows which run they are of" in told.text


def test_a_state_of_an_older_version_is_not_continued(train_arguments, finished_run, told):
    path = cut_to(finished_run, 4) / "counts.pt"
    torch.save(torch.load(path, weights_only=True)[:2], path)  # progress and audit
    assert resume(train_arguments) == 2
    assert "was written by another version, which kept no fingerprints of data, CLIP and weights" in told.text


@pytest.mark.slow
def test_a_run_does_not_go_on_with_another_clip_at_the_same_place(train_arguments, clip_folder, tmp_path, told):
    clip = shutil.copytree(clip_folder, tmp_path / "clip")
    options = ["--clip", str(clip), "--num_eval_images", "2"]
    assert train([*train_arguments, *options, "--max_steps", "6"]) == 0
    cut_to(tmp_path / "run", 4)
    kept = (clip / "model.safetensors").read_bytes()
    add_noise(clip / "model.safetensors", "vision_model.encoder.layers.0.self_attn.q_proj.weight")
    assert resume(train_arguments, *options) == 2
    assert f"the weights of the CLIP {str(clip)!r} are not those that the run began with" in told.text
    (clip / "model.safetensors").write_bytes(kept)  # the remedy
    assert resume(train_arguments, *options) == 0


def write_folder(root, names):
    rng = np.random.default_rng(0)
    for kind in ("images", "masks"):
        (root / "train" / kind).mkdir(parents=True, exist_ok=True)
    for name in names:
        label = rng.integers(0, 4, (2, 2)).repeat(20, 0).repeat(20, 1).astype(np.uint8)
        Image.fromarray(label).save(root / "train" / "masks" / f"{name}.png")
        Image.fromarray(rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)).save(
            root / "train" / "images" / f"{name}.png"
        )


@pytest.mark.slow
def test_a_run_does_not_go_on_with_other_pictures(train_arguments, tmp_path, told):
    data = tmp_path / "data"
    write_folder(data, [f"{index:02}" for index in range(11)])
    options = ["--dataset", str(data), "--eval_split", "train"]
    assert train([*train_arguments, *options]) == 0
    cut_to(tmp_path / "run", 4)
    write_folder(data, [f"new{index}" for index in range(5)])
    assert resume(train_arguments, *options) == 2
    assert f"the pictures and label maps of {str(data)!r} are not those that the run began with" in told.text
    for path in data.rglob("new*"):  # the remedy
        path.unlink()
    assert resume(train_arguments, *options) == 0


def as_parquet(folder, images, labels):
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    folder.mkdir(exist_ok=True)
    Dataset.from_dict({"image": images, "label": labels}, features=features).to_parquet(folder / "train.parquet")
    return load_split(str(folder), "train")


def test_the_fingerprint_of_training_data_sees_pictures_labels_order_and_number(tmp_path):
    rng = np.random.default_rng(0)
    images = [Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)) for _ in range(40)]
    labels = [Image.fromarray(rng.integers(0, 4, (8, 8), dtype=np.uint8)) for _ in range(40)]
    plain = [Image.new("RGB", (8, 8)), *images[1:]]
    variants = [
        (images, labels),
        (plain, labels),
        (images, [labels[1], *labels[1:]]),
        (images[::-1], labels[::-1]),
        (images[:-1], labels[:-1]),
        ([*images[:2], Image.new("RGB", (8, 8)), *images[3:]], labels),  # not among those that are read whole
    ]
    found = [stored_fingerprint(as_parquet(tmp_path / str(index), *kept)) for index, kept in enumerate(variants)]
    assert len(set(found)) == len(variants)
    again = as_parquet(tmp_path / "again", images, labels)
    assert stored_fingerprint(again) == found[0]
    assert stored_fingerprint(again.select(range(39, -1, -1))) == found[3]


def test_a_run_does_not_go_on_with_another_start_or_precision():
    origin = Origin("no", ("data", "1"), ("clip", "2"), {"checkpoint": "a", "weights_sha256": "3", "is_audited": True})
    kept = origin.state_dict()
    Origin("no", ("moved", "1"), ("clip", "2"), origin.start | {"checkpoint": "moved"}).load_state_dict(kept)
    for other, message in (
        (Origin("bf16", origin.data, origin.clip, origin.start), "began with precision 'no', now it is 'bf16'"),
        (Origin("no", origin.data, origin.clip, None), "began from other weights or another audit of them"),
        (
            Origin("no", origin.data, origin.clip, origin.start | {"is_audited": False}),
            "began from other weights or another audit of them",
        ),
    ):
        with pytest.raises(RecipeError, match=message):
            other.load_state_dict(kept)


# ---- scored on training pictures


@pytest.mark.parametrize(("split", "is_marked"), [("train", True), ("validation", False)])
def test_an_evaluation_on_a_part_of_the_training_split_is_marked(finished_run, scenes, tmp_path, split, is_marked):
    assert evaluate(finished_run, scenes, "--split", split, "--output", str(tmp_path / "r.json")) == 0
    assert json.loads((tmp_path / "r.json").read_text())["scored_on_training_images"] == is_marked


def test_a_part_of_the_training_split_is_known_by_its_name():
    protocol = {"dataset": "data/own", "train_split": "train", "dataset_fingerprint": "f", "seed": 1}
    assert is_of_training_split(protocol, "data/other", "validation", "f")
    assert is_of_training_split(protocol, "data/own", "train", "of a part")
    assert not is_of_training_split(protocol, "data/own", "validation", "of a part")
    assert not is_of_training_split({}, "data/own", "train", "of a part")
    drawn = protocol | {"dataset": "picturebook"}
    assert not is_of_training_split(drawn, "picturebook", "train", "of a part")  # pages of another seed
    assert is_of_training_split(drawn, "picturebook", "train", "of a part", edition=1)
