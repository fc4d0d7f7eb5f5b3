"""`ldvc segment` of this work tree against that of another commit, in turn: time, start, memory, the same pixels.

    git worktree add ../earlier c039dec
    python -m benchmarks.runtime --baseline ../earlier
    python -m benchmarks.runtime --baseline ../earlier --quick --output -

ViT-B/16 with random weights, 20 names of its own vocabulary, generated photographs of 500 x 375; the embedded
checkpoint for the first mask. Every run is a process of its own, warm: programs are exported and names encoded before
the clock. In this process, the new runtimes against the bare `CLIPVisionModel` of PyTorch, 512 x 512, and against the
library's CLIPSeg, 20 labels, 352 x 352. Training is that of the other work tree's recipe, by both.
Writes results/tools/runtime.json.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from transformers import CLIPSegProcessor, PreTrainedModel, ProcessorMixin
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from benchmarks.clipseg import SIDE as CLIPSEG_SIDE
from benchmarks.clipseg import build_clipseg, make_prompts
from benchmarks.models import build_bare_tower, build_model, check_equal, make_class_embeds, make_pixels
from benchmarks.processes import Run, draw_photographs, run_segment, same_pixels
from benchmarks.timing import Settings, describe_machine, ratio, spread, spreads, time_rounds
from ldvc.data.provenance import code_version, write_json
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.places import EMBEDDED_CHECKPOINT, ROOT
from ldvc.runtime import RuntimeSegmenter
from ldvc.runtime.programs import has_bfloat16


RESULT = ROOT / "results/tools/runtime.json"
NUM_NAMES, SIDE = 20, 512
TOLERANCE = 1e-4  # of CLIPSeg's logits by their largest: those of random weights are hundreds
EMBEDDED = EMBEDDED_CHECKPOINT.relative_to(ROOT)  # the same place in every work tree, though not the same weights
# Run in the other work tree, so that both read a checkpoint that it wrote.
BUILD = """
import json, sys
import torch
from configuration_ldvc import LDVCConfig
from modeling_ldvc import LDVCForSemanticSegmentation
from processing_ldvc import LDVCProcessor
embedded, folder, fields, side, count = sys.argv[1:]
fields, side, count = json.loads(fields), int(side), int(count)
processor = LDVCProcessor.from_pretrained(embedded)
processor.image_processor.size = {"height": side, "width": side}
tokenizer = processor.tokenizer
text = {"vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
fields["text_config"] = {**fields.get("text_config", {}), **text}
config = LDVCConfig(**fields)
config.prompt_token_ids = tokenizer(config.prompt_template.split("{}")[0].strip())["input_ids"][:-1]
torch.manual_seed(0)
model = LDVCForSemanticSegmentation(config).eval()
model.set_vocabulary([f"thing number {index}" for index in range(count)], processor)
model.save_pretrained(folder)
processor.save_pretrained(folder)
"""
TINY = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 2, "num_hidden_layers": 2}
TINY_FIELDS = {"text_config": TINY, "vision_config": {**TINY, "image_size": 32, "patch_size": 8}, "projection_dim": 32}
TINY_FIELDS |= {"decoder_attention_heads": 4, "decoder_intermediate_size": 48, "num_regions": 2, "route_top_k": 2}


def ways() -> dict[str, tuple[str, ...]]:
    """Options of the new command, by name; `baseline` has none."""
    found = {"onnx float32": ("--runtime", "onnx")}
    if find_spec("openvino"):
        found["openvino float32"] = ("--runtime", "openvino")
        if has_bfloat16():
            found["openvino bf16"] = ("--runtime", "openvino", "--precision", "bf16")
    if has_bfloat16():
        found["torch bf16"] = ("--runtime", "torch", "--precision", "bf16")
    return found


def build(baseline: Path, folder: Path, quick: bool, **fields: Any) -> None:
    """Write a checkpoint with random weights by the other work tree's code."""
    fields = {**(TINY_FIELDS if quick else {}), **fields}
    embedded, side = baseline / EMBEDDED, 64 if quick else SIDE
    arguments = [str(embedded), str(folder), json.dumps(fields), str(side), str(NUM_NAMES)]
    environment = {**os.environ, "PYTHONPATH": str(baseline), "HF_HUB_OFFLINE": "1"}
    subprocess.run([sys.executable, "-P", "-c", BUILD, *arguments], check=True, env=environment)


def take_turns(runs: dict[str, Callable[[Path], Run]], place: Path, repeats: int) -> dict[str, list[Run]]:
    """Processes in turn, after one of each that does not count."""
    found: dict[str, list[Run]] = {name: [] for name in runs}
    for number in range(repeats + 1):
        for name, run in runs.items():
            done = run(place / f"{number} {name}")
            if number:
                found[name].append(done)
    return found


def compare_runs(found: dict[str, list[Run]], place: Path, what: str) -> dict[str, Any]:
    """Ratios baseline / new of one measure, within each round, and how many pixels agree."""
    seconds = {name: [getattr(run, what) for run in runs] for name, runs in found.items()}
    return {
        name: {
            "ratio": ratio(seconds, "baseline", name),
            "same_pixels": same_pixels(place / "0 baseline", place / f"0 {name}"),
            what: spread(seconds[name]),
        }
        for name in found
    }


def compare_commands(
    baseline: Path, model: Path | None, pictures: Path, place: Path, repeats: int
) -> dict[str, list[Run]]:
    """The same pictures by both work trees, and the same model; `None` is the checkpoint that each comes with."""

    def options(tree: Path) -> tuple[str, ...]:
        return ("--model", str(model or tree / EMBEDDED))

    runs = {"baseline": lambda output: run_segment(baseline, pictures, output, *options(baseline))}
    for name, own in ways().items():
        runs[name] = lambda output, own=own: run_segment(ROOT, pictures, output, *options(ROOT), *own)
    return take_turns(runs, place, repeats)


def light_ways() -> list[str]:
    """Names of `ways` that need no PyTorch: a runtime and a precision."""
    return [name for name in ways() if not name.startswith("torch")]


def programs_of(model: PreTrainedModel, processor: ProcessorMixin) -> dict[str, RuntimeSegmenter]:
    """A model in every runtime, exported into the cache."""
    from ldvc.runtime.cache import exported_folder

    with tempfile.TemporaryDirectory() as place:
        model.save_pretrained(place)
        processor.save_pretrained(place)
        folder = exported_folder(place)
    return {name: RuntimeSegmenter(folder, *name.split(), keeps_names=False) for name in light_ways()}


@torch.inference_mode()
def compare_with_tower(settings: Settings) -> dict[str, Any]:
    """LDVC in PyTorch and the new runtimes against the bare tower in PyTorch eager, in this process."""
    model, value_like = build_model(settings), build_model(settings, patch_features="value")
    tower, pixels, embeds = build_bare_tower(model), make_pixels(settings, SIDE), make_class_embeds(model, NUM_NAMES)
    jobs: dict[str, Callable[[], Any]] = {"tower": lambda: tower(pixels, interpolate_pos_encoding=True)}
    for name, own in {"torch float32": model, "torch float32, value-like": value_like}.items():
        jobs[name] = lambda own=own: own(pixel_values=pixels, class_embeds=embeds)
    for name, segmenter in programs_of(model, LDVCProcessor.from_pretrained(EMBEDDED_CHECKPOINT)).items():
        jobs[name] = lambda own=segmenter: own.logits(pixels.numpy(), embeds.numpy())
    seconds = time_rounds(jobs, settings)
    return {"ratios": {name: ratio(seconds, name, "tower") for name in jobs}, "seconds": spreads(seconds)}


@torch.inference_mode()
def compare_with_clipseg(settings: Settings) -> dict[str, Any]:
    """The library's CLIPSeg against the new runtimes, embeddings kept in both, in this process."""
    library, pixels = build_clipseg(settings), make_pixels(settings, CLIPSEG_SIDE)
    tokenizer = LDVCProcessor.from_pretrained(EMBEDDED_CHECKPOINT).tokenizer
    images = ViTImageProcessorPil(size={"height": CLIPSEG_SIDE, "width": CLIPSEG_SIDE})
    prompts = make_prompts(NUM_NAMES, library.config.text_config.vocab_size)
    embeds, copies = library.get_conditional_embeddings(NUM_NAMES, prompts), pixels.expand(NUM_NAMES, -1, -1, -1)
    jobs: dict[str, Callable[[], Any]] = {
        "library": lambda: library(pixel_values=copies, conditional_embeddings=embeds).logits
    }
    for name, segmenter in programs_of(library, CLIPSegProcessor(images, tokenizer)).items():
        jobs[name] = lambda own=segmenter: own.logits(pixels.numpy(), embeds.numpy())
    expected = jobs["library"]().reshape(-1)
    for name in (name for name in jobs if name.endswith("float32")):
        found = torch.as_tensor(jobs[name]()).reshape(-1)
        check_equal(f"CLIPSeg, {name}", expected / expected.abs().max(), found / expected.abs().max(), TOLERANCE)
    seconds = time_rounds(jobs, settings)
    return {"ratios": {name: ratio(seconds, "library", name) for name in jobs}, "seconds": spreads(seconds)}


def train(code: Path, recipe: Path, place: Path, steps: int) -> tuple[float, list[float]]:
    """Train so many steps in a process of its own; returns the seconds of training and the losses."""
    words = [sys.executable, "train.py", str(recipe), "--output_dir", str(place), "--max_steps", str(steps)]
    words += ["--num_eval_images", "4", "--num_pictures", "0", "--controls", "false", "--log_every", "1"]
    environment = {**os.environ, "PYTHONPATH": str(code), "HF_HUB_OFFLINE": "1"}
    subprocess.run(words, check=True, env=environment, cwd=code, capture_output=True)
    lines = map(json.loads, (place / "log.jsonl").read_text().splitlines())
    losses = [line["loss"] for line in lines if "loss" in line]
    return json.loads((place / "results.json").read_text())["training_seconds"], losses


def compare_training(baseline: Path, place: Path, quick: bool, repeats: int) -> dict[str, Any]:
    """The embedded world's training by the other work tree's recipe, in turn."""
    recipe, steps = baseline / "recipes/picturebook_inductive.yaml", 2 if quick else 20
    seconds: dict[str, list[float]] = {"baseline": [], "new": []}
    losses: dict[str, list[float]] = {}
    for number in range(repeats):
        for name, code in {"baseline": baseline, "new": ROOT}.items():
            taken, losses[name] = train(code, recipe, place / f"{name} {number}", steps)
            seconds[name].append(taken)
    pairs = zip(losses["baseline"], losses["new"], strict=True)
    return {
        "ratio": ratio(seconds, "new", "baseline"),
        "seconds": spreads(seconds),
        "steps": steps,
        "largest_difference_of_losses": max(abs(first - second) for first, second in pairs),
    }


def measure(baseline: Path, quick: bool, repeats: int, count: int, value_like: dict[str, Any]) -> dict[str, Any]:
    """All rows, each under its name."""
    result: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as text:
        place = Path(text)
        os.environ["LDVC_CACHE"] = str(place / "cache")
        draw_photographs(place / "photographs", count)
        for name, fields in {"plain": {}, "value-like": value_like}.items():
            build(baseline, place / name, quick, **fields)
            output = place / f"masks {name}"
            found = compare_commands(baseline, place / name, place / "photographs", output, repeats)
            result[f"per picture, {name}"] = compare_runs(found, output, "per_picture")
            result[f"peak memory, {name}"] = compare_runs(found, output, "peak_megabytes")
        output = place / "masks first"
        picture = ROOT / "assets" / "demo_page.jpg"
        found = compare_commands(baseline, None, picture, output, repeats)
        result["first mask"] = compare_runs(found, output, "seconds")
        result["tower"] = compare_with_tower(Settings(quick, repeats))
        result["clipseg"] = compare_with_clipseg(Settings(quick, repeats))
        result["training"] = compare_training(baseline, place, quick, repeats)
    return result


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", type=Path, required=True, help="work tree of the commit to compare with")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default: 7)")
    parser.add_argument("--pictures", type=int, default=9, help="photographs of a run (default: 9)")
    parser.add_argument("--value-like", default="patch_features=value", help="NAME=VALUE of LDVCConfig")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, one round, nothing kept")
    arguments = parser.parse_args()
    name, _, value = arguments.value_like.partition("=")
    repeats, count = (1, 2) if arguments.quick else (arguments.repeats, arguments.pictures)
    result = measure(arguments.baseline.resolve(), arguments.quick, repeats, count, {name: value})
    result |= {"machine": describe_machine(), "code": code_version(), "repeats": repeats}
    if not arguments.quick:
        write_json(result, RESULT)
    for row, found in result.items():
        sys.stdout.write(f"{row}: {found}\n")


if __name__ == "__main__":
    main()
