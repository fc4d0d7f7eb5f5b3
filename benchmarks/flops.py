"""Multiply-adds of a call, counted from the shapes of its matrix products, and what each part of a model takes."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop


# PyTorch's table of formulas lacks the attention kernel of the CPU.
FORMULAS = {**flop_registry, torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: sdpa_flop}


class MultiplyAdds(TorchDispatchMode):
    """Counts, while it is active, the multiply-adds of matrix products, convolutions and attention.

    Norms, activations and additions are left out, as is usual. PyTorch's `FlopCounterMode` cannot be used: it fails
    on a trainable parameter that is handed to a module while gradients are off.

    Attributes:
        count: Multiply-adds so far.
    """

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation and add what it takes; one of several others, such as a linear layer, by its parts."""
        kwargs, formula = kwargs or {}, FORMULAS.get(func._overloadpacket)
        if formula is None:
            with self:
                result = func.decompose(*args, **kwargs)
            return func(*args, **kwargs) if result is NotImplemented else result
        result = func(*args, **kwargs)
        self.count += formula(*args, **kwargs, out_val=result) // 2
        return result


def count_multiply_adds(
    job: Callable[[], Any], parts: Mapping[str, Sequence[nn.Module]] | None = None
) -> tuple[int, dict[str, int]]:
    """Multiply-adds of a call without gradients.

    Args:
        job: The call.
        parts: Name -> modules that the call runs.

    Returns:
        Those of the whole call, and of each part.
    """
    with torch.no_grad(), MultiplyAdds() as counter, gauge_parts(parts or {}, lambda: counter.count) as rises:
        job()
    return counter.count, dict(rises)


@contextmanager
def gauge_parts(parts: Mapping[str, Sequence[nn.Module]], read: Callable[[], float]) -> Iterator[Counter]:
    """Add up by how much a gauge rises while the modules of each part run.

    Args:
        parts: Name -> modules; none of them inside another.
        read: The gauge, such as a clock.

    Yields:
        Part -> rise, filled as the modules run.
    """
    rises, starts, hooks = Counter(dict.fromkeys(parts, 0)), {}, []
    for name, modules in parts.items():
        for module in modules:

            def begin(module: nn.Module, inputs: Any) -> None:
                starts[module] = read()

            def end(module: nn.Module, inputs: Any, output: Any, name: str = name) -> None:
                rises[name] += read() - starts[module]

            hooks += [module.register_forward_pre_hook(begin), module.register_forward_hook(end)]
    try:
        yield rises
    finally:
        for hook in hooks:
            hook.remove()


def parts_of_tower(vision_model: nn.Module) -> dict[str, list[nn.Module]]:
    """The parts of CLIP's vision tower, LDVC's or the bare one."""
    layers = vision_model.encoder.layers
    return {
        "patch embedding": [vision_model.embeddings],
        "tower: attention": [layer.self_attn for layer in layers],
        "tower: feed-forward": [layer.mlp for layer in layers],
    }


def parts_of_ldvc(model: nn.Module) -> dict[str, list[nn.Module]]:
    """The parts of LDVC that hold matrix products; in the decoder, those of LCTD."""
    layers = model.decoder.layers
    parts = parts_of_tower(model.clip.vision_model) | {
        "vision prompts": [model.vision_prompts],
        "projection to class embeddings": [model.clip.visual_projection],
        "text adapter": [model.text_adapter],
        "decoder: route attention": [layer.self_attn for layer in layers],
        "decoder: attention to classes": [layer.cross_attn for layer in layers],
        "decoder: feed-forward": [layer.feed_forward for layer in layers],
        "logits": [model.decoder.similarity],
    }
    return {name: [module for module in modules if module is not None] for name, modules in parts.items()}
