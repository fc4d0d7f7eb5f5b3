"""Memory of long vocabularies: peaks, the largest tensors, and whether taking classes in blocks would help.

Of the parts that see classes, adapter, keys and values, and logits treat each class alone, so any blocks are exact.
The decoder's attention shares one softmax among all classes, so a block alone gives another result. Blocks whose
maxima and sums are kept and merged (online softmax, as in Milakov and Gimelshein, arXiv 1805.02867) are exact: the
fused kernels behind SDPA work so, and `attend_in_blocks` states it in full, to compare.
"""

from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.memory import largest_tensors, peak_bytes
from benchmarks.models import ATTENTION, build_model, check_equal, make_class_embeds, make_pixels
from benchmarks.timing import Settings, ratio, spreads, time_rounds
from ldvc.model.decoder_ldvc import LDVCAttention
from ldvc.model.image_processing_ldvc import LDVCImageProcessor


TITLE = "memory of 20, 1,000 and 10,000 classes, 512 x 512"
GOALS: dict[str, tuple[str, float]] = {}
SIDE, COUNTS, QUICK_COUNTS = 512, (20, 1000, 10000), (2, 5, 9)
CLASSES_PER_BLOCK, QUICK_CLASSES_PER_BLOCK = 200, 4
NUM_LARGEST = 5
TOLERANCE = 1e-4


def attend_in_blocks(attention: LDVCAttention, tokens: Tensor, classes: Tensor, block: int) -> Tensor:
    """The decoder's attention to classes, some classes at a time.

    Args:
        attention: The module.
        tokens: (batch_size, num_patches, projection_dim).
        classes: (batch_size, num_classes, projection_dim), adapted.
        block: Classes at a time.

    Returns:
        (batch_size, num_patches, projection_dim), as the module's.
    """

    def split(x: Tensor) -> Tensor:
        return x.unflatten(-1, (attention.num_heads, attention.head_dim)).transpose(1, 2)

    queries = split(attention.q_proj(tokens) * attention.scaling)
    highest, weight_sum, output = None, 0.0, 0.0
    for some in classes.split(block, dim=1):
        scores = queries @ split(attention.k_proj(some)).transpose(-1, -2)
        top = scores.amax(dim=-1, keepdim=True)
        if highest is not None:  # what was summed so far is brought to the new maximum
            top = torch.maximum(top, highest)
            weight_sum, output = weight_sum * (highest - top).exp(), output * (highest - top).exp()
        weights = (scores - top).exp()
        weight_sum = weight_sum + weights.sum(dim=-1, keepdim=True)
        output = output + weights @ split(attention.v_proj(some))
        highest = top
    return attention.out_proj((output / weight_sum).transpose(1, 2).flatten(2))


@torch.inference_mode()
def measure(settings: Settings) -> dict[str, Any]:
    """Compare backends and blocks, then peaks by class count, then the time of blocks against the whole."""
    model, counts = build_model(settings), QUICK_COUNTS if settings.quick else COUNTS
    pixels, embeds = make_pixels(settings, SIDE), make_class_embeds(model, counts[-1])
    peaks: dict[str, list[int]] = {}
    logits: dict[str, Tensor] = {}
    for backend in (ATTENTION, "eager"):
        model.set_attn_implementation(backend)
        jobs = [partial(model, pixel_values=pixels, class_embeds=embeds[:count]) for count in counts]
        peaks[backend] = [peak_bytes(job, settings.device) for job in jobs]
        logits[backend] = jobs[-1]().logits
    difference = check_equal("logits of two backends", *logits.values(), TOLERANCE)
    model.set_attn_implementation(ATTENTION)
    rows = []
    for index, count in enumerate(counts):
        job = partial(model, pixel_values=pixels, class_embeds=embeds[:count])
        rows.append(
            {
                "classes": count,
                "peak_megabytes": {backend: peak[index] / 1e6 for backend, peak in peaks.items()},
                "label_map_megabytes": peak_of_label_map(logits[ATTENTION][:, :count], settings) / 1e6,
                "largest": largest_tensors(job, NUM_LARGEST),
            }
        )
    blocks = compare_blocks(model, pixels, embeds, settings)
    ratios = {"eager_to_fused_memory": peaks["eager"][-1] / peaks[ATTENTION][-1], **blocks.pop("ratios")}
    return {
        "ratios": ratios,
        "rows": rows,
        "blocks": blocks,
        "largest_difference": max(difference, blocks["largest_difference"]),
    }


def peak_of_label_map(logits: Tensor, settings: Settings) -> int:
    """Bytes beyond the logits while a label map of the image's size is made of them."""
    side = 32 if settings.quick else SIDE
    job = partial(LDVCImageProcessor().post_process_semantic_segmentation, {"logits": logits}, [(side, side)])
    return peak_bytes(job, settings.device)


def compare_blocks(model: torch.nn.Module, pixels: Tensor, embeds: Tensor, settings: Settings) -> dict[str, Any]:
    """The attention to all classes at once, as the model has it, against blocks of classes."""
    features = model.get_image_features(pixels)
    tokens = features.feature_map.flatten(2).transpose(1, 2)
    classes = model.text_adapter(features.image_embeds, embeds[None])
    attention = model.decoder.layers[0].cross_attn
    block = QUICK_CLASSES_PER_BLOCK if settings.quick else CLASSES_PER_BLOCK
    jobs = {
        "whole": lambda: attention(tokens, key_value_states=classes)[0],
        "blocks": lambda: attend_in_blocks(attention, tokens, classes, block),
    }
    difference = check_equal("attention in blocks", jobs["whole"](), jobs["blocks"](), TOLERANCE)
    peaks = {name: peak_bytes(job, settings.device) for name, job in jobs.items()}
    seconds = time_rounds(jobs, settings)
    return {
        "ratios": {
            "blocks_to_whole_memory": peaks["blocks"] / peaks["whole"],
            "blocks_to_whole_time": ratio(seconds, "blocks", "whole"),
        },
        "classes_per_block": block,
        "peak_megabytes": {name: peak / 1e6 for name, peak in peaks.items()},
        "seconds": spreads(seconds),
        "largest_difference": difference,
    }
