"""Lists of experiments: what they may say, what is run, what is kept, and what the seeds decide."""

import json
import shlex
import signal
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml
from result_files import NAMES, make_recipe, make_result, write

from ldvc.commands import experiments as commands
from ldvc.data import provenance
from ldvc.experiments import ablations, run
from ldvc.experiments.ablations import Claim, Finding, ListError, collect, read_list, weigh_claims
from ldvc.experiments.ledger import LedgerError, Spread, clip_fingerprint, load_result, load_results, settings_of
from ldvc.training.run import build_model


ROOT = Path(__file__).resolve().parents[1]

# Stands in for train.py: leaves what a run leaves, or ends as a run does whose loss is no number.
TRAINER = """
import pathlib, shutil, sys
result, folder = map(pathlib.Path, sys.argv[1:3])
if "--seed=13" in sys.argv:
    sys.exit("train: the loss is nan at step 3")
folder.mkdir(parents=True, exist_ok=True)
shutil.copyfile(result, folder / "results.json")
(folder / "log.jsonl").write_text('''{"step": 1, "loss": 2.0}
{"step": 1, "miou_seen": 0.1, "miou_unseen": 0.4}
{"step": 2, "miou_seen": 0.6, "miou_unseen": 0.3}
''')
"""


@pytest.fixture
def content(tmp_path):
    """A list of two rows, as its file says it."""
    recipe = {"class_names": NAMES, "unseen_classes": ["sofa"], "dataset": "scenes"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(recipe))
    return {
        "world": "toys",
        "recipe": str(tmp_path / "base.yaml"),
        "seeds": [0, 1],
        "groups": {"a": "Who asks?"},
        "rows": [
            {"name": "ldvc", "title": "LDVC", "group": "a"},
            {"name": "full", "title": "full attention", "group": "a", "overrides": {"decoder_attention": "full"}},
        ],
        "claims": [{"claim": "Routing helps", "source": "paper", "row": "ldvc", "than": "full", "score": "hiou"}],
    }


@pytest.fixture
def list_file(tmp_path):
    def save(content):
        path = tmp_path / "list.yaml"
        path.write_text(yaml.safe_dump(content))
        return path

    return save


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Put the stand-in where train.py is, and results and outputs where the test can see them."""
    monkeypatch.setattr(run, "OUTPUTS", tmp_path / "outputs")
    monkeypatch.setattr(ablations, "ROOT", tmp_path)
    script = tmp_path / "train.py"
    script.write_text(TRAINER)
    plan = run.plan

    def plan_with_stand_in(*args):
        jobs = plan(*args)
        for job in jobs:
            result = write(tmp_path / "prepared" / f"{job.name}.json", make_result(job.seed, recipe=job.recipe))
            told = job.command[job.command.index(str(ROOT / "train.py")) + 1 :]
            job.command[:] = [sys.executable, "-S", str(script), str(result), str(job.folder), *told]
        return jobs

    monkeypatch.setattr(run, "plan", plan_with_stand_in)
    monkeypatch.setattr(run, "readable_command", lambda job: shlex.join(job.command))
    return tmp_path / "results" / "toys"


# ---- the committed lists


@pytest.mark.parametrize("path", sorted((ROOT / "recipes" / "ablations").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_row_of_a_committed_list_is_a_recipe_of_its_own(path):
    experiments_list = read_list(path)
    jobs = run.plan(experiments_list, [0], [], [], Path("results"), run.LAUNCH)
    assert len(jobs) == len(experiments_list.rows)


@pytest.mark.slow
def test_every_row_of_the_embedded_world_builds_a_model(monkeypatch):
    monkeypatch.chdir(ROOT)
    listed = read_list(ROOT / "recipes" / "ablations" / "picturebook.yaml")
    for row in listed.rows:
        recipe = listed.recipe_of(row, 0)
        if not row.training_free:
            model, _ = build_model(recipe)
            assert model.config.decoder_query == recipe.model.get("decoder_query", "image"), row.name


def test_windows_of_the_embedded_world_see_as_many_keys_as_its_route():
    listed = read_list(ROOT / "recipes" / "ablations" / "picturebook.yaml")
    rows = {row.name: row for row in listed.rows}
    model = listed.recipe_of(rows["ldvc"], 0).model
    tokens_per_region = (16 // model["num_regions"]) ** 2
    for name in ("window", "shifted_window"):
        assert listed.recipe_of(rows[name], 0).model["window_size"] ** 2 == model["route_top_k"] * tokens_per_region


# ---- reading a list


def test_a_list_gives_rows_claims_and_recipes(content, list_file):
    listed = read_list(list_file(content | {"overrides": {"controls": True}}))
    assert [row.name for row in listed.rows] == ["ldvc", "full"]
    recipe = listed.recipe_of(listed.rows[1], 7)
    assert (recipe.seed, recipe.controls, recipe.model) == (7, True, {"decoder_attention": "full"})
    assert listed.claims == (Claim("Routing helps", "paper", "ldvc", "full", "hiou"),)


def test_a_row_may_have_more_seeds_than_its_list_and_they_come_last(content, list_file):
    content["rows"][1]["seeds"] = 3
    listed = read_list(list_file(content))
    jobs = run.plan(listed, None, [], [], Path("results"), run.LAUNCH)
    assert [job.name for job in jobs] == ["ldvc seed 0", "full seed 0", "ldvc seed 1", "full seed 1", "full seed 2"]
    jobs = run.plan(listed, [7], [], [], Path("results"), run.LAUNCH)  # the command line's are for all rows
    assert [job.name for job in jobs] == ["ldvc seed 7", "full seed 7"]


def test_a_rows_seeds_are_whole_numbers(content, list_file):
    content["rows"][1]["seeds"] = "five"
    with pytest.raises(
        ListError, match=r"row 1: `seeds` is 'five'; give whole numbers such as \[0, 1, 2\], or how many"
    ):
        read_list(list_file(content))


def test_a_list_that_builds_on_another_has_its_rows_on_its_own_world(content, list_file, tmp_path):
    path = list_file(content | {"recipe": "{world}.yaml"})
    (tmp_path / "other.yaml").write_text(f"base: {path.name}\nworld: elsewhere\nseeds: [7]\n")
    listed = read_list(tmp_path / "other.yaml")
    assert (listed.world, listed.seeds, [row.name for row in listed.rows]) == ("elsewhere", (7,), ["ldvc", "full"])
    assert listed.arguments(listed.rows[0], 7)[0].endswith("/elsewhere.yaml")


def test_a_list_that_builds_on_a_missing_one_names_it(tmp_path):
    (tmp_path / "other.yaml").write_text("base: lost.yaml\n")
    with pytest.raises(ListError, match=r"lost\.yaml: cannot be read"):
        read_list(tmp_path / "other.yaml")


def test_a_rows_own_overrides_come_after_the_lists(content, list_file):
    content["rows"][0]["overrides"] = {"controls": True}
    listed = read_list(list_file(content | {"overrides": {"controls": False}}))
    assert [listed.recipe_of(row, 0).controls for row in listed.rows] == [True, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sedes": [1]}, "unknown key `sedes`; did you mean `seeds`"),
        ({"zebra": 1}, "unknown key `zebra`; known are world"),
        ({"seeds": ["one"]}, r"`seeds` is \['one'\]; give whole numbers such as"),
        ({"rows": []}, r"`rows` is \[\]; give a list with at least one entry"),
        ({"groups": ["a"]}, "`groups` is .*; map the key of each group"),
        ({"overrides": [1]}, r"`overrides` is \[1\]; give keys"),
        ({"world": "../elsewhere"}, "`world` is '../elsewhere'; use letters"),
    ],
)
def test_a_wrong_list_is_refused_by_name(content, list_file, change, message):
    with pytest.raises(ListError, match=message):
        read_list(list_file(content | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"titles": "x"}, "row 1 has an unknown key `titles`; did you mean `title`"),
        ({"name": "ldvc"}, "row 'ldvc': stands twice"),
        ({"name": "Full Attention"}, "row 'Full Attention': use lower-case letters"),
        ({"group": "z"}, "row 'full': its group 'z' is none of a"),
        ({"title": 3}, "row 1: `title` is 3; give text"),
        ({"overrides": ["x"]}, r"row 1: `overrides` is \['x'\]; give keys"),
        ({"training_free": "magic"}, "`training_free` is 'magic'; use tokens or value or"),
    ],
)
def test_a_wrong_row_is_refused_by_name(content, list_file, change, message):
    content["rows"][1] |= change
    with pytest.raises(ListError, match=message):
        read_list(list_file(content))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"row": "lost"}, "claim 'Routing helps': there is no row 'lost'"),
        ({"score": "beauty"}, "`score` is 'beauty'; use one of pixel_accuracy"),
        ({"expect": "equal"}, "`expect` is 'equal'; use one of higher"),
        ({"source": "rumour"}, "`source` is 'rumour'; use one of paper"),
    ],
)
def test_a_wrong_claim_is_refused_by_name(content, list_file, change, message):
    content["claims"][0] |= change
    with pytest.raises(ListError, match=message):
        read_list(list_file(content))


def test_a_row_without_a_title_is_refused(content, list_file):
    del content["rows"][0]["title"]
    with pytest.raises(ListError, match="row 0 lacks the key `title`"):
        read_list(list_file(content))


def test_broken_yaml_and_a_missing_file_are_named(tmp_path):
    (tmp_path / "list.yaml").write_text("rows: [")
    with pytest.raises(ListError, match=r"list\.yaml: no valid YAML"):
        read_list(tmp_path / "list.yaml")
    with pytest.raises(ListError, match=r"lost\.yaml: cannot be read"):
        read_list(tmp_path / "lost.yaml")
    (tmp_path / "list.yaml").write_text("[1]")
    with pytest.raises(ListError, match="holds a list where keys and values were expected"):
        read_list(tmp_path / "list.yaml")


def test_an_override_that_is_no_key_of_a_recipe_names_the_row_before_anything_runs(content, list_file, capsys):
    content["rows"][1]["overrides"] = {"decoder_atention": "full"}
    assert commands.experiments([str(list_file(content))]) == 2
    assert "row 'full': a recipe has no key `decoder_atention`; did you mean" in capsys.readouterr().err


def test_two_rows_with_the_same_settings_are_refused(content, list_file, capsys):
    content["rows"][1]["overrides"] = {"decoder_attention": "route"}
    assert commands.experiments([str(list_file(content)), "--dry_run"]) == 2
    assert "rows 'ldvc' and 'full' have the same settings" in capsys.readouterr().err


def test_a_row_that_does_not_exist_is_refused_with_those_that_do(content, list_file, capsys):
    assert commands.experiments([str(list_file(content)), "--only", "fool", "--dry_run"]) == 2
    assert "there is no row 'fool'; choose from ldvc, full" in capsys.readouterr().err


# ---- running


def test_every_row_and_seed_gets_a_result_with_its_curve_and_command(content, list_file, launched, capsys):
    assert commands.experiments([str(list_file(content))]) == 0
    assert sorted(path.name for path in launched.iterdir()) == [
        "full_seed0.json", "full_seed1.json", "ldvc_seed0.json", "ldvc_seed1.json",
    ]  # fmt: skip
    result = load_result(launched / "full_seed1.json")
    assert result["row"] == {"name": "full", "title": "full attention", "group": "a"}
    assert [record["miou_unseen"] for record in result["curve"]] == [0.4, 0.3]
    assert "--decoder_attention" in result["command"]
    output = capsys.readouterr().out
    assert "[4/4]" in output
    assert "left" in output
    assert "| full attention | 80.0 ± 0.0 |" in output


def test_what_is_done_is_not_done_again(content, list_file, launched, capsys):
    commands.experiments([str(list_file(content)), "--only", "ldvc"])
    before = {path: path.stat().st_mtime_ns for path in launched.iterdir()}
    assert commands.experiments([str(list_file(content))]) == 0
    assert "4 runs: 2 to do, 2 there already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_result_with_other_settings_is_reported_and_kept(content, list_file, launched, capsys):
    commands.experiments([str(list_file(content)), "--only", "full"])
    before = (launched / "full_seed0.json").read_text()
    content["rows"][1]["overrides"]["num_decoder_layers"] = 3
    assert commands.experiments([str(list_file(content)), "--only", "full"]) == 1
    error = capsys.readouterr().err
    assert "full seed 0: made with other settings: num_decoder_layers was 2, now 3 (kept; --replace" in error
    assert (launched / "full_seed0.json").read_text() == before
    assert commands.experiments([str(list_file(content)), "--only", "full", "--replace"]) == 0
    assert load_result(launched / "full_seed0.json")["recipe"]["model"]["num_decoder_layers"] == 3


def test_a_retrained_clip_makes_its_results_stale(content, list_file, launched, tmp_path, capsys):
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"one")
    content["overrides"] = {"clip": str(tmp_path / "clip")}
    assert commands.experiments([str(list_file(content)), "--only", "ldvc"]) == 0
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"two")
    assert commands.experiments([str(list_file(content)), "--only", "ldvc"]) == 1
    assert "CLIP's fingerprint was" in capsys.readouterr().err


def test_every_row_has_its_first_seed_before_any_row_has_its_second(content, list_file):
    listed = read_list(list_file(content))
    jobs = run.plan(listed, [0, 1, 0], [], [], Path("results"), run.LAUNCH)
    assert [job.name for job in jobs] == ["ldvc seed 0", "full seed 0", "ldvc seed 1", "full seed 1"]


def test_a_clip_that_changes_while_a_row_runs_leaves_no_result(content, list_file, launched, tmp_path, monkeypatch):
    clip = tmp_path / "clip" / "model.safetensors"
    clip.parent.mkdir()
    clip.write_bytes(b"one")
    content["overrides"] = {"clip": str(clip.parent)}

    def train_while_it_changes(job):
        clip.write_bytes(b"another")
        return make_result(recipe=job.recipe)

    monkeypatch.setattr(run, "train_row", train_while_it_changes)
    job = run.plan(read_list(list_file(content)), [0], ["ldvc"], [], launched, run.LAUNCH)[0]
    assert "recipe or CLIP changed while it ran (CLIP's fingerprint was" in run.run_job(job)
    assert not launched.exists()


def test_a_recipe_that_changes_while_the_list_runs_leaves_no_result(content, list_file, launched, monkeypatch):
    other = make_result(recipe=make_recipe(max_steps=7))
    monkeypatch.setattr(run, "train_row", lambda job: other)
    job = run.plan(read_list(list_file(content)), [0], ["ldvc"], [], launched, run.LAUNCH)[0]
    assert "changed while it ran (max_steps was 20000, now 7)" in run.run_job(job)


@pytest.mark.parametrize("change", [{}, {"num_decoder_layers": 3}])
def test_a_run_that_left_a_state_goes_on_from_it_unless_its_settings_changed(content, list_file, launched, change):
    commands.experiments([str(list_file(content)), "--only", "full", "--seeds", "0"])
    folder = run.OUTPUTS / "experiments" / "toys" / "full_seed0"
    (folder / "states" / "step_0000001").mkdir(parents=True)
    for path in (launched / "full_seed0.json", folder / "results.json"):  # as if it had been killed
        path.unlink()
    content["rows"][1]["overrides"] |= change
    commands.experiments([str(list_file(content)), "--only", "full", "--seeds", "0"])
    last = [line for line in folder.with_suffix(".log").read_text().splitlines() if line.startswith("$")][-1]
    assert (run.RESUME in last, run.OVERWRITE in last) == ((False, True) if change else (True, False))


def test_a_finished_run_whose_result_was_deleted_starts_anew(content, list_file, launched):
    arguments = [str(list_file(content)), "--only", "full", "--seeds", "0"]
    commands.experiments(arguments)
    folder = run.OUTPUTS / "experiments" / "toys" / "full_seed0"
    (folder / "states" / "step_0000001").mkdir(parents=True)
    (launched / "full_seed0.json").unlink()
    commands.experiments(arguments)
    assert run.RESUME not in folder.with_suffix(".log").read_text()


@pytest.mark.skipif(run.fcntl is None, reason="file locks of POSIX")
def test_two_lists_do_not_work_on_the_same_run(content, list_file, launched):
    job = run.plan(read_list(list_file(content)), [0], ["ldvc"], [], launched, run.LAUNCH)[0]
    job.folder.parent.mkdir(parents=True)
    with run.hold_log(job):
        assert "another process is at work on it and holds" in run.run_job(job)
    assert run.run_job(job) is None


@pytest.fixture
def pressable_ctrl_c():
    """A shell starts what it puts in the background with Ctrl-C ignored."""
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, handler)


def test_ctrl_c_ends_the_runs_at_work_and_says_how_to_go_on(
    content, list_file, launched, tmp_path, capsys, pressable_ctrl_c
):
    folder = run.OUTPUTS / "experiments" / "toys"
    mark = "pathlib.Path(sys.argv[2] + '.{}').touch()"
    slow = ["import pathlib, sys, time", mark.format("began"), "time.sleep(60)", mark.format("ended")]
    (tmp_path / "train.py").write_text("\n".join(slow))

    def press_ctrl_c():
        while not (folder / "ldvc_seed0.began").exists():
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

    threading.Thread(target=press_ctrl_c, daemon=True).start()
    assert commands.experiments([str(list_file(content)), "--only", "ldvc"]) == 130
    assert not (folder / "ldvc_seed0.ended").exists()
    assert "stopped; the same command goes on from here" in capsys.readouterr().err
    assert not launched.exists()
    assert not run.PROCESSES.running


def test_a_crash_ends_one_run_and_not_the_list(content, list_file, launched, capsys):
    assert commands.experiments([str(list_file(content)), "--only", "ldvc", "--seeds", "13", "1"]) == 1
    assert [path.name for path in launched.iterdir()] == ["ldvc_seed1.json"]
    captured = capsys.readouterr()
    assert "ldvc seed 13: FAILED: train: the loss is nan at step 3 (log:" in captured.out
    assert "ldvc seed 13: train: the loss is nan" in captured.err


def test_what_a_failed_run_said_is_told_without_the_launchers_trace(tmp_path):
    (tmp_path / "run.log").write_text(
        "$ accelerate launch\nLoading weights: 100%\ntrain: Class validation error:\n    ValueError: `x` is 3.\n"
        'Traceback (most recent call last):\n  File "<frozen runpy>", line 198\nCalledProcessError: status 2\n'
    )
    said = run.last_words(tmp_path / "run.log")
    assert said == f"train: Class validation error: ValueError: `x` is 3. (log: {tmp_path / 'run.log'})"


def test_a_run_that_was_killed_is_told_by_its_last_line(tmp_path):
    (tmp_path / "run.log").write_text("$ accelerate launch\ntrain:  40%\n\n")
    assert run.last_words(tmp_path / "run.log") == f"train:  40% (log: {tmp_path / 'run.log'})"


def test_a_broken_result_is_reported_and_kept(content, list_file, launched, capsys):
    write(launched / "ldvc_seed0.json", {"scores": {}})
    assert commands.experiments([str(list_file(content)), "--only", "ldvc", "--seeds", "0"]) == 1
    assert "ldvc_seed0.json: lacks field 'num_images'" in capsys.readouterr().err
    assert json.loads((launched / "ldvc_seed0.json").read_text()) == {"scores": {}}


def test_a_run_whose_result_lacks_a_field_writes_nothing(content, list_file, launched, capsys, monkeypatch):
    result = make_result()
    del result["versions"]
    monkeypatch.setattr(run, "train_row", lambda job: result)
    assert commands.experiments([str(list_file(content)), "--only", "ldvc", "--seeds", "0"]) == 1
    assert "lacks field 'versions'" in capsys.readouterr().err
    assert not launched.exists()


def test_a_smoke_run_stays_out_of_the_ledger(content, list_file, launched, tmp_path):
    assert commands.experiments([str(list_file(content)), "--only", "ldvc", "--seeds", "0", "--max_steps", "2"]) == 0
    assert not launched.exists()
    result = load_result(tmp_path / "outputs" / "smoke" / "toys" / "results" / "ldvc_seed0.json")
    assert result["recipe"]["max_steps"] == 2


def test_a_dry_run_names_states_and_commands_and_runs_nothing(content, list_file, launched, capsys):
    assert commands.experiments([str(list_file(content)), "--dry_run"]) == 0
    output = capsys.readouterr().out
    assert "ldvc seed 0: missing" in output
    assert "--decoder_attention" in output
    assert not launched.exists()


def test_several_runs_at_a_time_give_the_same_results(content, list_file, launched):
    assert commands.experiments([str(list_file(content)), "--jobs", "3"]) == 0
    assert len(list(launched.iterdir())) == 4


def test_a_folder_without_a_commit_is_refused_before_anything_runs(content, list_file, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(provenance, "code_version", lambda: None)
    monkeypatch.setattr(run, "run_jobs", lambda *args: pytest.fail("something ran"))
    assert commands.experiments([str(list_file(content)), "--results", str(tmp_path / "results")]) == 2
    assert "is no git checkout, so that no result could be traced" in capsys.readouterr().err


def test_no_run_at_a_time_is_refused(content, list_file, capsys):
    with pytest.raises(SystemExit):
        commands.experiments([str(list_file(content)), "--jobs", "0"])
    assert "--jobs is 0; use 1 or more" in capsys.readouterr().err


def test_the_command_of_a_row_is_one_that_can_be_typed():
    listed = read_list(ROOT / "recipes" / "ablations" / "picturebook.yaml")
    jobs = run.plan(listed, [2], ["window"], [], Path("results"), run.LAUNCH)
    command = run.readable_command(jobs[0])
    assert command.startswith("accelerate launch train.py recipes/picturebook_inductive.yaml ")
    assert str(ROOT) not in command
    assert jobs[0].command[1:3] == ["-m", "accelerate.commands.launch"]
    (job,) = run.plan(listed, [2], ["window"], [], Path("results"), "--num_processes 4")
    assert run.readable_command(job).startswith("accelerate launch --num_processes 4 train.py recipes/")


@pytest.mark.slow
def test_clip_without_training_is_scored_on_the_lists_data(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "OUTPUTS", tmp_path / "outputs")
    arguments = [str(ROOT / "recipes" / "ablations" / "picturebook.yaml"), "--only", "floor_tokens", "floor_value"]
    assert (
        commands.experiments([*arguments, "--seeds", "0", "--num_eval_images", "2", "--results", str(tmp_path)]) == 0
    )
    tokens, value = (load_result(tmp_path / f"floor_{name}_seed0.json") for name in ("tokens", "value"))
    assert (tokens["num_images"], tokens["trainable_parameters"]) == (2, 0)
    assert tokens["clip_fingerprint"] == value["clip_fingerprint"]
    assert tokens["scores"]["0.0"]["per_class_iou"] != value["scores"]["0.0"]["per_class_iou"]


@pytest.mark.slow
def test_a_real_row_trains_and_continues(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "OUTPUTS", tmp_path / "outputs")
    arguments = [str(ROOT / "recipes" / "ablations" / "picturebook.yaml"), "--only", "class_query", "--seeds", "0"]
    arguments += ["--max_steps=2", "--num_eval_images=2", "--num_train_images=8", "--eval_every=1"]
    assert commands.experiments([*arguments, "--results", str(tmp_path)]) == 0
    result = load_result(tmp_path / "class_query_seed0.json")
    assert [record["step"] for record in result["curve"]] == [1, 2]
    capsys.readouterr()
    assert commands.experiments([*arguments, "--results", str(tmp_path)]) == 0
    assert "1 runs: 0 to do, 1 there already" in capsys.readouterr().out
    # as if it had been scored by another rule
    before = json.loads((tmp_path / "class_query_seed0.json").read_text())
    before["scores"]["0.0"]["pixel_accuracy"] = 0.123
    write(tmp_path / "class_query_seed0.json", before)
    assert commands.experiments([*arguments, "--results", str(tmp_path), "--rescore"]) == 0
    again = load_result(tmp_path / "class_query_seed0.json")
    assert (again["scores"], again["training_seconds"]) == (result["scores"], result["training_seconds"])
    assert again["curve"] == []
    assert again["scored_by"]["commit"]
    write(tmp_path / "class_query_seed0.json", again | {"weights_sha256": "of others"})
    assert commands.experiments([*arguments, "--results", str(tmp_path), "--rescore"]) == 1
    assert "the result is of of others" in capsys.readouterr().err


# ---- what stands together in one table


def test_settings_fill_in_what_an_older_recipe_lacks(content, list_file):
    listed = read_list(list_file(content))
    recipe = vars(listed.recipe_of(listed.rows[0], 0))
    older = {key: value for key, value in recipe.items() if key != "max_grad_norm"}
    assert settings_of(older) == settings_of(recipe)
    assert settings_of(recipe | {"seed": 5, "output_dir": "x"}) == settings_of(recipe)


def test_the_first_half_of_a_transductive_run_is_not_another_setting(content, list_file):
    listed = read_list(list_file(content))
    recipe = vars(listed.recipe_of(listed.rows[0], 0, ["--output_dir", "out"]))
    assert settings_of(recipe | {"start_from": "out/inductive"}) == settings_of(recipe)
    assert settings_of(recipe | {"start_from": "other/inductive"}) != settings_of(recipe)


def test_rows_of_other_recipes_are_left_out(content, list_file, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "ROOT", tmp_path)
    listed = read_list(list_file(content))
    recipes = [listed.recipe_of(row, 0) for row in listed.rows]
    write(listed.results_folder / "ldvc_seed0.json", make_result(recipe=recipes[0]))
    write(listed.results_folder / "full_seed0.json", make_result(recipe=recipes[1]))
    assert set(collect(listed).results) == {"ldvc", "full"}
    write(listed.results_folder / "full_seed0.json", make_result(recipe=recipes[0]))
    collected = collect(listed)
    assert set(collected.results) == {"ldvc"}
    assert collected.left_out["full"].startswith("seed 0 made with other settings (decoder_attention was 'route', now")


def test_results_of_a_clip_that_is_no_longer_there_are_left_out_seed_by_seed(
    content, list_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(ablations, "ROOT", tmp_path)
    (tmp_path / "clip").mkdir()
    (tmp_path / "clip" / "model.safetensors").write_bytes(b"now")
    listed = read_list(list_file(content | {"overrides": {"clip": str(tmp_path / "clip")}}))
    recipe = listed.recipe_of(listed.rows[0], 0)
    now = clip_fingerprint(recipe.clip)
    for seed, fingerprint in enumerate((now, "before", "before", None)):
        result = make_result(seed, recipe=recipe, clip_fingerprint=fingerprint)
        write(listed.results_folder / f"ldvc_seed{seed}.json", result)
    collected = collect(listed)
    assert [result["seed"] for result in collected.results["ldvc"]] == [0]
    assert collected.left_out["ldvc"] == "seeds 1, 2 made with another CLIP; seed 3 made with an unknown CLIP"


def test_a_result_that_was_scored_on_other_data_than_the_rows_above_is_left_out(
    content, list_file, tmp_path, monkeypatch
):
    monkeypatch.setattr(ablations, "ROOT", tmp_path)
    listed = read_list(list_file(content))
    for seed in (0, 1):  # data of its own for each seed, the same for every row
        for row in listed.rows:
            result = make_result(seed, recipe=listed.recipe_of(row, seed), dataset_fingerprint=f"edition {seed}")
            write(listed.results_folder / f"{row.name}_seed{seed}.json", result)
    assert not collect(listed).left_out
    write(listed.results_folder / "full_seed1.json", result | {"dataset_fingerprint": "edition 0"})
    assert collect(listed).left_out == {"full": "seed 1 scored on other data than the rows above"}


def test_seeds_of_one_row_made_with_different_settings_are_refused(tmp_path):
    write(tmp_path / "ldvc_seed0.json", make_result(0))
    changed = make_result(1)
    changed["recipe"]["max_steps"] = 5
    write(tmp_path / "ldvc_seed1.json", changed)
    with pytest.raises(LedgerError, match=r"ldvc_seed1.json: made with other settings than seed 0: max_steps"):
        load_results(tmp_path, "ldvc")


# ---- findings


def finding(row, than, expect="higher"):
    return Finding(Claim("x", "paper", "a", "b", "hiou", expect), dict(enumerate(row)), dict(enumerate(than)))


def test_spread_is_mean_and_sample_deviation():
    spread = Spread([0.1, 0.2, 0.3, None])
    assert spread.mean == pytest.approx(0.2)
    assert spread.deviation == pytest.approx(0.1)
    assert spread.format() == "20.0 ± 10.0"
    assert Spread([0.5]).format() == "50.0"
    assert Spread([None]).format() == "-"


def test_rows_are_compared_seed_by_seed():
    # seeds differ by far more than the rows do, which are apart by 0.1, 0.11 and 0.12
    low, high = finding([0.3, 0.51, 0.72], [0.2, 0.4, 0.6]).interval
    # Student's t of three: 4.3027 standard errors, the error 0.01 / sqrt(3)
    assert (low, high) == pytest.approx((0.11 - 0.02484, 0.11 + 0.02484), abs=1e-5)


def test_seeds_that_one_row_lacks_are_left_aside():
    claim = Claim("x", "paper", "a", "b", "hiou")
    found = Finding(claim, {0: 0.5, 1: 0.6, 2: 0.7, 3: 0.9}, {1: 0.5, 2: 0.5, 3: 0.5, 4: 0.1})
    assert found.differences.values == pytest.approx([0.1, 0.2, 0.4])


@pytest.mark.parametrize(
    ("differences", "expect", "verdict"),
    [
        ([0.2, 0.21, 0.22], "higher", "confirmed"),
        ([0.2, 0.21, 0.22], "lower", "contradicted"),
        ([0.2, 0.21, 0.22], "not higher", "contradicted"),
        ([-0.2, -0.21, -0.22], "higher", "contradicted"),
        ([-0.2, -0.21, -0.22], "lower", "confirmed"),
        ([-0.2, -0.21, -0.22], "not higher", "confirmed"),
        ([0.2, 0.3, -0.2], "higher", "not confirmed"),
        ([0.2, 0.3, -0.2], "lower", "not confirmed"),
        ([0.2, 0.3, -0.2], "not higher", "not confirmed"),
        ([0.001, 0.0, -0.001], "not higher", "confirmed"),
        ([0.2, 0.21], "higher", "open"),
        ([], "higher", "open"),
    ],
)
def test_verdicts_follow_from_interval_and_expectation(differences, expect, verdict):
    assert finding([0.5 + difference for difference in differences], [0.5] * 3, expect).verdict == verdict


def test_claims_are_weighed_at_each_offset(content, list_file, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "ROOT", tmp_path)
    listed = read_list(list_file(content))
    for row, unseen in zip(listed.rows, (0.5, 0.2), strict=True):
        for seed in (0, 1, 2):
            result = make_result(seed, unseen=unseen + 0.01 * seed, recipe=listed.recipe_of(row, seed))
            result["scores"]["0.1"] = make_result(unseen=0.3 + 0.01 * seed)["scores"]["0.0"]
            write(listed.results_folder / f"{row.name}_seed{seed}.json", result)
    collected = collect(listed)
    assert [weigh_claims(listed, collected, offset)[0].verdict for offset in ("0.0", "0.1")] == [
        "confirmed", "not confirmed",
    ]  # fmt: skip


def test_the_fall_of_unseen_classes_is_read_from_the_curves(content, list_file, tmp_path, monkeypatch):
    monkeypatch.setattr(ablations, "ROOT", tmp_path)
    content["claims"][0]["score"] = "fall_of_unseen"
    listed = read_list(list_file(content))
    curve = [{"step": step, "miou_seen": 0.5, "miou_unseen": unseen} for step, unseen in ((1, 0.4), (2, 0.25))]
    write(
        listed.results_folder / "ldvc_seed0.json", make_result(recipe=listed.recipe_of(listed.rows[0], 0), curve=curve)
    )
    assert weigh_claims(listed, collect(listed))[0].row == {0: pytest.approx(0.15)}
    assert weigh_claims(listed, collect(listed), "0.1")[0].row == {}  # curves are scored without offset


def test_numbers_of_a_list_stay_numbers_on_the_command_line():
    for value in (1.0e-5, 0.25, 3, None, True, [1, 2], {"rotated_key_weight": 1.0e-5}, "1", "a b"):
        typed = ablations._as_typed(value)
        assert "\n" not in typed
        assert yaml.safe_load(typed) == value


def test_a_floor_that_an_override_cannot_change_is_refused(content, list_file):
    row = {"name": "floor", "title": "CLIP", "group": "a", "training_free": "pearl"}
    content["rows"].append(row | {"overrides": {"patch_feature_settings": {"num_blocks": 5}}})
    with pytest.raises(
        ListError, match="`patch_feature_settings` changes nothing of CLIP without training by 'pearl'"
    ):
        read_list(list_file(content))
