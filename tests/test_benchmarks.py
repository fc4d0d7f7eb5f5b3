"""Every benchmark runs in tiny sizes, compares results before it compares costs, and keeps what it measured."""

import argparse
import json

import numpy as np
import pytest
import torch
from torch import nn

from benchmarks import consumers, consumers_probe, gpu, latency, onnx, scaling
from benchmarks.__main__ import FIGURES, choose_device, load_figure, main, run_figure, summarise
from benchmarks.flops import count_multiply_adds, gauge_parts, parts_of_ldvc, parts_of_tower
from benchmarks.loss import plain_loss
from benchmarks.memory import largest_tensors, peak_bytes
from benchmarks.memory_plan import attend_in_blocks
from benchmarks.models import (
    build_bare_tower,
    build_config,
    build_model,
    check_equal,
    make_class_embeds,
    make_labels,
    make_pixels,
)
from benchmarks.timing import Settings, ratio, spread, time_rounds
from benchmarks.workers import Workers
from ldvc.app.bench import BenchCase, run_bench
from ldvc.model.decoder_ldvc import LDVCAttention, LDVCRouteAttention
from ldvc.model.loss_ldvc import segmentation_loss
from ldvc.model.regions_ldvc import merge_regions, partition_regions, real_tokens


QUICK = Settings(quick=True, repeats=1)
NEEDS_EXTRAS = {
    "metric": ("datasets", "evaluate", "scipy"),
    "engines": ("ray", "accelerate"),
    "onnx": ("onnx", "onnxruntime", "onnxscript"),
}
# Start processes, compile or export; their parts are tested below.
SLOW = ("startup", "scaling", "onnx", "engines", "gpu")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in FIGURES]
)
def test_every_figure_runs_in_tiny_sizes(name):
    for library in NEEDS_EXTRAS.get(name, ()):
        pytest.importorskip(library)
    result = run_figure(name, QUICK)
    assert result["ratios"]
    assert result["machine"]["torch"] == torch.__version__
    json.dumps(result)


@pytest.mark.slow
def test_start_up_imports_nothing_heavy():
    result = run_figure("startup", QUICK)
    assert result["heavy"] == []
    assert set(result["seconds"]) == {"torch_and_transformers", "ldvc", "load"}


@pytest.mark.parametrize("name", [name for name in FIGURES if name not in NEEDS_EXTRAS])
def test_every_goal_is_at_most_or_at_least_a_number(name):
    for relation, value in load_figure(name).GOALS.values():
        assert relation in ("at most", "at least")
        assert float(value) >= 0


def test_different_results_give_no_ratio():
    with pytest.raises(ValueError, match=r"logits: the results differ by 0.5, more than 0.1; no ratio is given."):
        check_equal("logits", torch.tensor([1.0]), torch.tensor([1.5]), 0.1)


def test_results_that_are_no_numbers_give_no_ratio():
    with pytest.raises(ValueError, match="differ by nan"):
        check_equal("logits", torch.tensor([float("nan")]), torch.tensor([1.0]), 0.1)


def test_peak_memory_counts_what_is_held_at_once():
    thousand = torch.ones(1000)  # 4,000 bytes; numbers become tensors of a few bytes
    assert peak_bytes(lambda: thousand + 1) == pytest.approx(4000, abs=100)
    assert peak_bytes(lambda: [thousand + 1, thousand + 1]) == pytest.approx(8000, abs=100)
    assert peak_bytes(lambda: [(thousand + 1).sum() for _ in range(9)]) < 8000


@pytest.mark.parametrize("classes_per_block", [1, 3, 7, 100])
def test_the_loss_of_some_classes_at_a_time_equals_that_of_all_at_once(monkeypatch, classes_per_block):
    labels = make_labels(7, 16, batch_size=2)
    monkeypatch.setattr("ldvc.model.loss_ldvc.PIXELS_PER_BLOCK", classes_per_block * labels.numel())
    logits = (3 * torch.randn(2, 7, 4, 4)).requires_grad_()
    (plain,) = torch.autograd.grad(plain_loss(logits, labels), logits)
    loss, terms = segmentation_loss(logits, labels)
    torch.testing.assert_close(loss, plain_loss(logits, labels))
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], plain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(100 * terms["focal"] + terms["dice"], loss)


def test_blocks_of_classes_leave_ignored_pixels_out_too(monkeypatch):
    labels, logits = make_labels(7, 16), torch.randn(1, 7, 4, 4)
    whole, _ = segmentation_loss(logits, labels, unlabeled_pixels="ignore")
    monkeypatch.setattr("ldvc.model.loss_ldvc.PIXELS_PER_BLOCK", 2 * labels.numel())
    torch.testing.assert_close(segmentation_loss(logits, labels, unlabeled_pixels="ignore")[0], whole)


@pytest.mark.slow
def test_the_loss_compiles_without_a_graph_break():
    labels, logits = make_labels(7, 16), torch.randn(1, 7, 4, 4)
    compiled = torch.compile(lambda logits: segmentation_loss(logits, labels)[0], fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(logits), segmentation_loss(logits, labels)[0])


@torch.no_grad()
@pytest.mark.parametrize("grid_size", [(8, 8), (8, 12), (7, 5), (3, 9)])
def test_route_attention_by_rows_of_regions_equals_all_regions_at_once(grid_size):
    config = build_config(QUICK, num_regions=4, route_top_k=3)
    config._attn_implementation = "eager"
    route = LDVCRouteAttention(config).eval()
    tokens = torch.randn(2, grid_size[0] * grid_size[1], config.projection_dim)
    output, weights, routes = route(tokens, grid_size)
    region_size = tuple(-(-side // 4) for side in grid_size)
    projected = (route.q_proj(tokens), route.k_proj(tokens), route.v_proj(tokens))
    queries, keys, values = (partition_regions(x, grid_size, region_size) for x in projected)
    is_real = real_tokens(grid_size, region_size, (0, 0), tokens.device).expand(2, -1, -1, -1)
    whole, whole_weights = route.attend_regions(queries, routes, keys, values, is_real)
    torch.testing.assert_close(output, merge_regions(whole, grid_size, region_size), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(weights, whole_weights, atol=1e-6, rtol=1e-5)


def test_jobs_take_turns_after_a_round_that_does_not_count():
    order = []
    seconds = time_rounds({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, Settings(repeats=2))
    assert order == ["a", "b"] * 3
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}


def test_a_ratio_is_taken_within_each_round():
    assert ratio({"a": [2.0, 30.0, 8.0], "b": [1.0, 10.0, 2.0]}, "a", "b") == {"median": 3.0, "min": 2.0, "max": 4.0}
    assert spread([3.0, 1.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 3.0}


def test_settings_refuse_what_cannot_be_measured():
    with pytest.raises(ValueError, match="repeats is 0; use at least 1"):
        Settings(repeats=0)
    with pytest.raises(ValueError, match="the processor's time says nothing of cuda; use clock='wall'"):
        Settings(device="cuda", clock="processor")


def test_a_figure_that_has_a_result_is_not_measured_again(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.run_figure", lambda name, settings: RESULT)
    assert main(["loss", "--output", str(tmp_path)]) == 0
    written = (tmp_path / "loss.json").read_text()
    monkeypatch.setattr("benchmarks.__main__.run_figure", lambda name, settings: pytest.fail("measured twice"))
    assert main(["loss", "--output", str(tmp_path)]) == 0
    assert (tmp_path / "loss.json").read_text() == written
    assert "memory: 5.00; goal at least 4: reached" in capsys.readouterr().out


def test_a_quick_run_keeps_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("benchmarks.__main__.run_figure", lambda name, settings: RESULT)
    main(["loss", "--quick", "--output", str(tmp_path)])
    assert list(tmp_path.iterdir()) == []


def test_a_figure_that_fails_does_not_stop_the_others(tmp_path, capsys, monkeypatch):
    def run(name, settings):
        if name == "text":
            raise ValueError("gradients: the results differ")
        return RESULT

    monkeypatch.setattr("benchmarks.__main__.run_figure", run)
    assert main(["text", "loss", "--output", str(tmp_path)]) == 1
    assert "text: gradients: the results differ" in capsys.readouterr().err
    assert (tmp_path / "loss.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["speed"], "'speed' is no figure; use some of tower"), (["--repeats", "0"], "--repeats is 0; use at least 1")],
)
def test_the_command_names_what_is_wrong(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_the_list_has_name_goals_and_what_was_measured(tmp_path, capsys):
    (tmp_path / "loss.json").write_text(json.dumps(RESULT))
    assert main(["--list", "loss", "text", "profile", "--output", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert "loss: loss\n  memory: 5.00; goal at least 4: reached\n" in told
    assert "156 names\n  not measured yet; goals: forward at least 4, forward_backward at least 4\n" in told
    assert "profile: where time and multiply-adds go" in told


def test_a_missed_goal_is_called_missed():
    assert "time: 0.50 (0.40 to 0.60); goal at least 1: missed" in summarise(RESULT)


# ---- a device that is not there


def arguments(**changes):
    return argparse.Namespace(**{"device": None, "quick": False} | changes)


def test_each_figure_has_its_own_device_and_a_quick_run_needs_none(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert choose_device(load_figure("loss"), arguments()) == "cpu"
    assert choose_device(gpu, arguments()) is None
    assert choose_device(gpu, arguments(quick=True)) == "cpu"
    assert choose_device(gpu, arguments(device="cpu", quick=True)) == "cpu"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert choose_device(load_figure("loss"), arguments()) == "cpu"
    assert choose_device(gpu, arguments()) == "cuda"


def test_a_plain_run_says_in_one_line_that_figures_of_a_gpu_are_open(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("benchmarks.__main__.FIGURES", ("gpu",))
    assert main(["--output", str(tmp_path)]) == 0
    assert capsys.readouterr().out.startswith("gpu: open, for want of a CUDA device; `python -m benchmarks gpu --dev")
    assert main(["gpu", "--output", str(tmp_path)]) == 1  # it was asked for by name
    assert list(tmp_path.iterdir()) == []


# ---- multiply-adds


def test_multiply_adds_of_the_bare_tower_are_those_of_the_formula():
    tower = build_bare_tower(build_model(QUICK))
    pixels = make_pixels(QUICK, 32)
    total, parts = count_multiply_adds(lambda: tower(pixels), parts_of_tower(tower))
    tokens, width, inner, layers = 17, 32, 64, 2  # of the tiny tower at 32 x 32 in patches of 8
    attention = layers * (4 * tokens * width**2 + 2 * tokens**2 * width)
    expected = {
        "patch embedding": 16 * width * 3 * 8 * 8,
        "tower: attention": attention,
        "tower: feed-forward": layers * 2 * tokens * width * inner,
    }
    assert parts == expected
    assert total == sum(expected.values())


def test_the_parts_of_ldvc_hold_all_multiply_adds_also_in_inference_mode():
    counts = []
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            model = build_model(QUICK)
            pixels, embeds = make_pixels(QUICK, 32), make_class_embeds(model, 5)
            job = lambda: model(pixel_values=pixels, class_embeds=embeds)  # noqa: E731, B023
            counts.append(count_multiply_adds(job, parts_of_ldvc(model)))
    assert counts[0] == counts[1]
    total, parts = counts[0]
    assert total == sum(parts.values())
    assert all(parts.values())


def test_a_gauge_is_read_around_each_part_and_its_hooks_are_removed():
    first, second, readings = nn.Identity(), nn.Identity(), iter([1, 4, 10, 15])
    with gauge_parts({"a": [first], "b": [second]}, lambda: next(readings)) as rises:
        second(first(0))
    second(first(0))
    assert rises == {"a": 3, "b": 5}


# ---- memory of long vocabularies


def test_the_largest_tensors_are_named_and_views_are_none():
    tensor = torch.ones(10, 5)
    found = largest_tensors(lambda: torch.cat([tensor.T, tensor.T]).relu_().view(-1), 3)
    assert found[0] == {"operation": "cat", "shape": [10, 10], "megabytes": 400 / 1e6}
    assert "transpose" not in {row["operation"] for row in found}
    assert "view" not in {row["operation"] for row in found}


@torch.no_grad()
@pytest.mark.parametrize("block", [1, 4, 100])
@pytest.mark.parametrize("backend", ["eager", "sdpa"])
def test_attention_to_classes_in_blocks_equals_that_to_all_at_once(block, backend):
    config = build_config(QUICK)
    config._attn_implementation = backend
    attention = LDVCAttention(config).eval()
    tokens, classes = torch.randn(2, 9, 32), 10 * torch.randn(2, 11, 32)
    whole = attention(tokens, key_value_states=classes)[0]
    torch.testing.assert_close(attend_in_blocks(attention, tokens, classes, block), whole, atol=1e-5, rtol=1e-5)


# ---- laws


def test_a_law_is_found_again():
    tokens = [4, 16, 64, 256]
    seconds = [0.5 + 2e-3 * n + 3e-5 * n * n for n in tokens]
    law = scaling.fit({"tokens": tokens, "tokens_squared": [n * n for n in tokens]}, seconds)
    assert law["coefficients"] == pytest.approx({"constant": 0.5, "tokens": 2e-3, "tokens_squared": 3e-5})
    assert law["largest_error"] == pytest.approx(0, abs=1e-9)


def test_what_a_law_does_not_fit_is_told_as_its_largest_relative_error():
    law = scaling.fit({"classes": [1, 2, 3]}, [1.0, 3.0, 3.0])
    fitted = [law["coefficients"]["constant"] + law["coefficients"]["classes"] * n for n in (1, 2, 3)]
    assert law["largest_error"] == pytest.approx(np.abs(np.array(fitted) / [1, 3, 3] - 1).max())


@pytest.mark.parametrize("name", scaling.SWEEPS)
def test_a_series_has_a_point_per_size_and_a_law(name):
    series = scaling.SWEEPS[name](build_model(QUICK), QUICK)
    sizes = {"sides": scaling.QUICK_SIDES, "classes": scaling.QUICK_COUNTS, "batches": scaling.QUICK_BATCHES}
    assert [point["at"] for point in series["points"]] == list(sizes[name])
    assert len(series["law"]["coefficients"]) == (3 if name == "sides" else 2)


@pytest.mark.slow
def test_workers_do_their_pictures_and_say_when_one_of_them_has_ended():
    with Workers(2, QUICK, 32, threads=4) as team:
        assert team.threads == 2
        assert team.run(3) == 4  # shared out evenly
        team._processes[0].kill()
        with pytest.raises(RuntimeError, match="a process that segments pictures ended before its work was done"):
            team.run(2)


class Lazy:
    """Stands for workers that do nothing."""

    threads = 1

    def __init__(self, *options):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def run(self, count):
        return 0


def test_processes_that_leave_pictures_out_give_no_ratio(monkeypatch):
    monkeypatch.setattr(scaling, "Workers", Lazy)
    with pytest.raises(ValueError, match=r"1 process\(es\) did 0 of 2 pictures; no ratio is given"):
        scaling.sweep_processes(QUICK)


# ---- latency


def test_latency_is_measured_with_names_through_the_text_tower():
    model, processor = latency.build_model_with_words(QUICK)
    inputs = processor(class_names=["cat", "teapot"], return_tensors="pt")
    assert model.get_class_embeds(inputs["input_ids"]).shape == (2, 32)


def test_latency_is_of_the_wall_clock():
    with pytest.raises(ValueError, match="latency is what a user waits for, not processor time; leave --clock out"):
        latency.measure(Settings(quick=True, clock="processor"))


def test_ratios_of_latency_lie_within_their_range():
    [row] = run_bench(*latency.build_model_with_words(QUICK), [BenchCase(2, 32, 1)], repeats=3)
    for median, (low, high) in ((row.model_ratio, row.model_ratio_range), (row.whole_ratio, row.whole_ratio_range)):
        assert 0 < low <= median <= high


# ---- ONNX and compilation


def ways(**others):
    return {"eager": lambda pixels, embeds: pixels + 1, **others}


def test_programs_are_compared_with_eager_before_they_are_timed():
    pixels = torch.zeros(2)
    result = onnx.compare(ways(onnx=lambda x, e: x + 1.0005, **{onnx.INT8: lambda x, e: x + 3}), pixels, pixels, QUICK)
    assert result["ratios"]["onnx_difference"] == pytest.approx(5e-4, rel=1e-3)
    assert result["differences"][onnx.INT8] == 2
    assert set(result["seconds"]) == {"eager", "onnx", onnx.INT8}
    with pytest.raises(ValueError, match=r"logits of onnx: the results differ by 0.5, more than 0.001"):
        onnx.compare(ways(onnx=lambda x, e: x + 1.5), pixels, pixels, QUICK)


def test_a_machine_without_a_compiler_has_the_reason_in_the_result(monkeypatch, tmp_path):
    def fail(model, settings):
        raise RuntimeError("No working C++ compiler found\nmore")

    monkeypatch.setattr(onnx, "compile_way", fail)
    monkeypatch.setattr(onnx, "export_ways", lambda model, folder: {"onnx": "program"})
    found, skipped = onnx.build_ways(build_model(QUICK), tmp_path, QUICK)
    assert list(found) == ["eager", onnx.TOWER, "onnx"]
    reasons = {"compile": "torch.compile: No working C++ compiler found", "openvino": "openvino is not installed"}
    assert skipped == reasons


def test_programs_are_for_float32_on_the_cpu():
    with pytest.raises(ValueError, match="programs are exported in float32 and run on the CPU"):
        onnx.measure(Settings(quick=True, dtype=torch.bfloat16))


def test_agreement_is_measured_on_drawn_pages_and_on_photographs_where_they_are(monkeypatch, tmp_path):
    monkeypatch.delenv("LDVC_VOC2012", raising=False)
    monkeypatch.setattr(
        onnx,
        "export_ways",
        lambda model, folder: {"same": lambda x, e: model(pixel_values=x, class_embeds=e).logits},
    )
    found = onnx.agreements(QUICK)
    assert found == {"drawn pages": {"pictures": 1, "same": {"same_class": 1.0, "largest_difference": 0.0}}}
    monkeypatch.setenv("LDVC_VOC2012", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="holds no VOCdevkit"):
        list(onnx.picture_kinds(1))


# ---- GPU, on the CPU


def test_a_gpus_full_sizes_are_refused_on_a_cpu():
    with pytest.raises(ValueError, match="full sizes are measured on a CUDA device, not on cpu; add --quick"):
        gpu.measure(Settings())


@pytest.mark.gpu
def test_the_figures_of_a_gpu_run_on_one():
    result = run_figure("gpu", Settings(quick=True, repeats=1, device="cuda"))
    assert all("skipped" not in row for row in result["inference"] if row["attention"] != "flash_attention_2")


@pytest.mark.slow
@pytest.mark.parametrize("variant", [variant for variant in gpu.VARIANTS[:5] if not variant.compiled], ids=str)
def test_a_variant_is_compared_with_float32_and_with_the_bare_tower(variant):
    [row] = gpu.measure_variant(variant, QUICK)
    assert row["batch"] == 2
    assert set(row["images_per_second"]) == set(row["peak_megabytes"]) == {"bare", "ldvc"}
    assert row["largest_difference"] <= (1e-4 if variant.dtype == "float32" else 0.2)  # logits of about 1


def test_a_variant_that_cannot_run_has_the_reason_in_its_row(monkeypatch):
    def fail(*_):
        raise RuntimeError("No available kernel. Aborting execution.\nmore")

    monkeypatch.setattr(gpu, "time_variant", fail)
    [row] = gpu.measure_variant(gpu.Variant(flash_only=True), QUICK)
    assert row["skipped"] == "No available kernel. Aborting execution."


@pytest.mark.slow
def test_training_steps_take_prompts_and_classes_from_the_recipes(monkeypatch):
    built = []

    def build(settings, **fields):
        built.append(fields)
        return build_model(settings, **fields)

    monkeypatch.setattr(gpu, "build_model", build)
    rows = list(gpu.measure_training("coco_stuff_inductive", QUICK))
    assert [row["precision"] for row in rows] == ["float32", "bfloat16 autocast"]
    assert built == [{"num_vision_prompts": 100}] * 2
    assert all(row["images_per_second"]["median"] > 0 for row in rows)


def test_too_little_memory_for_a_step_is_a_row_too(monkeypatch):
    def fail(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(gpu, "build_model", fail)
    assert [row["skipped"] for row in gpu.measure_training("voc2012_inductive", QUICK)] == ["CUDA out of memory."] * 2


# ---- the library's metric, restated


def test_the_restated_mean_iou_gives_the_figures_of_its_documentation(tmp_path):
    for library in NEEDS_EXTRAS["metric"]:
        pytest.importorskip(library)
    from benchmarks.metric import StoredMeanIoU

    # the example of evaluate's metrics/mean_iou; a map of one row per line of three
    predictions = [[[1, 2], [3, 4], [5, 255]], [[2, 7], [9, 2], [3, 6]], [[2, 2, 3], [8, 2, 4], [3, 255, 2]]]
    references = [[[0, 3], [5, 4], [6, 255]], [[1, 7], [9, 2], [3, 6]], [[1, 2, 2], [8, 2, 1], [3, 255, 1]]]
    scores = StoredMeanIoU(cache_dir=str(tmp_path)).compute(
        predictions=[np.array(rows, dtype=np.uint8) for rows in predictions],
        references=[np.array(rows, dtype=np.uint8) for rows in references],
        num_labels=10,
        ignore_index=255,
    )
    assert scores["mean_iou"] == pytest.approx(0.4775)
    assert scores["mean_accuracy"] == pytest.approx(0.5916666666666666)
    assert scores["overall_accuracy"] == pytest.approx(0.5263157894736842)
    assert scores["per_category_iou"] == pytest.approx([0, 0, 0.375, 0.4, 0.5, 0, 0.5, 1, 1, 1])


RESULT = {
    "title": "loss",
    "quick": False,
    "goals": {"memory": {"relation": "at least", "value": 4.0}, "time": {"relation": "at least", "value": 1.0}},
    "ratios": {"memory": 5.0, "time": {"median": 0.5, "min": 0.4, "max": 0.6}},
}


def test_the_tables_of_other_tools_are_what_the_probe_found():
    from benchmarks import readers

    result = json.loads(readers.RESULT.read_text())
    assert {found[2] for found in readers.MARKER.finditer(readers.DOCUMENT.read_text())} == set(result)
    assert readers.render(readers.DOCUMENT.read_text(), result) == readers.DOCUMENT.read_text()


def test_the_table_of_traps_is_what_was_seen_and_none_is_gone():
    from benchmarks import traps

    rows = json.loads(traps.RESULT.read_text())["traps"]
    assert traps.render(traps.DOCUMENT.read_text(), rows) == traps.DOCUMENT.read_text()
    assert [row["trap"] for row in rows] == [words for _, _, words, _ in traps.TRAPS]
    assert not [row for row in rows if row["seen"].startswith(traps.GONE)]


# ---- consumers of exported programs


def test_the_table_of_consumers_shows_differences_and_failures():
    rows = [
        {"consumer": "A", "version": "1.0", "program": "model.onnx", "difference": 2.2e-6},
        {"consumer": "B", "version": "2.0", "program": "text.onnx", "failed": "no such | operator"},
    ]
    text = consumers.render("x\n<!-- consumers -->\nold\n<!-- end -->\ny", rows)
    assert "| A | 1.0 | `model.onnx` | 2.2e-06 |" in text
    assert "| B | 2.0 | `text.onnx` | fails: no such / operator |" in text
    assert "old" not in text


def test_a_probe_leaves_out_what_is_not_installed_and_tells_what_fails(tmp_path, monkeypatch):
    def fail(path, inputs):
        raise RuntimeError("no\nsuch operator")

    for name in (consumers_probe.PICTURES, consumers_probe.PROMPTS):
        np.savez(tmp_path / f"{name}.npz", x=np.ones(2), expected=np.full(2, 1.5))
    runs = {"here": ("json", lambda path, inputs: inputs["x"]), "bad": ("numpy", fail), "away": ("nowhere", fail)}
    monkeypatch.setattr(consumers_probe, "CONSUMERS", runs)
    found = consumers_probe.probe(tmp_path)
    assert [(row["consumer"], row.get("difference")) for row in found] == [("here", 0.5)] * 2 + [("bad", None)] * 2
    assert found[-1]["failed"] == "no such operator"
