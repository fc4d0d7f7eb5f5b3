"""Peak memory of a call on the CPU, from PyTorch's own record of what it allocates and frees.

Resident memory would also count the interpreter, weights, and what the C library keeps back for later, and it misses
what was never touched; the allocator's record is exact, the same on every machine, and blind to other processes.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile


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
