"""What README and cards say is true: numbers have a source, code runs, paths and test names exist."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from ldvc.commands import experiments as commands
from ldvc.experiments import report


ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / name for name in report.DOCUMENTS]
TESTS = "\n".join(path.read_text() for path in (ROOT / "tests").glob("test_*.py"))


def blocks(text, language):
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_every_table_shows_what_the_result_files_hold():
    for path in DOCUMENTS:
        assert report.MARKER.search(path.read_text()), path
        assert report.render(path.read_text()) == path.read_text(), f"{path}: run `ldvc report`"


def test_a_changed_number_would_be_noticed(monkeypatch, capsys):
    monkeypatch.setitem(report.TABLES, "picturebook_scores", lambda: "| 99.9 |")
    assert commands.report(["--check"]) == 1
    assert "README.md" in capsys.readouterr().err


def test_the_python_of_the_readme_runs_from_top_to_bottom(clip_folder, monkeypatch):
    """With a tiny CLIP and the repository's picture in place of the published one and the reader's own."""
    monkeypatch.chdir(ROOT)
    names = {}
    stand_ins = {"openai/clip-vit-base-patch16": str(clip_folder), "photo.jpg": "assets/demo_page.jpg"}
    for block in blocks(README, "python"):
        for given, ours in stand_ins.items():
            block = block.replace(f'"{given}"', repr(ours))
        exec(compile(block, "README.md", "exec"), names)
    assert names["found"].class_names == ["cat", "sofa", "floor"]
    assert names["outputs"].logits.shape[1] == 4
    assert names["logits"].shape[1] == 3
    assert names["label_map"].shape == names["result"].label_map.shape == names["image"].size[::-1]


@pytest.mark.slow
def test_the_script_of_the_page_on_serving_runs_in_spawned_processes(tmp_path):
    found = blocks((ROOT / "docs" / "serving.md").read_text(), "python")
    first, second = (next(text for text in found if word in text) for word in ("multiprocessing", "encode_classes"))
    folder = ROOT / "picturebook" / "ldvc"
    first = first.replace('"picturebook/ldvc"', repr(str(folder)))
    (tmp_path / "serve.py").write_text(f"{first}    print([tuple(maps[0].shape) for maps in label_maps])\n")
    for name, size in (("a.jpg", (40, 30)), ("b.jpg", (24, 50))):
        Image.new("RGB", size, "blue").save(tmp_path / name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "serve.py"], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.stdout.strip() == "[(30, 40), (50, 24)]", done.stderr
    assert "encode_classes" in second


@pytest.mark.slow
def test_the_python_of_the_model_card_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    for block in blocks((ROOT / "model_cards" / "ldvc-picturebook.md").read_text(), "python"):
        exec(compile(block, "ldvc-picturebook.md", "exec"), names)
    assert names["label_map"].shape == names["image"].size[::-1]
    assert {mask["label"] for mask in names["masks"]} <= set(names["model"].config.label2id)


def test_the_first_import_of_the_readme_is_on_the_first_screen():
    lines = README.splitlines()
    assert min(number for number, line in enumerate(lines, 1) if line.startswith("from ")) <= 30
    assert len(lines) <= 200


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name + path.parent.name)
def test_every_linked_file_exists(path):
    links = re.findall(r"\]\((?!https?://|#)([^)]+)\)", path.read_text())
    assert all((path.parent / link).exists() for link in links), [x for x in links if not (path.parent / x).exists()]


def test_every_test_that_the_readme_names_exists():
    named = re.findall(r"`(test_\w+\*?)`", README)
    assert len(named) >= 6
    for name in named:
        assert re.search(rf"def {name.rstrip('*')}\w*\(" if name.endswith("*") else rf"def {name}\(", TESTS), name


def test_every_make_target_and_script_that_the_readme_names_exists():
    targets = set(re.findall(r"`make (\w+)", README)) | set(re.findall(r"^make (\w+)", README, re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert targets >= {"train", "test"}
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    for script in re.findall(r"(?:python|launch) (\w+\.py)", README):
        assert (ROOT / script).is_file(), script


def test_contributing_lists_every_folder_of_the_package_once():
    listed = re.search(r"## Where things are\n(.*?)\n## ", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)[1]
    rooms = {path.parent.name for path in (ROOT / "ldvc").glob("*/__init__.py")}
    for room in rooms:
        assert len(re.findall(rf"^  {room}/ ", listed, re.MULTILINE)) == 1, room
