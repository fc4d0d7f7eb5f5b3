"""The same job with CLIPSeg and with LDVC: masks for a list of class names, in seconds and as a ratio.

    python -m benchmarks.clipseg                    writes results/benchmarks/clipseg.json, which the README shows
    python -m benchmarks.clipseg --labels 1 5 --repeats 1

Both models have ViT-B/16 and random weights (time does not depend on their values), 352 x 352 pixels, float32. CLIPSeg
takes one prompt at a time, so a list of labels is a batch of copies of the picture; LDVC takes the list. Both encode
their text within the timed call; LDVC is timed with kept class embeddings too. The models take turns in one process.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import CLIPSegConfig, CLIPSegForImageSegmentation

from benchmarks.timing import describe_machine, take_turns
from configuration_ldvc import LDVCConfig
from evaluate_ldvc import write_json
from modeling_ldvc import LDVCForSemanticSegmentation


ROOT = Path(__file__).resolve().parent.parent
IMAGE_SIZE, NAME_TOKENS = 352, 8  # pixels; tokens of a prompt such as "a photo of a cat" with its two ends
RESULT_FILE = ROOT / "results" / "benchmarks" / "clipseg.json"


def make_prompts(num_labels: int, config: LDVCConfig | CLIPSegConfig) -> torch.Tensor:
    """(num_labels, 8) token ids of prompts that differ in one word."""
    text = config.text_config
    ids = torch.full((num_labels, NAME_TOKENS), 320)
    ids[:, -2] = torch.arange(num_labels) + 1000
    ids[:, 0], ids[:, -1] = text.vocab_size - 2, text.vocab_size - 1  # CLIP's begin and end, the highest ids
    return ids


def build_jobs(num_labels: int, ldvc: LDVCForSemanticSegmentation, clipseg: CLIPSegForImageSegmentation) -> dict:
    """Name -> call that gives logits of all labels for one picture."""
    pixels = torch.randn(1, 3, IMAGE_SIZE, IMAGE_SIZE)
    prompts, words = make_prompts(num_labels, clipseg.config), make_prompts(num_labels, ldvc.config)
    embeds = ldvc.get_class_embeds(words)
    jobs: dict[str, Callable[[], torch.Tensor]] = {
        "clipseg": lambda: clipseg(pixel_values=pixels.expand(num_labels, -1, -1, -1), input_ids=prompts).logits,
        "ldvc": lambda: ldvc(pixel_values=pixels, input_ids=words).logits,
        "ldvc_kept_embeds": lambda: ldvc(pixel_values=pixels, class_embeds=embeds).logits,
    }
    return jobs


@torch.inference_mode()
def measure(label_counts: Sequence[int], repeats: int) -> dict:
    """Time every label count; see `take_turns` for the figures."""
    torch.manual_seed(0)
    # Without text prompts any token ids are valid; the prompts would add nothing to the time of the text tower.
    ldvc = LDVCForSemanticSegmentation(LDVCConfig(num_text_prompts=0)).eval()
    clipseg = CLIPSegForImageSegmentation(CLIPSegConfig()).eval()
    rows = []
    for num_labels in label_counts:
        seconds = take_turns(build_jobs(num_labels, ldvc, clipseg), repeats)
        rows.append({"labels": num_labels, "seconds": seconds})
    return {"image_size": IMAGE_SIZE, "dtype": "float32", "rows": rows, "machine": describe_machine()}


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--labels", type=int, nargs="+", default=[1, 5, 20], help="label counts")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=RESULT_FILE)
    args = parser.parse_args(argv)
    result = measure(args.labels, args.repeats)
    write_json(result, args.output)
    for row in result["rows"]:
        times = ", ".join(f"{name} {figure['median']:.2f} s" for name, figure in row["seconds"].items())
        sys.stdout.write(f"{row['labels']} labels: {times}\n")


if __name__ == "__main__":
    main()
