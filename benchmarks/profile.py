"""Where LDVC's time and multiply-adds go, part by part beside the bare tower's, and in which operations."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.flops import count_multiply_adds, gauge_parts, parts_of_ldvc, parts_of_tower
from benchmarks.models import build_bare_tower, build_model, make_class_embeds, make_pixels
from benchmarks.timing import Settings, read_clock, spread


TITLE = "where time and multiply-adds go: LDVC and the bare tower, 512 x 512, 20 classes, class embeddings kept"
GOALS: dict[str, tuple[str, float]] = {}
SIDE, NUM_CLASSES, NUM_OPERATIONS = 512, 20, 8
REST = "all else: norms, sums, joining and cutting tokens"
TOWER_PARTS = ("patch embedding", "tower: attention", "tower: feed-forward")
Job = Callable[[], Any]


@torch.inference_mode()
def measure(settings: Settings) -> dict[str, Any]:
    """Count multiply-adds and time of every part; `tower` compares the results of the two."""
    model = build_model(settings)
    tower = build_bare_tower(model)
    pixels, embeds = make_pixels(settings, SIDE), make_class_embeds(model, NUM_CLASSES)
    jobs: dict[str, tuple[Job, dict[str, list[nn.Module]]]] = {
        "bare": (lambda: tower(pixels, interpolate_pos_encoding=True), parts_of_tower(tower)),
        "ldvc": (lambda: model(pixel_values=pixels, class_embeds=embeds), parts_of_ldvc(model)),
    }
    seconds = time_parts(jobs, settings)
    counts = {name: count_multiply_adds(*job) for name, job in jobs.items()}
    parts = [*jobs["ldvc"][1], REST]
    rows = []
    for part in parts:
        row = {"part": part, "giga_multiply_adds": {}, "seconds": {}}
        for name, (total, by_part) in counts.items():
            if part == REST or part in by_part:
                of_part = total - sum(by_part.values()) if part == REST else by_part[part]
                row["giga_multiply_adds"][name] = of_part / 1e9
                row["seconds"][name] = spread([times[part] for times in seconds[name]])
        rows.append(row)
    total, by_part = counts["ldvc"]
    beyond = [part for part in by_part if part not in TOWER_PARTS]
    shares = [sum(times[part] for part in beyond) / sum(times.values()) for times in seconds["ldvc"]]
    ratios = {"time_beyond_the_tower": spread(shares)}
    ratios["multiply_adds_beyond_the_tower"] = sum(by_part[part] for part in beyond) / total
    return {"ratios": ratios, "rows": rows, "operations": profile_operations(jobs["ldvc"][0], settings)}


def time_parts(
    jobs: dict[str, tuple[Job, dict[str, list[nn.Module]]]], settings: Settings
) -> dict[str, list[dict[str, float]]]:
    """Seconds of every part and of the rest, per job and round; the jobs take turns, one warm-up each."""
    seconds: dict[str, list[dict[str, float]]] = {name: [] for name in jobs}
    for _ in range(1 + settings.repeats):
        for name, (job, parts) in jobs.items():
            with gauge_parts(parts, lambda: read_clock(settings)) as rises:
                started = read_clock(settings)
                job()
                total = read_clock(settings) - started
            seconds[name].append({**rises, REST: total - sum(rises.values())})
    return {name: rounds[1:] for name, rounds in seconds.items()}


def profile_operations(job: Job, settings: Settings) -> Sequence[dict[str, Any]]:
    """The operations that take most time of their own, with their share of all and their calls."""
    on_device = torch.device(settings.device).type == "cuda"
    activities = [ProfilerActivity.CPU] + ([ProfilerActivity.CUDA] if on_device else [])
    with profile(activities=activities) as record:
        job()
    events = record.key_averages()
    times = {event.key: event.self_device_time_total if on_device else event.self_cpu_time_total for event in events}
    calls = {event.key: event.count for event in events}
    total = sum(times.values())
    largest = sorted(times, key=times.get, reverse=True)[:NUM_OPERATIONS]
    return [{"operation": name, "share": times[name] / total, "calls": calls[name]} for name in largest]
