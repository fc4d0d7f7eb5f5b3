"""`ldvc segment --engine ray`: the files of the plain command, also when processes are killed."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path, PurePath
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
from PIL import Image
from typer.testing import CliRunner

from ldvc.app.cli import app
from ldvc.app.engine import ATTEMPTS, PICTURES_PER_CALL, Crew, Engine, after_a_loss, open_crew
from ldvc.masks.files import Picture
from ldvc.masks.formats import Format, OutputFolder, describe_names
from ldvc.shares import Share


ROOT = Path(__file__).resolve().parents[1]
FORMATS = [word for kind in ("png", "coco-rle", "npz", "hf") for word in ("--format", kind)]


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    folder = tmp_path / "photos"
    folder.mkdir()
    for index in range(40):
        Image.fromarray(rng.integers(0, 256, (60, 40 + index, 3), dtype=np.uint8)).save(folder / f"{index:02}.png")
    (folder / "bad.png").write_text("no picture")
    return folder


def files_of(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- handing out, with actors that are told what to do


class DeadActorError(Exception):
    pass


class FakeActor:
    """Segments pictures by noting their names; ends with those of `deadly`, or before it has begun."""

    def __init__(self, deadly=(), begins=True):
        self.deadly, self.begins, self.done = set(deadly), begins, []
        self.segment, self.describe = SimpleNamespace(remote=self.work), SimpleNamespace(remote=self.wake)

    def work(self, pictures, *rest):
        names = [picture.name.name for picture in pictures]
        if self.deadly & set(names):
            return Answer(DeadActorError("killed"))
        self.done += names
        return Answer([])

    def wake(self):
        return Answer(None if self.begins else DeadActorError("for good"))


class Office:
    """Hires one actor after the other, the last description again and again."""

    def __init__(self, *descriptions):
        self.descriptions, self.hired = list(descriptions), []

    def __call__(self):
        description = self.descriptions.pop(0) if len(self.descriptions) > 1 else self.descriptions[0]
        self.hired.append(FakeActor(**description))
        return self.hired[-1]

    @property
    def done(self):
        return sorted(int(name) for actor in self.hired for name in actor.done)


class Answer:
    def __init__(self, value):
        self.value = value


def get(answer):
    if isinstance(answer.value, Exception):
        raise answer.value
    return answer.value


FAKE_RAY = SimpleNamespace(
    get=get,
    wait=lambda running, num_returns: (running[:1], running[1:]),
    exceptions=SimpleNamespace(RayActorError=DeadActorError),
)


def pictures_of(count):
    return [Picture(Path(f"{index}.png"), PurePath(str(index))) for index in range(count)]


def test_every_picture_is_done_once():
    office = Office({})
    assert Crew(FAKE_RAY, office, 2, 1).segment(pictures_of(50), None, 1) == []
    assert office.done == list(range(50))
    assert len(office.hired) == 2
    assert all(actor.done for actor in office.hired)


def test_a_picture_that_ends_every_process_is_given_up_and_named_and_the_others_are_done():
    office = Office({"deadly": {"7"}})
    crew = Crew(FAKE_RAY, office, 2, 1)
    failures = crew.segment(pictures_of(20), None, 1)
    assert [name for name, _ in failures] == ["7.png"]
    assert failures[0][1].startswith(f"{ATTEMPTS} processes ended while they worked on it, perhaps for want of memory")
    assert set(office.done) == set(range(20)) - {7}
    assert len(office.hired) == 2 + 1 + ATTEMPTS, "one for each that ended: with the call, then with the picture alone"
    assert len(crew.actors) == 2


def test_an_actor_that_cannot_be_replaced_leaves_its_work_to_the_others():
    office = Office({"deadly": {"0"}}, {}, {"begins": False})
    crew = Crew(FAKE_RAY, office, 2, 1)
    assert crew.segment(pictures_of(20), None, 1) == []
    assert office.done == list(range(20))
    assert crew.actors == [office.hired[1]]


def test_without_any_actor_left_the_run_ends_in_one_line():
    with pytest.raises(RuntimeError, match="every actor of Ray ended, and none could be started again"):
        Crew(FAKE_RAY, Office({"deadly": {"0"}}, {"begins": False}), 1, 1).segment(pictures_of(4), None, 1)


def test_of_several_pictures_nobody_knows_whose_fault_a_loss_was():
    losses = Counter()
    assert after_a_loss(pictures_of(3), losses) == (pictures_of(3), [])
    assert not losses


def test_calls_are_few_but_enough_for_all_actors():
    sizes = [len(chunk) for chunk in Crew(FAKE_RAY, Office({}), 2, 2).chunks(pictures_of(1000))]
    assert (sum(sizes), max(sizes)) == (1000, 2 * PICTURES_PER_CALL)
    assert [len(chunk) for chunk in Crew(FAKE_RAY, Office({}), 2, 8).chunks(pictures_of(16))] == [2] * 8
    assert list(Crew(FAKE_RAY, Office({}), 1, 8).chunks([])) == []


def test_an_output_folder_in_another_process_has_nothing_open(tmp_path):
    import pickle

    folder = OutputFolder(tmp_path, [Format.COCO_RLE], describe_names(["a"], scores=False), 1, ["a"], 0)
    folder.start({})
    copy = pickle.loads(pickle.dumps(folder))
    assert copy.close() == []
    assert (copy.description, copy.classes) == (folder.description, folder.classes)
    folder.finish()


# ---- options


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_actors": 2}, "--actors goes with --engine; give both"),
        (
            {"engine": Engine.RAY, "share": Share(0, 2)},
            "starts processes of its own; run it without accelerate launch",
        ),
    ],
)
def test_options_that_exclude_each_other_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message), open_crew(None, **arguments):
        pass


def test_without_ray_the_extra_is_named(checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    done = CliRunner().invoke(app, ["segment", str(photos), "-m", str(checkpoint), "--engine", "ray"])
    assert done.exit_code == 2
    assert "needs the package 'ray', which is not installed" in done.stderr
    assert "[ray]" in done.stderr


# ---- with Ray


# A killed worker of Ray is not yet survived on every machine: the run can take minutes, or fail (docs/bulk.md).
KILLS_WORKERS = pytest.mark.skipif(
    "LDVC_KILL_RAY" not in os.environ, reason="set LDVC_KILL_RAY=1 to kill Ray's workers"
)


def start(arguments, **environment):
    """Start the command in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, "-m", "ldvc", *map(str, arguments)],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def workers_of(process):
    """Processes of actors below a process."""
    found = psutil.Process(process.pid).children(recursive=True)
    return [child for child in found if child.name().startswith("ray::Worker")]


@KILLS_WORKERS
@pytest.mark.slow
def test_two_actors_of_which_one_is_killed_write_the_files_of_the_plain_command(checkpoint, photos, tmp_path):
    pytest.importorskip("ray")
    call = ["segment", str(photos), "-m", str(checkpoint), "-l", "cat, sofa|couch", "--device", "cpu", *FORMATS]
    plain = CliRunner().invoke(app, [*call, "-o", str(tmp_path / "plain")])
    process = start([*call, "-o", tmp_path / "actors", "--engine", "ray", "--actors", 2], HOME=str(tmp_path / "home"))
    is_killed = False
    while process.poll() is None and not is_killed:
        if len(list((tmp_path / "actors").glob("*.npz"))) > 3:
            workers_of(process)[0].kill()
            is_killed = True
        time.sleep(0.01)
    output, errors = process.communicate()
    assert is_killed, errors
    assert (process.returncode, output) == (1, plain.stdout.replace("plain", "actors")), errors
    assert re.search(r"^  .*bad\.png: no picture", errors, re.MULTILINE)
    assert files_of(tmp_path / "actors") == files_of(tmp_path / "plain")
    assert not (tmp_path / "home" / ".ray").exists()


@pytest.mark.slow
def test_an_interrupted_run_leaves_no_process_and_goes_on(checkpoint, photos, tmp_path):
    pytest.importorskip("ray")
    for index in range(400):  # so many that the run is not over when it is stopped
        shutil.copy(photos / "00.png", photos / f"more{index}.png")
    call = ["segment", str(photos), "-m", str(checkpoint), "-l", "cat, sofa|couch", "--device", "cpu", *FORMATS]
    CliRunner().invoke(app, [*call, "-o", str(tmp_path / "plain")])
    process = start([*call, "-o", tmp_path / "actors", "--engine", "ray"])
    while len(list((tmp_path / "actors").glob("*.npz"))) < 4:
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    errors = process.communicate(timeout=120)[1]
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    assert psutil.wait_procs(children, timeout=30)[1] == []
    assert CliRunner().invoke(app, [*call, "-o", str(tmp_path / "actors"), "--skip-existing"]).exit_code == 1
    assert files_of(tmp_path / "actors") == files_of(tmp_path / "plain")


@pytest.mark.slow
def test_what_the_model_refuses_is_one_line_here_too(photos, tmp_path):
    pytest.importorskip("ray")
    process = start(["segment", photos, "-m", tmp_path, "-l", "cat", "-o", tmp_path / "out", "--engine", "ray"])
    output, errors = process.communicate()
    assert (process.returncode, output) == (2, "")
    assert next(line for line in errors.splitlines() if line.startswith("ldvc: ")).count(str(tmp_path)) == 1
    assert "Traceback" not in errors


# ---- Ray Data


@KILLS_WORKERS
@pytest.mark.slow
def test_ray_data_gives_the_label_maps_of_the_command_though_a_worker_is_killed(checkpoint, photos, tmp_path):
    pytest.importorskip("ray")
    (photos / "bad.png").unlink()
    call = ["segment", str(photos), "-m", str(checkpoint), "-l", "cat, sofa|couch", "-f", "grey", "--device", "cpu"]
    assert CliRunner().invoke(app, [*call, "-o", str(tmp_path / "plain")]).exit_code == 0
    script = (ROOT / "docs" / "bulk.md").read_text().partition("```python\nimport ray")[2].partition("```")[0]
    script = "import ray" + script.replace("outputs/voc2012_inductive", str(checkpoint)).replace(
        "RowSegmenter, fn", "KilledOnce, fn"
    )
    killed = f"""
import os, signal
from ldvc.app.actors import RowSegmenter
class KilledOnce(RowSegmenter):
    def __call__(self, batch):
        if not os.path.exists({str(tmp_path / "killed")!r}):
            open({str(tmp_path / "killed")!r}, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__call__(batch)
"""
    from datasets import Dataset

    paths = sorted(photos.iterdir())
    rows = Dataset.from_dict({"name": [path.stem for path in paths], "image": [path.read_bytes() for path in paths]})
    (tmp_path / "work" / "photos").mkdir(parents=True)
    rows.to_parquet(tmp_path / "work" / "photos" / "a.parquet")
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"HOME": str(tmp_path), "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0"}
    done = subprocess.run(
        [sys.executable, "-c", killed + script], cwd=tmp_path / "work", env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "killed").exists()
    table = Dataset.from_parquet([str(path) for path in (tmp_path / "work" / "masks").glob("*.parquet")])
    expected = {path.stem.removesuffix(".grey"): path.read_bytes() for path in (tmp_path / "plain").glob("*.grey.png")}
    assert dict(zip(table["name"], table["label"], strict=True)) == expected
    assert set(table["error"]) == {""}
