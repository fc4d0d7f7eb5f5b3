"""What the documents show of results/benchmarks/: the table of goals, a table per figure, fitted laws.

`ldvc report` puts them into the documents. A figure without a result has a row that says so, never a number.
"""

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.__main__ import COMPARISONS, FIGURES, OPEN, RESULTS, load_figure


Result = Mapping[str, Any]
# What has a goal, in the order of the table: figure, ratio, words.
GOAL_ROWS = (
    ("tower", "time", "LDVC with cached class embeddings / bare `CLIPVisionModel`, 512 x 512, 20 classes"),
    ("tower", "multiply_adds", "the same, multiply-adds"),
    ("training_free", "naclip", "training-free CLIP (NACLIP) / bare `CLIPVisionModel`, 512 x 512, 20 classes"),
    ("training_free", "multiply_adds", "the same, multiply-adds"),
    ("clipseg", "20", "`CLIPSegForImageSegmentation` / LDVC, 352 x 352, 20 labels"),
    ("segmenters", "1", "`CLIPSegForImageSegmentation` / our CLIPSeg, the same logits, 352 x 352, 1 label"),
    ("segmenters", "20", "the same, 20 labels"),
    ("segmenters", "171", "the same, 171 labels"),
    ("segmenters", "memory, 171 labels", "the same, peak memory at 171 labels"),
    ("classes", "171", "171 classes / 20, cached embeddings"),
    ("classes", "1000", "1,000 classes / 20"),
    ("classes", "10000", "10,000 classes / 20"),
    ("text", "forward", "text tower padded to 77 tokens / trimmed, 156 names, forward"),
    ("text", "forward_backward", "the same, forward and backward"),
    ("loss", "memory", "loss and backward, 156 classes, 512 x 512: peak memory, plain formula / ours"),
    ("loss", "time", "the same, time"),
    ("training", "time", "training step / inference forward, 512 x 512, frozen CLIP"),
    ("postprocess", "memory", "label map of 2048 x 2048, 171 classes: peak memory, interpolate and arg-max / ours"),
    ("postprocess", "time", "the same, time"),
    ("metric", "time", "metric over 200 maps of 512 x 512: stored `mean_iou` / ours, the same figures"),
    ("metric", "memory_growth", "our metric's memory, 200 maps / 20 maps"),
    ("routing", "32", "route attention / full attention, 32 x 32 tokens"),
    ("routing", "64", "the same, 64 x 64 tokens"),
    ("routing", "32_masked", "route attention as it is / as a mask on full attention, 32 x 32 tokens"),
    (
        "startup",
        "heavy_modules",
        "heavy libraries that `import ldvc` and a baked checkpoint load, besides Transformers' own",
    ),
    ("onnx", "onnx_difference", "largest difference of ONNX logits from eager PyTorch's"),
    ("engines", "rows_per_second", "rows per second of `--engine ray` with two actors / two plain processes"),
)
# What `benchmarks.runtime` compares: words, its row, and the goal of each precision.
RUNTIME_ROWS = (
    (
        "earlier command / new, per picture after the first",
        "per picture, plain",
        {"float32": ("at least", 1.35), "bf16": ("at least", 2.6)},
    ),
    (
        "the same, features of the value path",
        "per picture, value-like",
        {"float32": ("at least", 1.45), "bf16": ("at least", 2.8)},
    ),
    ("first mask of the embedded checkpoint, whole process", "first mask", {"all": ("at least", 3.0)}),
    ("peak memory of the process", "peak memory, plain", {"all": ("at least", 1.8)}),
    (
        "new runtime / bare `CLIPVisionModel` in PyTorch eager",
        "tower",
        {"float32": ("at most", 0.9), "bf16": ("at most", 0.45)},
    ),
    (
        "`CLIPSegForImageSegmentation` / CLIPSeg in the new runtime, 20 labels",
        "clipseg",
        {"float32": ("at least", 15.0), "bf16": ("at least", 25.0)},
    ),
)
SERIES = {
    "sides": ("image side", "whole model, 20 classes, by image tokens"),
    "classes": ("classes", "adapter, decoder and logits on kept image features, by classes"),
    "batches": ("images per call", "whole model at 224 x 224, by images"),
}
PER_UNIT = {"tokens": "token", "tokens_squared": "pair of tokens", "classes": "class", "images": "image"}


def read_results() -> dict[str, Result]:
    """All results of results/benchmarks/, by figure.

    Raises:
        ValueError: If a file is no result, or one of a quick run.
    """
    found = {}
    for name in FIGURES:
        path = RESULTS / f"{name}.json"
        if path.is_file():
            result = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(result, dict) or "ratios" not in result or "machine" not in result:
                raise ValueError(f"{path}: no result of a benchmark; measure again: python -m benchmarks {name}.")
            if result.get("quick"):
                raise ValueError(f"{path}: of a quick run, whose figures mean nothing; remove the file.")
            found[name] = result
    return found


def not_measured(name: str) -> str:
    """What stands in place of a figure's table."""
    return f"Not measured yet: `python -m benchmarks {name}`."


def markdown(heads: Sequence[str], rows: Sequence[Sequence[str]], words: int = 1) -> str:
    """A table whose first columns, so many as `words`, hold text, and the others numbers."""
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * words + "---:|" * (len(heads) - words)]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def number(value: float) -> str:
    """Three significant digits or so: 0.5e-5 as 5.0e-06, 12.34, 123."""
    if value and abs(value) < 0.01:
        return f"{value:.1e}"
    is_whole = math.isclose(value, round(value), rel_tol=1e-9)
    return f"{value:.0f}" if is_whole or abs(value) >= 100 else f"{value:.2f}"


def extent(value: float | Mapping[str, float], factor: float = 1.0) -> str:
    """A number, or "median (min to max)"."""
    if isinstance(value, Mapping):
        median, low, high = (number(factor * value[key]) for key in ("median", "min", "max"))
        return f"{median} ({low} to {high})"
    return number(factor * value)


# ---- goals


def goals() -> str:
    """Every goal, what was reached, and whether that is enough."""
    results, rows = read_results(), []
    for name, key, words in GOAL_ROWS:
        result = results.get(name)
        if result is not None and key in result["ratios"]:
            relation, wanted = (result["goals"][key][field] for field in ("relation", "value"))
            value = result["ratios"][key]
            median = value["median"] if isinstance(value, Mapping) else float(value)
            verdict = "yes" if COMPARISONS[relation](float(median), float(wanted)) else "**no**"
            rows.append((words, extent(value), f"{relation} {number(wanted)}", verdict))
        else:
            relation, wanted = load_figure(name).GOALS[key]
            rows.append((words, "not measured", f"{relation} {number(wanted)}", "open"))
    notes = [f"`mean_iou` here: {results['metric']['compared_with']}."] if "metric" in results else []
    heads = ("figure", "reached: median (min to max)", "goal", "reached?")
    return "\n\n".join([markdown(heads, rows), *notes])


def machines() -> str:
    """What the figures were measured on, one line per kind of measurement."""
    lines: dict[str, list[str]] = {}
    for name, result in read_results().items():
        lines.setdefault(describe_measurement(result), []).append(name)
    if not lines:
        return "Nothing is measured yet: `python -m benchmarks`."
    return "\n".join(f"- {', '.join(f'`{name}`' for name in names)}: {line}." for line, names in lines.items())


def describe_measurement(result: Result) -> str:
    """Machine, versions and settings of a result, in words."""
    machine = result["machine"]
    parts = [machine["accelerator"] if result["device"] != "cpu" else machine["processor"]]
    parts += [f"{machine['cores']} cores", f"{machine['threads']} thread(s) of PyTorch", machine.get("instructions")]
    parts += [f"PyTorch {machine['torch']}", f"Transformers {machine['transformers']}", result["dtype"]]
    parts.append(f"attention {result['attention']}" if "attention" in result else None)
    parts.append(f"{result['repeats']} round(s), {result['clock']} clock")
    return ", ".join(part for part in parts if part)


# ---- figures


def details() -> str:
    """Seconds and peak memory behind the ratios that compare two or more things."""
    rows = []
    for name, result in read_results().items():
        if name == "onnx":  # has a table of its own
            continue
        for job, seconds in named_spreads(result.get("seconds", {})):
            peak = result.get("peak_megabytes", {}).get(job)
            rows.append((f"`{name}`", job, extent(seconds, 1000), "" if peak is None else number(peak)))
    if not rows:
        return "Nothing is measured yet: `python -m benchmarks`."
    return markdown(("figure", "what", "ms: median (min to max)", "peak MB"), rows, words=2)


def named_spreads(seconds: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Mapping[str, float]]]:
    """Every spread of a nested mapping, with the names that lead to it."""
    found = []
    for name, value in seconds.items():
        words = f"{prefix}{name.replace('_', ' ')}"
        found += [(words, value)] if "median" in value else named_spreads(value, f"{words}, ")
    return found


def operations() -> str:
    """Multiply-adds and time by part, LDVC beside the bare tower, and the operations that take most."""
    result = read_results().get("profile")
    if result is None:
        return not_measured("profile")
    totals = profile_totals(result)
    rows = []
    for row in result["rows"]:
        counts, seconds = row["giga_multiply_adds"], row["seconds"]
        cells = [row["part"], number(counts["ldvc"]), f"{100 * counts['ldvc'] / totals['ldvc'][0]:.1f} %"]
        cells += [number(counts["bare"]) if "bare" in counts else ""]
        cells += [extent(seconds["ldvc"], 1000), f"{100 * seconds['ldvc']['median'] / totals['ldvc'][1]:.1f} %"]
        rows.append((*cells, extent(seconds["bare"], 1000) if "bare" in seconds else ""))
    heads = ("part", "G multiply-adds", "share", "bare tower", "ms", "share", "bare tower")
    shares = ", ".join(
        f"`{event['operation']}` {100 * event['share']:.0f} % ({event['calls']} calls)"
        for event in result["operations"]
    )
    ldvc, bare = totals["ldvc"][0], totals["bare"][0]
    note = f"Multiply-adds: {number(ldvc)} G against {number(bare)} G, {ldvc / bare:.3f} times as many."
    return f"{markdown(heads, rows)}\n\n{note} Operations by their own time: {shares}."


def profile_totals(result: Result) -> dict[str, tuple[float, float]]:
    """LDVC and the bare tower: all multiply-adds in 10^9, and the sum of the parts' median seconds."""
    return {
        name: (
            sum(row["giga_multiply_adds"].get(name, 0.0) for row in result["rows"]),
            sum(row["seconds"][name]["median"] for row in result["rows"] if name in row["seconds"]),
        )
        for name in ("ldvc", "bare")
    }


def latency() -> str:
    """Latency with and without pre- and post-processing."""
    result = read_results().get("latency")
    if result is None:
        return not_measured("latency")
    rows = []
    for row in result["rows"]:
        case = row["case"]
        cells = [row["dtype"], str(case["num_classes"]), str(case["side"]), str(case["batch_size"])]
        for part in ("tower", "model", "whole"):
            cells += [number(row[part]["p50"]), number(row[part]["p95"])]
            if part != "tower":
                low, high = row[f"{part}_ratio_range"]
                cells.append(f"{row[f'{part}_ratio']:.2f} ({low:.2f} to {high:.2f})")
        cells += ["" if row["text_ms"] is None else number(row["text_ms"])]
        rows.append([*cells, "" if row["peak_mb"] is None else f"{row['peak_mb']:.0f}"])
    heads = ["dtype", "classes", "side", "batch", "tower p50", "p95", "model p50", "p95", "/ tower"]
    heads += ["pictures to maps p50", "p95", "/ tower", "names, once", "peak MB"]
    width, height = result["picture_size"]
    note = (
        f"Milliseconds per call, {result['repeats']} calls per row; ratios are medians with min and max. Pictures to "
        f"maps: pictures of {width} x {height} pixels through the processor, the model and post-processing to label "
        "maps of that size. Names, once: the text tower for the whole list. Peak: resident memory of the process, "
        "weights and interpreter included."
    )
    return f"{markdown(heads, rows)}\n\n{note}"


def memory_plan() -> str:
    """Peak memory by class count, the largest tensors, and blocks of classes."""
    result = read_results().get("memory_plan")
    if result is None:
        return not_measured("memory_plan")
    rows = []
    for row in result["rows"]:
        peaks = row["peak_megabytes"]
        largest = "; ".join(
            f"{tensor['operation']} {' x '.join(map(str, tensor['shape']))}: {number(tensor['megabytes'])}"
            for tensor in row["largest"][:3]
        )
        cells = [f"{row['classes']:,}", number(peaks["sdpa"]), number(peaks["eager"])]
        rows.append((*cells, number(row["label_map_megabytes"]), largest))
    heads = ("classes", "peak MB, fused attention", "peak MB, eager attention", "label map, MB", "largest tensors, MB")
    blocks, slower = result["blocks"], extent(result["ratios"]["blocks_to_whole_time"])
    whole, cut = (number(blocks["peak_megabytes"][name]) for name in ("whole", "blocks"))
    note = (
        "Peaks are of tensors, beside weights and inputs. "
        "The decoder's attention to the longest list alone: "
        f"{whole} MB at once, {cut} MB in blocks of {blocks['classes_per_block']:,} classes, which take {slower} "
        f"times as long and differ by {blocks['largest_difference']:.1e} at most."
    )
    return f"{markdown(heads, rows)}\n\n{note}"


def onnx() -> str:
    """ONNX Runtime and torch.compile against eager, and the agreement of 8 bits."""
    result = read_results().get("onnx")
    if result is None:
        return not_measured("onnx")
    rows = [("eager PyTorch", extent(result["seconds"]["eager"], 1000), "1", "")]
    if "bare tower" in result["seconds"]:
        rows.append(("bare CLIP tower in eager PyTorch", extent(result["seconds"]["bare tower"], 1000), "", ""))
    for name, difference in result["differences"].items():
        rows.append((name, extent(result["seconds"][name], 1000), extent(result["ratios"][name]), number(difference)))
    rows += [(name, "skipped", reason, "") for name, reason in result["skipped"].items()]
    agreed = []
    for kind, found in result["agreement"].items():
        for program in (name for name in found if name != "pictures"):
            same, difference = (found[program][key] for key in ("same_class", "largest_difference"))
            agreed.append((kind, str(found["pictures"]), program, f"{100 * same:.2f} %", number(difference)))
    return "\n\n".join(
        [
            markdown(("program", "ms", "/ eager", "largest difference of logits"), rows),
            f"Random weights; the largest logit is {number(result['largest_logit'])}. With the embedded world's "
            "trained checkpoint, tokens whose best class is that of eager PyTorch:",
            markdown(("pictures", "number", "program", "same class", "largest difference of logits"), agreed),
        ]
    )


def runtimes() -> str:
    """`ldvc segment` in every runtime against the command of before there were any, and the goals."""
    path = RESULTS.parent / "tools" / "runtime.json"
    if not path.is_file():
        return "Not measured yet: `python -m benchmarks.runtime`."
    result = json.loads(path.read_text(encoding="utf-8"))
    ways = [name for name in result["first mask"] if name != "baseline"]
    rows = []
    for words, key, goals_of in RUNTIME_ROWS:
        found = result[key].get("ratios") or {name: row["ratio"] for name, row in result[key].items()}
        wanted = "; ".join(f"{kind} {relation} {number(value)}" for kind, (relation, value) in goals_of.items())
        rows.append((words, *(extent(found[name]) if name in found else "" for name in ways), wanted))
    for kind in ("plain", "value-like"):
        shares = [f"{100 * result[f'per picture, {kind}'][name]['same_pixels']:.2f} %" for name in ways]
        rows.append((f"pixels that keep their class, {kind}", *shares, "float32 99.9 %; bf16 99 %"))
    tower, training, machine = result["tower"]["ratios"], result["training"], result["machine"]
    eager = "; ".join(f"{name} {extent(tower[name])}" for name in tower if name.startswith("torch"))
    notes = (
        f"LDVC in PyTorch eager / bare `CLIPVisionModel`, 512 x 512: {eager}. A training step by the earlier recipe, "
        f"new / earlier: {extent(training['ratio'])}, losses of {training['steps']} steps within "
        f"{number(training['largest_difference_of_losses'])}.",
        f"{machine['processor']}, {machine['cores']} cores, PyTorch {machine['torch']}; {result['repeats']} rounds, "
        f"median (min to max); load {machine['load']}. Code: {result['code']}.",
    )
    return "\n\n".join([markdown(("figure", *ways, "goal"), rows), *notes])


def gpu() -> str:
    """Inference, class counts and training steps on a CUDA device."""
    result = read_results().get("gpu")
    if result is None:
        return f"{OPEN[0].upper()}{OPEN[1:]} On one, `python -m benchmarks gpu` measures."
    classes = [
        (f"{row['classes']:,}", extent(row["seconds"], 1000), extent(row["ratio"]), number(row["peak_megabytes"]))
        for row in result["classes"]
    ]
    heads = ("classes, bfloat16, batch 1", "ms", "/ fewest", "peak MB")
    tables = [gpu_inference(result["inference"]), markdown(heads, classes)]
    kinds = [
        (row["segmenter"], extent(row["seconds"], 1000), extent(row["ratio"]), number(row["peak_megabytes"]))
        for row in result["segmenters"]
    ]
    tables.append(markdown(("segmenter, bfloat16, 20 labels", "ms", "/ bare tower", "peak MB"), kinds))
    return "\n\n".join([*tables, gpu_training(result["training"])])


def gpu_inference(rows: Sequence[Mapping[str, Any]]) -> str:
    """LDVC beside the bare tower, by dtype, attention and batch."""
    table = []
    for row in rows:
        way = row["attention"] + (" flash" if row["flash_only"] else "") + (" compiled" if row["compiled"] else "")
        if "skipped" in row:
            table.append((row["dtype"], way, "", row["skipped"], *[""] * 5))
            continue
        speed, peaks = row["images_per_second"], row["peak_megabytes"]
        cells = [row["dtype"], way, str(row["batch"]), extent(speed["ldvc"]), extent(speed["bare"])]
        cells += [extent(row["ratio"]), number(peaks["ldvc"]), number(peaks["bare"])]
        table.append((*cells, f"{100 * row['same_class']:.2f} %"))
    heads = ("dtype", "attention", "batch", "images/s", "bare tower", "time / bare tower", "peak MB", "bare tower")
    return markdown((*heads, "same class as float32"), table, words=2)


def gpu_training(rows: Sequence[Mapping[str, Any]]) -> str:
    """Whole training steps by recipe and precision."""
    training = []
    for row in rows:
        cells = [f"`{row['recipe']}`", row["precision"], str(row["batch"]), str(row["side"]), str(row["classes"])]
        if "skipped" in row:
            training.append((*cells, row["skipped"], "", ""))
        else:
            cells += [extent(row["seconds"], 1000), extent(row["images_per_second"])]
            training.append((*cells, number(row["peak_megabytes"])))
    heads = ("recipe", "precision", "batch", "side", "classes", "ms", "images/s", "peak MB")
    return markdown(heads, training, words=2)


# ---- scaling


def scaling(figure: str | None = None) -> str:
    """The fitted laws in words, below the plot where there is one.

    Args:
        figure: Path of the plot as the document writes it.
    """
    result = read_results().get("scaling")
    if result is None:
        return not_measured("scaling")
    lines = [f"![Cost against image side, classes, batch and processes]({figure})", ""] if figure else []
    for name, (axis, words) in SERIES.items():
        series = result["series"][name]
        first, last = (series["points"][index] for index in (0, -1))
        times = " ms to ".join(extent(point["seconds"], 1000) for point in (first, last))
        lines.append(
            f"- **{axis.capitalize()}** ({words}): {law_in_words(series['law'])}. Measured from {first['at']:,} to "
            f"{last['at']:,}: {times} ms."
        )
    series = result["series"]["processes"]
    one, two = (point["seconds"]["median"] for point in series["points"])
    threads, longer = series["threads_of_each"], extent(result["ratios"]["processes"])
    lines.append(
        f"- **Processes** (independent pictures of 352 x 352): {number(series['pictures'] / one)} pictures per second "
        f"in one process of {threads['1']} thread(s), {number(series['pictures'] / two)} in two of {threads['2']}; "
        f"two take {longer} times as long as one."
    )
    return "\n".join(lines)


def law_in_words(law: Mapping[str, Any]) -> str:
    """Write "a ms + b μs per token + ..., at most 3 % off"; and the share of the last term at its highest point."""
    coefficients = dict(law["coefficients"])
    constant = coefficients.pop("constant")
    terms = [f"{number(1000 * constant)} ms", *(in_unit(value, name) for name, value in coefficients.items())]
    words = f"{' + '.join(terms).replace('+ -', '- ')} fits with errors of at most {100 * law['largest_error']:.0f} %"
    if "tokens_squared" in coefficients:
        squared, tokens = coefficients["tokens_squared"], 1024
        total = constant + coefficients["tokens"] * tokens + squared * tokens**2
        words += f"; at 1,024 tokens (512 x 512) {100 * squared * tokens**2 / total:.0f} % is due to pairs"
    return words


def in_unit(seconds: float, name: str) -> str:
    """Seconds per unit of a column, in the unit of time that suits it."""
    factor, unit = next(
        ((factor, unit) for factor, unit in ((1e3, "ms"), (1e6, "μs")) if abs(seconds) * factor >= 1), (1e9, "ns")
    )
    return f"{number(seconds * factor)} {unit} per {PER_UNIT[name]}"
