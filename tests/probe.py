"""What a published folder does in a process without LDVC: `python tests/probe.py FOLDER PICTURE RESULT`.

`python -m tests.versions` runs it under every release of Transformers and compares. Each fact is the SHA-256 of exact
values, or the error that came in their place.
"""

import hashlib
import json
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any


class NotInstalled:
    """Our modules cannot be imported, also where the checkout is installed in editable mode."""

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Refuse names of ours at the top level."""
        if path is None and name.endswith("ldvc"):
            raise ModuleNotFoundError(f"{name} is hidden")


sys.meta_path.insert(0, NotInstalled())
FOLDER, PICTURE, RESULT = sys.argv[1:]
OPTIONS = {"trust_remote_code": True}
NAMES = ["cat", "balloon", "sky", "grass"]
TASK = "zero-shot-image-segmentation"
FACTS: dict[str, Callable[[], Any]] = {}


def fact(function: Callable[[], Any]) -> Callable[[], Any]:
    """Put a function on the list, under its name."""
    FACTS[function.__name__] = function
    return function


def digest(value: Any) -> str:
    """SHA-256 of tensors, pictures and plain values, exact to the last bit."""
    import torch

    sums = hashlib.sha256()

    def add(item: Any) -> None:
        if isinstance(item, torch.Tensor):
            item = item.detach().cpu()
            sums.update(f"{tuple(item.shape)}{item.dtype}".encode() + item.contiguous().numpy().tobytes())
        elif isinstance(item, dict):
            add([[key, item[key]] for key in sorted(item)])
        elif isinstance(item, (list, tuple)):
            sums.update(b"[")
            for part in item:
                add(part)
        elif hasattr(item, "tobytes"):
            sums.update(item.tobytes())
        else:
            sums.update(repr(item).encode())

    add(value)
    return sums.hexdigest()[:16]


def load(kind: str = "AutoModel", folder: str = FOLDER, **options: Any) -> Any:
    """An object of the folder by one of the Auto classes."""
    import transformers

    return getattr(transformers, kind).from_pretrained(folder, **OPTIONS, **options)


def encode() -> Any:
    """Picture, names and a label map, prepared."""
    import numpy as np
    from PIL import Image

    picture = Image.open(PICTURE)
    labels = np.arange(picture.height * picture.width).reshape(picture.height, picture.width) // 4096 % len(NAMES)
    return load("AutoProcessor")(picture, class_names=NAMES, segmentation_maps=labels, return_tensors="pt")


def call(model: Any, with_labels: bool = False) -> Any:
    """The model on the picture and `NAMES`."""
    inputs = encode()
    if not with_labels:
        inputs.pop("labels")
    return model(**inputs)


@fact
def auto_classes() -> Any:
    """Every Auto class of a folder gives the folder's own."""
    kinds = ("AutoConfig", "AutoModel", "AutoModelForSemanticSegmentation", "AutoModelForImageSegmentation")
    return [type(load(kind)).__name__ for kind in (*kinds, "AutoTokenizer", "AutoProcessor")]


@fact
def auto_image_processor() -> Any:
    """The Auto class that needs torchvision on older releases."""
    return type(load("AutoImageProcessor")).__name__


@fact
def processor() -> Any:
    """Pixels, token ids and labels."""
    return dict(encode())


@fact
def logits() -> Any:
    """Of given names, and of the default vocabulary."""
    model = load().eval()
    return [call(model).logits, model(encode()["pixel_values"]).logits]


@fact
def label_map() -> Any:
    """At the picture's size."""
    outputs = call(load().eval())
    return load("AutoProcessor").post_process_semantic_segmentation(outputs, target_sizes=[(211, 307)])[0]


@fact
def stock_pipeline() -> Any:
    """Labels and masks of pipeline("image-segmentation")."""
    from transformers import pipeline

    return [list(part.items()) for part in pipeline("image-segmentation", model=FOLDER, **OPTIONS)(PICTURE)]


@fact
def zero_shot_pipeline() -> Any:
    """Labels, scores and masks of the folder's own pipeline, by path and around a model that is loaded."""
    from transformers import pipeline

    found = [pipeline(TASK, model=FOLDER, **OPTIONS)(PICTURE, candidate_labels=NAMES)]
    own = pipeline(TASK, model=load().eval(), processor=load("AutoProcessor"), **OPTIONS)
    found.append(own(PICTURE, candidate_labels=NAMES, window=128))
    return [[list(part.items()) for part in parts] for parts in found]


@fact
def training_step() -> Any:
    """Loss, and the weights after a step."""
    import torch

    torch.manual_seed(0)
    model = load().train()
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=1e-3)
    loss = call(model, with_labels=True).loss
    loss.backward()
    optimizer.step()
    return [loss, model.state_dict()]


@fact
def save_and_reload() -> Any:
    """The code goes with the weights."""
    with tempfile.TemporaryDirectory() as again:
        load().save_pretrained(again)
        load("AutoProcessor").save_pretrained(again)
        code = {path.name: path.read_text() for path in Path(again).glob("*.py")}
        return [code, call(load(folder=again).eval()).logits, type(load("AutoProcessor", again)).__name__]


@fact
def trainer() -> Any:
    """Two steps of the library's Trainer, and its predictions."""
    from transformers import Trainer, TrainingArguments

    row = {name: value[0] for name, value in encode().items() if name in ("pixel_values", "labels")}
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output, max_steps=2, per_device_train_batch_size=1, report_to=[], use_cpu=True, save_strategy="no", seed=0
        )
        run = Trainer(load(), arguments, train_dataset=[row] * 2, eval_dataset=[row])
        run.train()
        return [run.model.state_dict(), run.predict([row]).predictions]


def measure() -> dict[str, Any]:
    """Every fact, and what the library said on the way."""
    import torch
    import transformers

    torch.set_num_threads(1)
    torch.manual_seed(0)
    found: dict[str, Any] = {"release": transformers.__version__}
    for name, function in FACTS.items():
        try:
            with torch.set_grad_enabled(name in ("training_step", "trainer")):
                found[name] = digest(function())
        except Exception as error:  # whatever comes is what is looked for
            found[name] = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
    return found


class Keep(logging.Handler):
    """Remembers errors that the library logs."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one line."""
        self.lines.append(record.getMessage()[:120])


if __name__ == "__main__":
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        kept = Keep()
        logging.getLogger("transformers").addHandler(kept)
        found = measure()
    future = {str(warning.message) for warning in caught if issubclass(warning.category, FutureWarning)}
    found |= {"future_warnings": sorted(future), "logged_errors": sorted(set(kept.lines))}
    Path(RESULT).write_text(json.dumps(found, indent=1) + "\n")
