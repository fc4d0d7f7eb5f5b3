"""What runs the model of a command: PyTorch, ONNX Runtime or OpenVINO; chosen, or measured and remembered.

`ldvc doctor --bench` measures; `--runtime auto` takes what it found best for this model on this machine, and PyTorch
in float32 where nothing was measured.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ldvc.loading import is_exported
from ldvc.masks.parts import written_aside
from ldvc.model.options_ldvc import InferenceSettings, Rivals
from ldvc.places import cache_folder, how_to_install
from ldvc.runtime.cache import checkpoint_key
from ldvc.runtime.programs import EXPORT_FILE, Precision, Runtime, check_served
from ldvc.runtime.scores import PixelClasses, Segmentation
from ldvc.runtime.segmenter import RuntimeSegmenter
from ldvc.runtime.windows import resized_blocks


if TYPE_CHECKING:
    from PIL import Image

    from ldvc.app.torch_model import TorchModel
    from ldvc.runtime.pictures import PreparedPicture

__all__ = ["Choice", "LightModel", "choose", "open_model", "recall", "remember"]

PACKAGES = {Runtime.TORCH: "torch", Runtime.ONNX: "onnxruntime", Runtime.OPENVINO: "openvino"}


class Choice(NamedTuple):
    """What a command computes with.

    Attributes:
        runtime: Never `auto`.
        precision: Of matrix products.
        reason: Why, in words.
    """

    runtime: Runtime
    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"{self.runtime}, {self.precision} ({self.reason})"


# ---- choosing


def choose(
    model: str,
    device: str,
    runtime: Runtime,
    precision: Precision,
    load_settings: Mapping[str, Any] | None = None,
    settings: InferenceSettings | None = None,
) -> Choice:
    """Choose what runs a model.

    Args:
        model: Folder or Hub id.
        device: As `--device`; ONNX Runtime and OpenVINO are for the CPU here.
        runtime: As `--runtime`.
        precision: As `--precision`.
        load_settings: Of `ldvc.load`.
        settings: Windows and sizes, which the programs do not take all of.

    Raises:
        ValueError: If the runtime does not go with the device or the precision.
        ImportError: If it is not installed.
    """
    choice = Choice(runtime, precision, "as asked for")
    if runtime is Runtime.AUTO:
        choice = choose_for(model, device, precision, load_settings, settings)
    elif runtime is not Runtime.TORCH and device not in ("auto", "cpu"):
        raise ValueError(
            f"--runtime {runtime} computes on the CPU; leave --device {device} out, or use --runtime torch."
        )
    if choice.runtime is Runtime.TORCH:
        check_torch(model)
    else:
        check_served(choice.runtime, choice.precision)
    return choice


def choose_for(
    model: str,
    device: str,
    precision: Precision,
    load_settings: Mapping[str, Any] | None,
    settings: InferenceSettings | None,
) -> Choice:
    """What `--runtime auto` takes."""
    if device not in ("auto", "cpu"):
        return Choice(Runtime.TORCH, precision, f"the only one for {device}")
    if settings is not None and not is_exported(model):
        return Choice(Runtime.TORCH, precision, "which takes pictures and windows of every size")
    found = recall(model, load_settings).get(str(precision))
    if found is not None and find_spec(PACKAGES[Runtime(found["runtime"])]) is not None:
        return Choice(Runtime(found["runtime"]), precision, f"{found['reason']} by ldvc doctor --bench")
    if is_onnx_folder(model):
        own = Runtime.ONNX if precision is Precision.FLOAT32 else Runtime.OPENVINO
        return Choice(own, precision, "an exported program")
    return Choice(Runtime.TORCH, precision, "nothing measured here: ldvc doctor --bench finds the fastest")


def is_onnx_folder(model: str) -> bool:
    """Whether this is a folder of `ldvc export` with an ONNX program."""
    if not is_exported(model):
        return False
    with suppress(ValueError, OSError):
        return json.loads((Path(model) / EXPORT_FILE).read_bytes()).get("format") == "onnx"
    return True  # damaged: who reads it says so


def check_torch(model: str) -> None:
    """Check that PyTorch and Transformers are there.

    Raises:
        ImportError: If not; names the ways on.
    """
    if missing := next((name for name in ("torch", "transformers") if find_spec(name) is None), None):
        ways = "" if is_exported(model) else ", or give a folder that ldvc export wrote elsewhere"
        raise ImportError(f"--runtime torch needs {missing}, which is not installed: {how_to_install('torch')}{ways}.")


# ---- what was measured


def this_processor() -> str:
    """Name and number of processors: what measurements hold for."""
    name = platform.processor() or platform.machine()
    with suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        name = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), name)
    return f"{name}, {os.cpu_count()} logical"


def versions() -> dict[str, str | None]:
    """Releases of the runtimes: another one may be faster or slower."""
    found: dict[str, str | None] = {}
    for package in PACKAGES.values():
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    return found


def measurements_file() -> Path:
    """Where the measurements of this machine are kept."""
    return cache_folder() / "bench" / f"{hashlib.sha256(this_processor().encode()).hexdigest()[:16]}.json"


def recall(model: str, load_settings: Mapping[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    """What was found best for a model on this machine: precision -> `runtime` and `reason`; empty without it."""
    path = measurements_file()
    if not path.is_file():  # the usual case, in which no checkpoint is read
        return {}
    with suppress(ValueError, OSError, KeyError, AttributeError, TypeError):  # damaged: nothing is known
        entry = json.loads(path.read_bytes())["models"].get(model_key(model, load_settings), {})
        return entry.get("best", {}) if entry.get("versions") == versions() else {}
    return {}


def remember(model: str, load_settings: Mapping[str, Any] | None, best: Mapping[str, Mapping[str, Any]]) -> Path:
    """Keep what was found best for a model on this machine.

    Args:
        model: Folder or Hub id.
        load_settings: Of `ldvc.load`.
        best: Precision -> `runtime` and `reason`.

    Returns:
        The file.
    """
    path = measurements_file()
    content: dict[str, Any] = {"processor": this_processor(), "models": {}}
    with suppress(ValueError, OSError, KeyError, TypeError):  # damaged: begun anew
        content["models"] = dict(json.loads(path.read_bytes())["models"])
    content["models"][model_key(model, load_settings)] = {"model": model, "versions": versions(), "best": dict(best)}
    with written_aside(path) as file:
        file.write((json.dumps(content, indent=1) + "\n").encode())
    return path


def model_key(model: str, load_settings: Mapping[str, Any] | None) -> str:
    """What tells a model and this code from others."""
    folder = Path(model)
    if is_exported(folder):
        return hashlib.sha256((folder / EXPORT_FILE).read_bytes()).hexdigest()
    return checkpoint_key(model, load_settings)


# ---- opening


def open_model(
    choice: Choice,
    model: str,
    device: str = "auto",
    vocabulary: Path | None = None,
    load_settings: Mapping[str, Any] | None = None,
    seen_score_offset: float | None = None,
    say: Callable[[str], Any] | None = None,
) -> TorchModel | LightModel:
    """Open a model in the runtime that was chosen; arguments as of `TorchModel`, and of `RuntimeSegmenter`.

    Raises:
        ValueError: If it cannot be used there.
        ImportError: If a package is missing.
    """
    if choice.runtime is Runtime.TORCH:
        from ldvc.app.torch_model import TorchModel  # seconds

        return TorchModel(model, device, choice.precision, vocabulary, load_settings, seen_score_offset)
    return LightModel(choice, model, vocabulary, load_settings, seen_score_offset, say)


class LightModel:
    """A model in ONNX Runtime or OpenVINO, as the commands ask it.

    Args:
        choice: The runtime.
        model: Folder or Hub id; a checkpoint is exported on first use.
        vocabulary: See `TorchModel`.
        load_settings: See `TorchModel`.
        seen_score_offset: See `TorchModel`.
        say: See `RuntimeSegmenter`.

    Attributes:
        runtime: Its name.
        weights: SHA-256 of the weights that were exported.

    Raises:
        ValueError: If an option does not go with the program.
    """

    is_on_cpu = True

    def __init__(
        self,
        choice: Choice,
        model: str,
        vocabulary: Path | None = None,
        load_settings: Mapping[str, Any] | None = None,
        seen_score_offset: float | None = None,
        say: Callable[[str], Any] | None = None,
    ):
        runtime, precision = str(choice.runtime), str(choice.precision)
        if is_exported(model):
            if load_settings:
                name = next(iter(load_settings))
                raise ValueError(f"{model!r} is an exported program, which has no setting {name!r}; leave it out.")
            self.segmenter = RuntimeSegmenter(model, runtime, precision)
        else:
            self.segmenter = RuntimeSegmenter.from_checkpoint(
                model, runtime, precision, load_settings=load_settings, say=say
            )
        self.runtime, self.precision = runtime, choice.precision
        export = self.segmenter.export
        if seen_score_offset is not None:
            if seen_score_offset and not export.seen_classes:
                raise ValueError(
                    f"--seen-score-offset {seen_score_offset}: {model!r} does not say which classes it trained on; "
                    "leave the option out."
                )
            self.segmenter.export = replace(export, seen_score_offset=seen_score_offset)
        self.weights = export.source["weights"]
        if vocabulary is not None:
            self.segmenter.use_vocabulary(vocabulary)
            digest = hashlib.sha256(self.segmenter.resolve(None, None, Rivals({}))[1].tobytes())
            self.weights = hashlib.sha256((self.weights + digest.hexdigest()).encode()).hexdigest()

    @property
    def has_text_tower(self) -> bool:
        """Whether names can be encoded."""
        return self.segmenter.export.text_program is not None

    def logits(self, pixels: np.ndarray, class_embeds: np.ndarray) -> np.ndarray:
        """Logits of one picture of `prepare`: (grid_height, grid_width, num_classes) float32."""
        return np.moveaxis(self.segmenter.logits(pixels[None], class_embeds)[0], 0, -1)

    def own_names(self) -> list[str]:
        """Class names of the model's own vocabulary.

        Raises:
            ValueError: If it has none.
        """
        if not (names := self.segmenter.own_names()):
            raise ValueError("this checkpoint has no vocabulary of its own; name the classes with --labels.")
        return names

    def unseen_names(self, classes: Sequence[str] | Mapping[str, list[str]]) -> list[str]:
        """Classes that trained without masks, where the model knows which did."""
        mask = self.segmenter.seen_mask(classes)
        return [] if mask is None else [name for name, is_seen in zip(classes, mask, strict=True) if not is_seen]

    def resolve(self, classes: dict[str, list[str]] | None, rivals: Rivals) -> tuple[list[str], np.ndarray, str]:
        """Names, (num_channels, projection_dim) embeddings and the name of "other"."""
        return self.segmenter.resolve(classes, None, rivals)

    def prepare(self, image: Image.Image, settings: InferenceSettings | None) -> PreparedPicture:
        """Resize an open picture."""
        return self.segmenter.prepare(image, settings)

    def segment(self, pictures: Sequence[PreparedPicture], *names: Any, **options: Any) -> Iterator[Segmentation]:
        """Segment pictures in one call of the program, see `RuntimeSegmenter.segment_batch`."""
        return self.segmenter.segment_batch(pictures, *names, **options)

    def read_blocks(
        self, image: Any, size: tuple[int, int], names: Sequence[str], run: Any
    ) -> Iterator[tuple[slice, slice, np.ndarray, np.ndarray]]:
        """Segment a picture that is never held whole, see `TorchModel.read_blocks`."""
        class_ids = run.rivals.class_ids(len(run.named))
        offsets = self.segmenter.offsets(run.classes or run.named, run.rivals)
        scores = self.segmenter.open_windows(image, run.class_embeds, run.settings, offsets)
        for rows, columns, block in resized_blocks(scores, size, len(class_ids or names)):
            pixels = PixelClasses(len(names), block.shape[:2], run.thresholds, top_k=1, class_ids=class_ids)
            pixels.add(slice(None), slice(None), block)
            yield rows, columns, pixels.label_map, pixels.top_scores[0]

    def seen_score_offset(self) -> float:
        """What is taken from the probabilities of classes that trained with masks."""
        return self.segmenter.export.seen_score_offset

    def settings_fingerprint(self, value_range: Sequence[Any]) -> str:
        """SHA-256 of what else decides results: the exported code, pixel preparation and prompt templates."""
        said = asdict(self.segmenter.export)
        for name in ("seen_score_offset", "ldvc_version"):  # the one has a line of its own in names.json
            del said[name]
        parts = (said, self.segmenter.names.templates, *value_range)
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
