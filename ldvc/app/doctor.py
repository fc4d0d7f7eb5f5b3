"""What is installed, what this machine offers, and a self-test: the core of `ldvc doctor`."""

from __future__ import annotations

import importlib
import os
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ldvc.loading import EMBEDDED_CHECKPOINT, load, one_line
from ldvc.places import how_to_install


REQUIRED = ("torch", "transformers", "huggingface_hub", "tokenizers", "safetensors", "numpy", "pillow", "typer")
OPTIONAL = {  # package -> what needs it, and how to get it
    "onnxruntime": ("ldvc segment --runtime onnx", "runtime"),
    "openvino": ("ldvc segment --runtime openvino", "openvino"),
    "pycocotools": ("ldvc segment --format coco-rle", "cli"),
    "gradio": ("ldvc demo", "demo"),
    "accelerate": ("training and evaluation", "train"),
    "datasets": ("training and evaluation", "train"),
    "evaluate": ("training and evaluation", "train"),
    "matplotlib": ("training curves", "train"),
    "scipy": ("the metric", "train"),
}
# Releases of Transformers of docs/versions.md, under which everything was compared.
TESTED = ("5.4.0", "5.6.0", "5.12.1", "5.16.1", "5.18.0", "5.20.2", "5.22.2", "5.23.0", "5.24.0")
TOLERANCE = 1e-4  # of logits: other batch sizes take other kernels, which round differently


@dataclass(frozen=True)
class Check:
    """One line of the report.

    Attributes:
        name: What was looked at.
        value: What was found.
        remedy: What to do; empty where all is well.
        is_failure: Whether LDVC does not work this way.
    """

    name: str
    value: str
    remedy: str = ""
    is_failure: bool = False


def examine(model: str | Path | None = None) -> list[tuple[str, list[Check]]]:
    """Look at everything.

    Args:
        model: Checkpoint of the self-test; `None` is the embedded one, or tiny random weights where it is missing.

    Returns:
        Sections of the report.
    """
    sections = [("Versions", [*check_versions(), check_torchvision()])]
    if any(check.is_failure for _, checks in sections for check in checks):
        return sections  # nothing that imports torch or transformers would run
    sections += [("Machine", check_machine()), ("Hub", check_hub()), ("Extras", check_extras())]
    return [*sections, ("Self-test", check_itself(model))]


def check_versions() -> list[Check]:
    """Versions of what LDVC cannot do without."""
    checks = [Check("python", f"{platform.python_version()} on {platform.platform()}")]
    for package in REQUIRED:
        try:
            checks.append(Check(package, version(package)))
        except PackageNotFoundError:
            checks.append(Check(package, "not installed", f"pip install {package}", is_failure=True))
    for package in ("torch", "transformers"):
        check = next(check for check in checks if check.name == package)
        try:
            if not check.is_failure:
                importlib.import_module(package)
        except Exception as error:  # whatever breaks the import is what is looked for
            remedy = f"install it again: pip install --force-reinstall {package}"
            checks.append(Check(f"import {package}", one_line(error, 160), remedy, is_failure=True))
    return checks if any(check.is_failure for check in checks) else [*checks, check_transformers()]


def check_transformers() -> Check:
    """Whether this release of Transformers is in the range, was tested, and has no known hole that concerns LDVC."""
    number, name = version("transformers"), "this Transformers"
    try:
        from ldvc.model.compat_ldvc import read_version
    except ImportError as error:  # its one sentence ends with the remedy
        said, _, remedy = str(error).rpartition(": ")
        return Check(name, said, remedy.rstrip("."), is_failure=True)
    if read_version(number) < (5, 10):
        remedy = "pip install --upgrade transformers: before 5.10 saving a stranger's processor may write anywhere"
    else:
        remedy = ""
    if number in TESTED:
        return Check(name, "tested", remedy)
    return Check(name, f"not tested; {', '.join(TESTED)} were", remedy)


def check_torchvision() -> Check:
    """Whether torchvision, where present, fits torch: Transformers imports it, and a bad pair breaks every import."""
    try:
        number = version("torchvision")
    except PackageNotFoundError:
        return Check("torchvision", "not installed (not needed)")
    try:
        importlib.import_module("torchvision")
    except Exception as error:  # of its compiled part, of any kind
        remedy = "install torch and torchvision together from one index, or pip uninstall torchvision"
        return Check("torchvision", f"{number} does not fit torch ({one_line(error, 120)})", remedy, is_failure=True)
    return Check("torchvision", number)


def check_machine() -> list[Check]:
    """Devices, number types, threads."""
    import torch

    has_accelerator = torch.accelerator.is_available()
    devices = ["cpu"]
    if has_accelerator:
        kind = torch.accelerator.current_accelerator().type
        devices += [f"{kind}:{index}" for index in range(torch.accelerator.device_count())]
    backends = [name for name in ("mkldnn", "openmp", "mkl") if getattr(torch.backends, name).is_available()]
    checks = [Check("devices", ", ".join(devices)), Check("CPU backends", ", ".join(backends) or "none")]
    dtypes = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
    for device in devices[:2]:
        works = [str(dtype).removeprefix("torch.") for dtype in dtypes if can_multiply(device, dtype)]
        checks.append(Check(f"dtypes on {device}", ", ".join(works)))
    set_by = os.environ.get("OMP_NUM_THREADS")
    threads = f"{torch.get_num_threads()} of {os.cpu_count()} logical cores"
    return [*checks, Check("threads", threads + (f" (OMP_NUM_THREADS={set_by})" if set_by else ""))]


def can_multiply(device: str, dtype: Any) -> bool:
    """Whether the device multiplies matrices of this type."""
    import torch

    try:
        matrix = torch.ones(4, 4, device=device, dtype=dtype)
        return bool((matrix @ matrix == 4).all())
    except (RuntimeError, TypeError):  # MPS raises TypeError for float64
        return False


def check_hub() -> list[Check]:
    """Where models come from and are kept."""
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE)
    parent = next(folder for folder in (cache, *cache.parents) if folder.exists())
    room = f"{cache} ({shutil.disk_usage(parent).free / 1e9:.0f} GB free)"
    remedy = "" if os.access(parent, os.W_OK) else "not writable: set HF_HOME to a folder of yours"
    access = "offline (HF_HUB_OFFLINE is set)" if constants.HF_HUB_OFFLINE else "online, for models not in the cache"
    return [
        Check("access", access),
        Check("endpoint", constants.ENDPOINT),
        Check("cache", room, remedy),
    ]


def check_extras() -> list[Check]:
    """Optional packages."""
    checks = []
    for package, (purpose, extra) in OPTIONAL.items():
        try:
            checks.append(Check(package, version(package)))
        except PackageNotFoundError:
            remedy = how_to_install(extra)
            checks.append(Check(package, f"not installed; only for {purpose}", remedy))
    return checks


def check_itself(model: str | Path | None = None) -> list[Check]:
    """Segment two drawn pictures and compare what must hold exactly, whatever the weights."""
    started = time.perf_counter()
    try:
        loaded, processor, name = load_subject(model)
    except Exception as error:  # nothing may end the report
        remedy = "give another --model, or install LDVC again"
        return [Check("model", one_line(error), remedy, is_failure=True)]
    checks = [Check("model", name)]
    facts: dict[str, tuple[Callable[..., str], str]] = {
        "an image alone and in a batch": (try_batches, "please report it, with the lines above"),
        "the order of the names": (try_order, "please report it, with the lines above"),
        "a label map of the picture's size": (try_label_map, "please report it, with the lines above"),
    }
    for title, (attempt, remedy) in facts.items():
        try:
            checks.append(Check(title, attempt(loaded, processor)))
        except Exception as error:  # a failed fact, or anything on the way to it
            checks.append(Check(title, one_line(error), remedy, is_failure=True))
    return [*checks, Check("time", f"{time.perf_counter() - started:.1f} s")]


def load_subject(model: str | Path | None) -> tuple[Any, Any, str]:
    """Model and processor of the self-test, and their name."""
    if model is None and not EMBEDDED_CHECKPOINT.is_dir():
        return *build_tiny(), "tiny random weights, made in memory"
    loaded, processor = load(EMBEDDED_CHECKPOINT if model is None else model, "cpu")
    return loaded.float(), processor, "the embedded checkpoint" if model is None else str(model)


def build_tiny() -> tuple[Any, Any]:
    """Make a random model with an image processor and no tokenizer; its classes are random embeddings."""
    from types import SimpleNamespace

    import torch

    from ldvc.model.configuration_ldvc import LDVCConfig
    from ldvc.model.image_processing_ldvc import LDVCImageProcessor
    from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation

    widths = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LDVCConfig(
            text_config={**widths, "vocab_size": 64},
            vision_config={**widths, "image_size": 64, "patch_size": 8},
            projection_dim=32,
            decoder_attention_heads=4,
            decoder_intermediate_size=64,
            num_regions=2,
            route_top_k=2,
        )
        model = LDVCForSemanticSegmentation(config).eval()
    processor = SimpleNamespace(image_processor=LDVCImageProcessor(size={"height": 64, "width": 64}))
    return model, processor


def draw_pictures() -> list[Any]:
    """Two small pictures of different sizes."""
    from PIL import Image, ImageDraw

    pictures = []
    for size, color in (((96, 64), "skyblue"), ((61, 83), "khaki")):
        picture = Image.new("RGB", size, color)
        ImageDraw.Draw(picture).ellipse((10, 10, 50, 50), fill="darkred", outline="black", width=3)
        pictures.append(picture)
    return pictures


def random_classes(model: Any) -> Any:
    """(5, projection_dim) unit vectors of a fixed seed: facts that hold for these hold for any names."""
    import torch

    embeds = torch.randn(5, model.config.projection_dim, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.normalize(embeds, dim=-1)


def logits_of(model: Any, processor: Any, pictures: list[Any], class_embeds: Any) -> Any:
    """(num_pictures, num_classes, grid_height, grid_width)."""
    import torch

    inputs = processor.image_processor(pictures, return_tensors="pt")
    with torch.inference_mode():
        return model(**inputs, class_embeds=class_embeds).logits


def compare(first: Any, second: Any) -> str:
    """Say by how much two tensors of logits differ.

    Raises:
        ValueError: If by more than rounding.
    """
    difference = float((first - second).abs().max())
    allowed = TOLERANCE * max(1.0, float(first.abs().max()))  # some kinds scale cosines up, and rounding with them
    if not difference <= allowed:  # also if it is NaN
        raise ValueError(f"logits differ by {difference:.2g}, more than {allowed:.2g}.")
    return f"same logits (difference {difference:.1g})"


def try_batches(model: Any, processor: Any) -> str:
    """Promise 1: a picture gives the same logits alone and in a batch."""
    import torch

    pictures, classes = draw_pictures(), random_classes(model)
    alone = [logits_of(model, processor, [picture], classes) for picture in pictures]
    return compare(torch.cat(alone), logits_of(model, processor, pictures, classes))


def try_order(model: Any, processor: Any) -> str:
    """Promise 2: permuted classes give permuted logits."""
    classes, order = random_classes(model), [3, 0, 4, 1, 2]
    logits = logits_of(model, processor, draw_pictures(), classes)
    return compare(logits[:, order], logits_of(model, processor, draw_pictures(), classes[order]))


def try_label_map(model: Any, processor: Any) -> str:
    """A picture's label map has its size and only ids of its classes.

    Raises:
        ValueError: If not.
    """
    from ldvc.model.inference_ldvc import segment

    picture, names = draw_pictures()[1], list("abcde")
    result = segment(model, processor, picture, names, class_embeds=random_classes(model))
    shape, ids = tuple(result.label_map.shape), result.label_map.unique().tolist()
    if shape != (picture.height, picture.width) or not set(ids) <= set(range(len(names))):
        raise ValueError(f"a picture of {picture.size} (width, height) gave ids {ids} of shape {shape}.")
    return f"{shape[0]} x {shape[1]} pixels"


def render(sections: list[tuple[str, list[Check]]]) -> str:
    """The report as text; what failed comes last, with its remedy."""
    lines = []
    for title, checks in sections:
        lines += [title, *(f"  {check.name}: {check.value}" + hint(check) for check in checks), ""]
    failed = [check for _, checks in sections for check in checks if check.is_failure]
    if not failed:
        return "\n".join([*lines, "OK: LDVC works on this machine."])
    return "\n".join([*lines, "FAILED", *(f"  {check.name}: {check.value} -> {check.remedy}" for check in failed)])


def hint(check: Check) -> str:
    """What to do, in brackets."""
    return f"  [{check.remedy}]" if check.remedy else ""


def has_failed(sections: list[tuple[str, list[Check]]]) -> bool:
    """Whether something does not work."""
    return any(check.is_failure for _, checks in sections for check in checks)
