"""Checkpoints for the command line: one folder or Hub id in, model and processor out, one clear line if it is none."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldvc.places import EMBEDDED_CHECKPOINT


if TYPE_CHECKING:  # these imports take seconds
    import torch

    from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
    from ldvc.model.processing_ldvc import LDVCProcessor


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


def load_checkpoint(
    model: str | Path, device: str = "auto", **config_fields: Any
) -> tuple[LDVCForSemanticSegmentation, LDVCProcessor]:
    """Load an LDVC checkpoint with its processor, ready for inference.

    Args:
        model: Folder or Hub id; a folder with an adapter alone is put on the CLIP that it names.
        device: See `pick_device`.
        config_fields: Fields of `LDVCConfig` to change, such as dropout to train on.

    Raises:
        ValueError: If it is no whole LDVC checkpoint, or the device is not there.
    """
    check_is_ldvc(model)
    target = pick_device(device)
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError
    from transformers.utils import logging

    from ldvc.model.processing_ldvc import LDVCProcessor
    from ldvc.model.weights_ldvc import ADAPTER_CONFIG

    shows_bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # of a small file that takes no time
    # It warns of an over-long name just before our processor refuses it in one line.
    logging.get_logger("transformers.tokenization_utils_base").setLevel(logging.ERROR)
    try:
        load = load_adapter if (Path(model) / ADAPTER_CONFIG).is_file() else load_whole
        loaded = load(model, **config_fields)
        processor = LDVCProcessor.from_pretrained(model)
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError, StrictDataclassError) as error:
        raise ValueError(
            f"{str(model)!r} cannot be loaded: {one_line(error)} If a file is damaged or missing, save or fetch the "
            "checkpoint again."
        ) from error
    finally:
        if shows_bars:
            logging.enable_progress_bar()
    return loaded.to(target).eval(), processor


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


def check_is_ldvc(model: str | Path) -> None:
    """Check that a folder or Hub id is an LDVC checkpoint, before anything large is read.

    Raises:
        ValueError: If it is not.
    """
    folder, remedy = Path(model), "give a folder that train.py or save_pretrained wrote."
    if folder == EMBEDDED_CHECKPOINT and not folder.is_dir():
        raise ValueError(f"the embedded checkpoint is part of a checkout, and not at {folder}; name a model yourself.")
    if folder.is_file():
        raise ValueError(f"{str(model)!r} is a file, not a model folder; {remedy}")
    if folder.is_dir() and not (folder / "config.json").is_file():
        from ldvc.model.weights_ldvc import ADAPTER_CONFIG

        if (folder / ADAPTER_CONFIG).is_file():
            return
        raise ValueError(f"{str(model)!r} is no LDVC model: it has no config.json; {remedy}")
    if not folder.is_dir() and (folder.is_absolute() or len(folder.parts) != 2 or str(model).startswith(".")):
        raise ValueError(f"{str(model)!r}: no such folder; {remedy}")
    from ldvc.model.configuration_ldvc import LDVCConfig

    try:
        kind = LDVCConfig.get_config_dict(model)[0].get("model_type")
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(model)!r} is no LDVC model ({one_line(error)}); {remedy}") from error
    if kind != "ldvc":
        raise ValueError(f"{str(model)!r} is no LDVC model: it holds a {kind!r} model; {remedy}")


def default_names(model: LDVCForSemanticSegmentation) -> list[str]:
    """Class names of the checkpoint's own vocabulary.

    Raises:
        ValueError: If it has none.
    """
    if not model.config.num_default_classes:
        raise ValueError("this checkpoint has no vocabulary of its own; name the classes with --labels.")
    return model.config.default_class_names


def unseen_names(model: LDVCForSemanticSegmentation, classes: Sequence[str] | Mapping[str, list[str]]) -> list[str]:
    """Classes none of whose words trained with masks; none where the checkpoint does not say what it trained on."""
    mask = model.seen_class_mask(classes)
    return [] if mask is None else [name for name, is_seen in zip(classes, mask.tolist(), strict=True) if not is_seen]


def one_line(error: BaseException | str, limit: int = 400) -> str:
    """Give an error's message as one line of at most `limit` characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."
