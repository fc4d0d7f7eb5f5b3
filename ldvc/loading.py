"""Any segmenter: one folder or Hub id in, model and processor out, one clear line if it is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldvc.places import EMBEDDED_CHECKPOINT


__all__ = [
    "default_names",
    "find_kind",
    "load",
    "load_checkpoint",
    "one_line",
    "pick_device",
    "plain_config",
    "read_dtype",
    "read_settings",
    "unseen_names",
]

REMEDY = "give a folder that train.py or save_pretrained wrote, or the Hub id of an LDVC, CLIP or CLIPSeg."

if TYPE_CHECKING:  # these imports take seconds
    import torch

    from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
    from ldvc.model.processing_ldvc import LDVCProcessor
    from ldvc.model.segmenter_ldvc import Segmenter


def plain_config(config: Any) -> dict[str, Any]:
    """Read a configuration's fields, without those that change when a checkpoint is moved or saved anew."""
    content = json.loads(config.to_json_string(use_diff=False))
    for name in ("_name_or_path", "transformers_version"):
        content.pop(name, None)
    return content


def pick_device(name: str = "auto") -> torch.device:
    """Turn a device's name into a device that is there.

    Args:
        name: "auto" (an accelerator where there is one), "cpu", "cuda", "cuda:1", "mps", ...

    Raises:
        ValueError: If there is no such device.
    """
    import torch

    if name == "auto":
        return torch.accelerator.current_accelerator() if torch.accelerator.is_available() else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:  # what torch raises depends on the backend
        raise ValueError(f"device {name!r} cannot be used ({one_line(error)}); try --device cpu.") from error
    return device


def load(
    model: str | Path,
    device: str = "auto",
    dtype: str | torch.dtype | None = None,
    *,
    size: int | None = None,
    prompt_templates: str | Sequence[str] | None = None,
    **settings: Any,
) -> tuple[Segmenter, LDVCProcessor]:
    """Load whatever can segment by names, with its processor, ready for inference.

    What it is, its files tell: an LDVC checkpoint or adapter, a `CLIPModel`, which then segments without training, a
    CLIPSeg (`CLIPSegForImageSegmentation`), or a program that `ldvc export` wrote.

    Example:
    ```python
    >>> model, processor = load("openai/clip-vit-base-patch16")
    >>> model, processor = load("CIDAS/clipseg-rd64-refined", device="cpu")
    >>> found = segment(model, processor, "street.jpg", ["car", "road", "sky"])
    ```

    Args:
        model: Folder or Hub id.
        device: See `pick_device`; a program runs on the CPU.
        dtype: Of the weights, such as "bfloat16"; `None` is that of the files.
        size: Side in pixels of the square that pictures are resized to; `None` is the model's own.
        prompt_templates: In place of the model's own, see [`LDVCProcessor`].
        settings: Of CLIP without training the `method` and its settings, see [`TrainingFreeCLIP`]; of LDVC the fields
            of its configuration to change; the others take none.

    Returns:
        A [`Segmenter`] in eval mode, and its processor.

    Raises:
        ValueError: If it is none of these, is not whole or not at hand, or the device, dtype or a setting cannot be
            used.
    """
    kind, target = find_kind(model), pick_device("cpu" if device == "auto" and is_exported(model) else device)
    if kind in ("clipseg", "exported") and settings:
        title = "CLIPSeg" if kind == "clipseg" else "an exported program"
        raise ValueError(f"{str(model)!r} is {title}, which has no setting {next(iter(settings))!r}; leave it out.")
    dtype = None if dtype is None else read_dtype(dtype)
    if kind == "exported" and (target.type != "cpu" or dtype is not None):
        raise ValueError(
            f"{str(model)!r} is an exported program: it runs on the CPU, in the numbers it was written in."
        )
    loaded, processor = load_quietly(LOADERS[kind], model, settings)
    if prompt_templates is not None:
        from ldvc.model.processing_ldvc import check_templates

        processor.prompt_templates = check_templates(prompt_templates)
    if size is not None:
        processor.image_processor.size = {"height": size, "width": size}
    return loaded.to(target).to(dtype).eval() if dtype is not None else loaded.to(target).eval(), processor


def load_checkpoint(
    model: str | Path, device: str = "auto", **config_fields: Any
) -> tuple[LDVCForSemanticSegmentation, LDVCProcessor]:
    """Load an LDVC checkpoint, and nothing else, with its processor, ready for inference.

    Args:
        model: Folder or Hub id; a folder with an adapter alone is put on the CLIP that it names.
        device: See `pick_device`.
        config_fields: Fields of `LDVCConfig` to change, such as dropout to train on.

    Raises:
        ValueError: If it is no whole LDVC checkpoint, or the device is not there.
    """
    kind = find_kind(model)
    if kind != "ldvc":
        raise ValueError(f"{str(model)!r} is no LDVC model: it holds a {kind!r} model; {REMEDY}")
    return load(model, device, **config_fields)


def read_settings(method: str | None, settings: Sequence[str] | None) -> dict[str, Any]:
    """Settings of `load` from a command line.

    Args:
        method: Of CLIP without training.
        settings: "NAME=VALUE" each; values are read as JSON, and as text where they are none.

    Raises:
        ValueError: If one has no value, or a name is given twice.
    """
    found: dict[str, Any] = {} if method is None else {"method": method}
    for text in settings or ():
        name, equals, value = text.partition("=")
        name = name.strip().replace("-", "_")
        if not equals or not name:
            raise ValueError(f"--setting {text!r} has no value; write NAME=VALUE.")
        if name in found:
            raise ValueError(f"--setting {text!r} sets {name!r} a second time; give it once.")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value.strip()
    return found


def read_dtype(dtype: str | torch.dtype) -> torch.dtype:
    """Turn a dtype's name into a dtype.

    Raises:
        ValueError: If there is no such dtype of floats.
    """
    import torch

    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(f"dtype is {dtype!r}; use float32, bfloat16 or float16.")
    return found


def load_quietly(loader: Any, model: str | Path, settings: Mapping[str, Any]) -> tuple[Segmenter, LDVCProcessor]:
    """Call a loader with one line for whatever goes wrong, and without the library's bars and reports.

    Raises:
        ValueError: If something does.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils import logging

    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of a small file that takes no time
    # It warns of an over-long name just before our processor refuses it in one line.
    logging.get_logger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    try:
        return loader(model, **settings)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(
            f"{str(model)!r} cannot be loaded: {one_line(error)} If a file is damaged or missing, save or fetch the "
            "checkpoint again."
        ) from error
    finally:
        if shows_bars:
            logging.enable_progress_bar()


def load_ldvc(model: str | Path, **config_fields: Any) -> tuple[LDVCForSemanticSegmentation, LDVCProcessor]:
    """Load an LDVC checkpoint or adapter with its processor."""
    from ldvc.model.processing_ldvc import LDVCProcessor
    from ldvc.model.weights_ldvc import ADAPTER_CONFIG, split_options

    split_options(str(model), config_fields)  # names that are neither fields nor options, with the nearest
    loader = load_adapter if (Path(model) / ADAPTER_CONFIG).is_file() else load_whole
    return loader(model, **config_fields), LDVCProcessor.from_pretrained(model)


def load_clip(model: str | Path, **settings: Any) -> tuple[Segmenter, LDVCProcessor]:
    """Load a CLIP as it is, and the processor for it.

    Raises:
        ValueError: If weights are missing, which would be filled at random.
    """
    from transformers import CLIPModel

    from ldvc.model.weights_ldvc import quiet_loading
    from ldvc.segmenters.training_free import TrainingFreeCLIP

    with quiet_loading():
        clip, info = CLIPModel.from_pretrained(model, output_loading_info=True)
    if info["missing_keys"]:
        raise ValueError(f"it lacks weights, first {min(info['missing_keys'])}; fetch the whole CLIPModel.")
    return TrainingFreeCLIP(clip.eval(), **settings), read_processor(model)


def load_clipseg(model: str | Path) -> tuple[Segmenter, LDVCProcessor]:
    """Load a CLIPSeg, and the processor for it."""
    from ldvc.segmenters.clipseg import CLIPSegSegmenter

    return CLIPSegSegmenter.from_pretrained(model), read_processor(model, is_clipseg=True)


def load_exported(model: str | Path) -> tuple[Segmenter, LDVCProcessor]:
    """Load an exported program, and the processor beside it."""
    from ldvc.model.processing_ldvc import LDVCProcessor
    from ldvc.segmenters.exported import ExportedSegmenter

    return ExportedSegmenter(model), LDVCProcessor.from_pretrained(model)


LOADERS = {"ldvc": load_ldvc, "clip": load_clip, "clipseg": load_clipseg, "exported": load_exported}


def read_processor(model: str | Path, is_clipseg: bool = False) -> LDVCProcessor:
    """The processor of a CLIP or CLIPSeg, see [`LDVCProcessor.from_preprocessing`]."""
    from transformers import AutoTokenizer

    from ldvc.model.compat_ldvc import read_preprocessing
    from ldvc.model.processing_ldvc import LDVCProcessor

    tokenizer = AutoTokenizer.from_pretrained(model)
    return LDVCProcessor.from_preprocessing(tokenizer, read_preprocessing(model), is_clipseg)


def load_adapter(folder: str | Path, **config_fields: Any) -> LDVCForSemanticSegmentation:
    """Put an adapter on the CLIP that it names."""
    from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
    from ldvc.model.weights_ldvc import ADAPTER_CONFIG, ADAPTER_FIELDS

    reference = json.loads((Path(folder) / ADAPTER_CONFIG).read_text())
    fields = {name: reference["config"][name] for name in ADAPTER_FIELDS if name != "projection_dim"}  # that is CLIP's
    model = LDVCForSemanticSegmentation.from_clip_pretrained(reference["clip"], **(fields | config_fields))
    model.load_adapter_weights(folder)
    for name, value in config_fields.items():  # the adapter's own configuration was read over some of them
        setattr(model.config, name, value)
    return model


def load_whole(model: str | Path, **config_fields: Any) -> LDVCForSemanticSegmentation:
    """Load a full checkpoint.

    Raises:
        ValueError: If weights are missing, which would be filled at random.
    """
    from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
    from ldvc.model.weights_ldvc import quiet_loading

    with quiet_loading():  # its report of missing weights is many lines; ours is one
        loaded, info = LDVCForSemanticSegmentation.from_pretrained(
            model, output_loading_info=True, use_safetensors=True, **config_fields
        )
    if info["missing_keys"]:
        raise ValueError(f"it lacks weights, first {min(info['missing_keys'])}; save the checkpoint again.")
    return loaded


def is_exported(model: str | Path) -> bool:
    """Whether this is a folder of `ldvc export`."""
    return (Path(model) / "ldvc_export.json").is_file()


def find_kind(model: str | Path) -> str:
    """Tell what a folder or Hub id holds, before anything large is read: a key of `LOADERS`.

    Raises:
        ValueError: If it is nothing that segments by names, or not there.
    """
    folder = Path(model)
    if folder == EMBEDDED_CHECKPOINT and not folder.is_dir():
        raise ValueError(f"the embedded checkpoint is part of a checkout, and not at {folder}; name a model yourself.")
    if folder.is_file():
        raise ValueError(f"{str(model)!r} is a file, not a model folder; {REMEDY}")
    if is_exported(folder):
        return "exported"
    if folder.is_dir() and not (folder / "config.json").is_file():
        from ldvc.model.weights_ldvc import ADAPTER_CONFIG

        if (folder / ADAPTER_CONFIG).is_file():
            return "ldvc"
        raise ValueError(f"{str(model)!r} is no LDVC model: it has no config.json; {REMEDY}")
    if not folder.is_dir() and (folder.is_absolute() or len(folder.parts) != 2 or str(model).startswith(".")):
        raise ValueError(f"{str(model)!r}: no such folder; {REMEDY}")
    from ldvc.model.configuration_ldvc import LDVCConfig

    try:
        kind = LDVCConfig.get_config_dict(model)[0].get("model_type")
    except (OSError, ValueError) as error:
        raise ValueError(explain_absence(model, error)) from error
    if kind in LOADERS:
        return kind
    if kind in ("clip_vision_model", "clip_text_model"):
        raise ValueError(
            f"{str(model)!r} holds one of CLIP's towers alone ({kind!r}); classes that are given by name need both: "
            "give the whole CLIPModel."
        )
    raise ValueError(
        f"{str(model)!r} is no LDVC model: it holds a {kind!r} model, which cannot segment by names here; give LDVC, "
        "a CLIPModel ('clip'), a CLIPSeg ('clipseg') or a folder of ldvc export."
    )


def explain_absence(model: str | Path, error: Exception) -> str:
    """Say why a configuration cannot be read."""
    from huggingface_hub import constants, try_to_load_from_cache

    is_id = not Path(model).is_dir()
    if is_id and constants.HF_HUB_OFFLINE and not isinstance(try_to_load_from_cache(str(model), "config.json"), str):
        return (
            f"{str(model)!r} is not in this machine's cache, and the Hub is not asked (HF_HUB_OFFLINE is set); fetch "
            f"it once with: hf download {model}"
        )
    return f"{str(model)!r} is no LDVC model ({one_line(error)}); {REMEDY}"


def default_names(model: Segmenter) -> list[str]:
    """Class names of the checkpoint's own vocabulary.

    Raises:
        ValueError: If it has none.
    """
    from ldvc.model.segmenter_ldvc import own_names

    if not (names := own_names(model)):
        raise ValueError("this checkpoint has no vocabulary of its own; name the classes with --labels.")
    return names


def unseen_names(model: Segmenter, classes: Sequence[str] | Mapping[str, list[str]]) -> list[str]:
    """Classes none of whose words trained with masks; none where the checkpoint does not say what it trained on."""
    from ldvc.model.segmenter_ldvc import seen_class_mask

    mask = seen_class_mask(model, classes)
    return [] if mask is None else [name for name, is_seen in zip(classes, mask.tolist(), strict=True) if not is_seen]


def one_line(error: BaseException | str, limit: int = 400) -> str:
    """Give an error's message as one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
