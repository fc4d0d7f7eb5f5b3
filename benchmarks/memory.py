"""Peak memory of a call on the CPU, from PyTorch's own record of what it allocates and frees.

Resident memory would also count the interpreter, weights, and what the C library keeps back for later, and it misses
what was never touched; the allocator's record is exact, the same on every machine, and blind to other processes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_bytes(job: Callable[[], Any], device: str = "cpu") -> int:
    """Highest sum of bytes that the call held at once beyond what lived before it; tensors only."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        job()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        result = job()  # kept, so that its tensors count as held
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    del result
    held = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


class LargestTensors(TorchDispatchMode):
    """Notes, while it is active, the largest results of operations; views of other tensors are left out.

    Attributes:
        found: (operation, shape) -> bytes.
    """

    def __init__(self):
        super().__init__()
        self.found: dict[tuple[str, tuple[int, ...]], int] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        """Run an operation and note its results."""
        kwargs = kwargs or {}
        with self:  # one that is made of others shows theirs
            result = func.decompose(*args, **kwargs)
        if result is not NotImplemented:
            return result
        result = func(*args, **kwargs)
        if not func.is_view:
            for tensor in tree_leaves(result):
                if isinstance(tensor, Tensor):
                    self.found[func._overloadpacket.__name__, tuple(tensor.shape)] = tensor.nbytes
        return result


def largest_tensors(job: Callable[[], Any], count: int) -> list[dict[str, Any]]:
    """The largest tensors that a call makes without gradients: operation, shape and megabytes (10^6 bytes)."""
    with torch.no_grad(), LargestTensors() as mode:
        job()
    largest = sorted(mode.found.items(), key=lambda item: -item[1])[:count]
    return [{"operation": name, "shape": list(shape), "megabytes": size / 1e6} for (name, shape), size in largest]
