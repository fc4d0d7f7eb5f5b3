"""What the documents show of results/benchmarks/: numbers of results, and plain words where there are none."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import gpu, onnx, plot, scaling, tables
from benchmarks.__main__ import FIGURES, RESULTS, load_figure, run_figure
from benchmarks.timing import Settings
from ldvc.experiments import report


QUICK = Settings(quick=True, repeats=2)
ALL_TABLES = [name for name in report.TABLES if name.startswith("speed")]


def made_up_scaling():
    """Series that obey laws exactly, in seconds."""

    def series(at, law, columns):
        return scaling.describe({str(n): [0.9 * law(n), law(n), 1.1 * law(n)] for n in at}, columns)

    tokens = [(side // 16) ** 2 for side in (224, 512, 768)]
    squares = {"tokens": tokens, "tokens_squared": [n * n for n in tokens]}
    found = {
        "sides": series((224, 512, 768), lambda side: 0.01 + 5e-4 * (n := side**2 / 256) + 1e-7 * n * n, squares),
        "classes": series((20, 1000), lambda n: 0.1 + 2e-5 * n, {"classes": (20, 1000)}),
        "batches": series((1, 2), lambda n: 0.05 + 0.2 * n, {"images": (1, 2)}),
        "processes": scaling.describe({"1": [2.0], "2": [1.5]}),
    }
    found["processes"] |= {"pictures": 6, "threads_of_each": {"1": 2, "2": 1}}
    return {"ratios": {name: part.pop("ratio") for name, part in found.items()}, "series": found}


def made_up_onnx():
    pixels = torch.zeros(2)
    ways = {"eager": lambda x, e: x + 1, "onnx": lambda x, e: x + 1.0005, onnx.INT8: lambda x, e: x + 1.5}
    agreement = {"drawn pages": {"pictures": 32, onnx.INT8: {"same_class": 0.875, "largest_difference": 0.5}}}
    skipped = {"compile": "torch.compile: no compiler"}
    return {**onnx.compare(ways, pixels, pixels, QUICK), "skipped": skipped, "agreement": agreement}


def some_of_gpu():
    [row] = gpu.measure_variant(gpu.Variant(flash_only=True), QUICK)
    lacking = {"dtype": "bfloat16", "attention": "flash_attention_2", "flash_only": False, "compiled": False}
    training = [next(gpu.measure_training("voc2012_inductive", QUICK)), {**TRAINING, "skipped": "out of memory"}]
    inference = [row, {**lacking, "skipped": "not installed"}]
    measured = {"classes": gpu.measure_classes(QUICK), "segmenters": gpu.measure_segmenters(QUICK)}
    return {"ratios": {}, "inference": inference, **measured, "training": training}


TRAINING = {"recipe": "coco_stuff_inductive", "precision": "float32", "batch": 16, "side": 512, "classes": 156}
MADE_UP = {"scaling": made_up_scaling, "onnx": made_up_onnx, "gpu": some_of_gpu}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A folder with results of tiny sizes, not marked as such."""
    folder = tmp_path_factory.mktemp("benchmarks")
    with pytest.MonkeyPatch.context() as patch:
        for name, make in MADE_UP.items():
            figure = SimpleNamespace(TITLE=name, GOALS=load_figure(name).GOALS, measure=lambda _, make=make: make())
            patch.setattr("benchmarks.__main__.load_figure", lambda _, figure=figure: figure)
            write(folder, name, run_figure(name, QUICK))
    for name in ("tower", "loss", "profile", "latency", "memory_plan"):
        write(folder, name, run_figure(name, QUICK))
    return folder


def write(folder, name, result):
    (folder / f"{name}.json").write_text(json.dumps({**result, "quick": False}))


@pytest.fixture
def measured(results, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", results)


@pytest.fixture
def empty(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    return tmp_path


# ---- goals


def test_every_goal_of_every_figure_has_one_row():
    goals = [(name, key) for name in FIGURES for key in load_figure(name).GOALS]
    assert sorted(goals) == sorted((name, key) for name, key, _ in tables.GOAL_ROWS)


def test_what_is_not_measured_is_open_and_has_no_number(empty):
    rows = tables.goals().splitlines()[2:]
    assert len(rows) == len(tables.GOAL_ROWS)
    assert all("| not measured | at " in row and row.endswith("| open |") for row in rows)


def test_a_goal_shows_what_was_reached_and_whether_it_is_enough(empty):
    facts = {"machine": {}, "goals": {"time": {"relation": "at most", "value": 1.1}}}
    facts["goals"]["multiply_adds"] = facts["goals"]["time"]
    ratios = {"time": {"median": 1.2, "min": 1.15, "max": 1.3}, "multiply_adds": 1.09}
    (empty / "tower.json").write_text(json.dumps({**facts, "ratios": ratios}))
    first, second = tables.goals().splitlines()[2:4]
    assert first.endswith("| 1.20 (1.15 to 1.30) | at most 1.10 | **no** |")
    assert second.endswith("| 1.09 | at most 1.10 | yes |")


def test_the_table_says_what_the_metric_was_compared_with(empty):
    result = {"machine": {}, "goals": {}, "ratios": {}, "compared_with": "mean_iou, restated"}
    (empty / "metric.json").write_text(json.dumps(result))
    assert tables.goals().endswith("`mean_iou` here: mean_iou, restated.")


# ---- tables


@pytest.mark.parametrize("name", [name for name in ALL_TABLES if name != "speed"])
def test_a_table_without_results_says_how_to_measure_them(name, empty):
    text = report.TABLES[name]()
    assert "`python -m benchmarks" in text
    assert "|" not in text


def test_machines_are_described_once_with_the_figures_that_they_measured(measured):
    lines = tables.machines().splitlines()
    assert lines[0].startswith("- `tower`, `loss`, `profile`")
    assert f"PyTorch {torch.__version__}" in lines[0]
    assert "attention sdpa, 2 round(s), wall clock." in lines[0]


def test_seconds_behind_ratios_stand_beside_their_memory(measured):
    rows = [line.split(" | ") for line in tables.details().splitlines()[2:]]
    assert {(row[0], row[1]) for row in rows} == {
        *(("| `tower`", job) for job in ("bare", "ldvc")),
        *(("| `loss`", job) for job in ("plain", "ours")),
    }
    assert all(row[3].strip(" |") for row in rows if "loss" in row[0])


def test_shares_of_the_parts_are_of_the_whole(measured):
    rows = [line.split("|")[1:-1] for line in tables.operations().splitlines() if line.startswith("| ")][1:]
    assert [row[0].strip() for row in rows][:3] == ["patch embedding", "tower: attention", "tower: feed-forward"]
    for column in (2, 5):
        assert sum(float(row[column].strip(" %")) for row in rows) == pytest.approx(100, abs=0.6)  # each is rounded
    assert "Operations by their own time: `aten::" in tables.operations()


def test_latency_has_a_row_per_case_and_dtype(measured):
    rows = [line.split(" | ")[:4] for line in tables.latency().splitlines() if line.startswith("| ")][1:]
    assert rows == [
        ["| float32", "2", "32", "1"],
        ["| float32", "3", "48", "2"],
        ["| bfloat16", "2", "32", "1"],
    ]


def test_the_memory_plan_names_the_largest_tensors(measured):
    text = tables.memory_plan()
    assert "constant_pad_nd 1 x 3 x 32 x 32: 0.01;" in text  # the picture
    assert "in blocks of 4 classes" in text


def test_onnx_shows_what_was_skipped_and_how_often_8_bits_agree(measured):
    text = tables.onnx()
    assert "| compile | skipped | torch.compile: no compiler |  |" in text
    assert "| drawn pages | 32 | onnx int8 | 87.50 % | 0.50 |" in text


def test_a_gpu_shows_what_it_could_not_run(measured):
    text = tables.gpu()
    assert "| bfloat16 | sdpa flash | 2 | " in text
    assert "| bfloat16 | flash_attention_2 |  | not installed |" in text
    assert "| `coco_stuff_inductive` | float32 | 16 | 512 | 156 | out of memory |" in text
    assert "| `voc2012_inductive` | float32 | 2 | 32 | 3 | " in text


def test_laws_are_told_in_words(measured):
    text = tables.scaling()
    assert "10 ms + 500 μs per token + 100 ns per pair of tokens fits with errors of at most 0 %" in text
    assert "at 1,024 tokens (512 x 512) 17 % is due to pairs" in text
    assert "100 ms + 20 μs per class" in text
    assert "50 ms + 200 ms per image" in text
    assert "3 pictures per second in one process of 2 thread(s), 4 in two of 1; two take 0.75" in text


def test_a_negative_term_is_subtracted():
    law = {"coefficients": {"constant": 1.0, "classes": -2e-3}, "largest_error": 0.0}
    assert tables.law_in_words(law).startswith("1000 ms - 2 ms per class fits")


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (4.0, "4"), (1.094, "1.09"), (123.4, "123"), (0.0005, "5.0e-04"), (12640.2, "12640")]
)
def test_numbers_have_the_digits_that_they_need(value, text):
    assert tables.number(value) == text


# ---- files


def test_every_committed_result_is_one_of_a_figure():
    assert {path.stem for path in RESULTS.glob("*")} <= set(FIGURES)
    assert tables.read_results()


@pytest.mark.parametrize(
    ("content", "message"),
    [({"ratios": {}}, "no result of a benchmark; measure again: python -m benchmarks loss"), ([], "no result of")],
)
def test_a_file_that_is_no_result_is_refused(empty, content, message):
    (empty / "loss.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        tables.read_results()


def test_a_result_of_a_quick_run_is_refused(empty):
    (empty / "loss.json").write_text(json.dumps({"ratios": {}, "machine": {}, "quick": True}))
    with pytest.raises(ValueError, match="of a quick run, whose figures mean nothing; remove the file"):
        tables.read_results()


# ---- the plot


@pytest.mark.slow
def test_the_plot_has_points_and_fitted_lines(measured, tmp_path):
    assert plot.draw_scaling(tmp_path / "speed.png")
    picture = np.asarray(Image.open(tmp_path / "speed.png").convert("RGB")).astype(int)
    for color in (plot.COLOR, plot.LAW_COLOR):
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture - rgb).sum(axis=2) < 12).sum() > 200, color


def test_without_a_result_nothing_is_drawn(empty):
    assert not plot.draw_scaling(empty / "speed.png")
    assert not (empty / "speed.png").exists()


def test_the_page_shows_the_plot_once_it_is_drawn(measured, tmp_path, monkeypatch):
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "SPEED_FIGURE", tmp_path / "assets" / "speed.png")
    assert "![" not in report.speed_scaling()
    (tmp_path / "assets").mkdir()
    report.SPEED_FIGURE.touch()
    assert "(../assets/speed.png)" in report.speed_scaling()
