"""Every benchmark runs in tiny sizes, compares results before it compares costs, and keeps what it measured."""

import json

import pytest
import torch

from benchmarks.__main__ import FIGURES, load_figure, main, run_figure, summarise
from benchmarks.loss import plain_loss
from benchmarks.memory import peak_bytes
from benchmarks.models import build_config, check_equal, make_labels
from benchmarks.timing import Settings, ratio, spread, time_rounds
from decoder_ldvc import LDVCRouteAttention
from loss_ldvc import segmentation_loss
from regions_ldvc import merge_regions, partition_regions, real_tokens


QUICK = Settings(quick=True, repeats=1)
NEEDS_EXTRAS = {"metric": ("datasets", "evaluate", "scipy")}


@pytest.mark.parametrize("name", [name for name in FIGURES if name != "startup"])
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
    monkeypatch.setattr("loss_ldvc.PIXELS_PER_BLOCK", classes_per_block * labels.numel())
    logits = (3 * torch.randn(2, 7, 4, 4)).requires_grad_()
    (plain,) = torch.autograd.grad(plain_loss(logits, labels), logits)
    loss, terms = segmentation_loss(logits, labels)
    torch.testing.assert_close(loss, plain_loss(logits, labels))
    torch.testing.assert_close(torch.autograd.grad(loss, logits)[0], plain, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(100 * terms["focal"] + terms["dice"], loss)


def test_blocks_of_classes_leave_ignored_pixels_out_too(monkeypatch):
    labels, logits = make_labels(7, 16), torch.randn(1, 7, 4, 4)
    whole, _ = segmentation_loss(logits, labels, unlabeled_pixels="ignore")
    monkeypatch.setattr("loss_ldvc.PIXELS_PER_BLOCK", 2 * labels.numel())
    torch.testing.assert_close(segmentation_loss(logits, labels, unlabeled_pixels="ignore")[0], whole)


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


def test_a_missed_goal_is_called_missed():
    assert "time: 0.50 (0.40 to 0.60); goal at least 1: missed" in summarise(RESULT)


RESULT = {
    "title": "loss",
    "quick": False,
    "goals": {"memory": {"relation": "at least", "value": 4.0}, "time": {"relation": "at least", "value": 1.0}},
    "ratios": {"memory": 5.0, "time": {"median": 0.5, "min": 0.4, "max": 0.6}},
}
