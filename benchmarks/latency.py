"""Latency of LDVC with and without pre- and post-processing, by class count, image size, batch and dtype.

Measured by the functions of `ldvc bench`; there, own checkpoints are measured the same way.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.models import TINY_TOWER, build_model
from benchmarks.timing import Settings
from ldvc.app.bench import PICTURE_SIZE, BenchCase, row_to_dict, run_bench
from ldvc.model.configuration_ldvc import LDVCConfig
from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.processing_ldvc import LDVCProcessor


TITLE = "latency by class count, image size, batch and dtype: pixels to logits, pictures to label maps"
GOALS: dict[str, tuple[str, float]] = {}
WORDS = Path(__file__).resolve().parent.parent / "picturebook" / "ldvc"  # the repository's own tokenizer
# One axis at a time from 20 classes at 512 x 512: all combinations would take an hour on two cores.
CASES = [BenchCase(count, 512, 1) for count in (20, 171, 1000)] + [BenchCase(20, side, 1) for side in (224, 352, 640)]
CASES.append(BenchCase(20, 352, 4))
QUICK_CASES = [BenchCase(2, 32, 1), BenchCase(3, 48, 2)]
OTHER_DTYPE = torch.bfloat16  # of the first case, in a row of its own


def build_model_with_words(settings: Settings) -> tuple[LDVCForSemanticSegmentation, LDVCProcessor]:
    """ViT-B/16 with random weights, whose text tower reads the tokens of the repository's own tokenizer."""
    processor = LDVCProcessor.from_pretrained(WORDS)
    words = LDVCConfig.from_pretrained(WORDS)
    ids = {name: getattr(words.text_config, name) for name in ("vocab_size", "bos_token_id", "eos_token_id")}
    model = build_model(settings, text_config={**(TINY_TOWER if settings.quick else {}), **ids})
    model.config.prompt_token_ids = words.prompt_token_ids
    return model, processor


def measure(settings: Settings) -> dict[str, Any]:
    """Time every case; tower, model and the whole way take turns within it.

    Raises:
        ValueError: If another clock than the wall's is asked for.
    """
    if settings.clock != "wall":
        raise ValueError(f"latency is what a user waits for, not {settings.clock} time; leave --clock out.")
    rows, cases = [], QUICK_CASES if settings.quick else CASES
    for dtype, some_cases in ((settings.dtype, cases), (OTHER_DTYPE, cases[:1])):
        found = run_bench(*build_model_with_words(replace(settings, dtype=dtype)), some_cases, settings.repeats)
        rows += [{"dtype": str(dtype).removeprefix("torch."), **row_to_dict(row)} for row in found]
    ratios = {
        name: {
            "median": rows[0][f"{name}_ratio"],
            "min": rows[0][f"{name}_ratio_range"][0],
            "max": rows[0][f"{name}_ratio_range"][1],
        }
        for name in ("model", "whole")
    }
    return {"ratios": ratios, "rows": rows, "picture_size": list(PICTURE_SIZE), "dtype": "dtypes by row"}
