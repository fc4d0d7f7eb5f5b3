# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""Where releases of Transformers differ: the range that this code runs on, and one branch per difference.

Every file that Transformers may run first imports this one before anything else, so that a release outside the range
is refused in one sentence, and not by whatever it happens to lack.

Two differences are met in the files themselves. Until 5.7 only the files that such a first file itself imports are
copied from a local folder, so it imports what its siblings import too, also where it uses nothing of it. And until
5.16 `transformers.AutoImageProcessor` is an empty stand-in where torchvision is missing; its own module has the class.
"""
# ruff: noqa: E402 - what follows the check would fail on a release that it refuses

import hashlib
import inspect
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import transformers


LDVC_VERSION = "0.1.0"
OLDEST_FOLDER = "0.1.0"  # the oldest LDVC whose folders this code reads

OLDEST, TOO_NEW = (5, 4), (6,)
REQUIREMENT = "transformers>=5.4,<6"


def read_version(version: str) -> tuple[int, ...]:
    """The numbers that a version begins with: (5, 25, 0) of "5.25.0.dev0", none of what is no version."""
    return tuple(map(int, re.findall(r"\d+", re.match(r"[\d.]*", version)[0])))


def check_release(version: str) -> None:
    """Refuse a release of Transformers that this code does not run on.

    Raises:
        ImportError: Names the release, the range and the remedy.
    """
    if not OLDEST <= read_version(version) < TOO_NEW:
        raise ImportError(
            f"LDVC needs Transformers 5.4 or newer and below 6, and this is {version}: pip install '{REQUIREMENT}'."
        )


check_release(transformers.__version__)

import numpy as np
from PIL import Image
from torch import Tensor
from transformers.configuration_utils import PreTrainedConfig
from transformers.feature_extraction_utils import BatchFeature
from transformers.image_processing_backends import PilBackend
from transformers.image_utils import ChannelDimension, infer_channel_dimension_format
from transformers.masking_utils import create_causal_mask
from transformers.modeling_utils import PreTrainedModel
from transformers.models.auto.image_processing_auto import get_image_processor_config
from transformers.models.clip.configuration_clip import CLIPTextConfig, CLIPVisionConfig
from transformers.utils import cached_file


SUB_CONFIGS = {"text_config": CLIPTextConfig, "vision_config": CLIPVisionConfig}

try:
    from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
except ImportError:  # until 5.12
    SemanticSegmentationPostProcessorOutput = BatchFeature  # which the class above only gives a name

try:
    from transformers.configuration_utils import SubConfigSpec
except ImportError:  # until 5.19
    SubConfigSpec = None

# The argument is called `cache` from 5.24, which takes the old name with a warning; 5.40 will not take it.
_CACHE = "cache" if "cache" in inspect.signature(create_causal_mask).parameters else "past_key_values"


class TwoTowerConfig(PreTrainedConfig):
    """A configuration whose `text_config` and `vision_config` become CLIP's configurations."""

    if SubConfigSpec is not None:
        # From 5.20 the library converts them; 5.20 wants a specification, where later releases take a class too.
        sub_configs_defaults = {name: SubConfigSpec(kind) for name, kind in SUB_CONFIGS.items()}
    else:
        # Until 5.19 each configuration converts them itself, and the library reads their classes here.
        sub_configs = SUB_CONFIGS

        def __post_init__(self, **kwargs: Any):
            for name, kind in SUB_CONFIGS.items():
                value = getattr(self, name)
                if not isinstance(value, PreTrainedConfig):
                    setattr(self, name, kind(**(value or {})))
            super().__post_init__(**kwargs)


def read_preprocessing(clip: str, **options: Any) -> dict[str, Any]:
    """The settings of a CLIP's own image processor; empty where it brings none.

    Args:
        clip: Folder or Hub id.
        options: Of loading, such as `revision`.
    """
    if found := get_image_processor_config(clip, **options):
        return found
    # Until 5.12, at least, the library's function finds nothing in a folder that has the file.
    path = cached_file(clip, "preprocessor_config.json", _raise_exceptions_for_missing_entries=False, **options)
    return json.loads(Path(path).read_text(encoding="utf-8")) if path else {}


def causal_mask(config: PreTrainedConfig, hidden_states: Tensor) -> Tensor | None:
    """The mask of a causal tower in the shape that the attention implementation wants.

    Args:
        config: The tower's.
        hidden_states: (batch_size, sequence_length, hidden_size).

    Returns:
        (batch_size, 1, sequence_length, sequence_length), or `None` where the implementation needs none.
    """
    return create_causal_mask(config=config, inputs_embeds=hidden_states, attention_mask=None, **{_CACHE: None})


def enable_checkpointing(model: PreTrainedModel) -> None:
    """Keep only the inputs of layers for the backward pass; the library's method got a new name in 5.23."""
    getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()


class ImageBackend(PilBackend):
    """The library's image processing by PIL and numpy, with what it reads from 5.21 on."""

    if "input_data_format" not in inspect.signature(PilBackend.convert_to_rgb).parameters:
        # Until 5.20 grey arrays keep one channel, an alpha channel is an error, and of RGB pictures whose channels are
        # said to come first the rows are taken for channels.
        def process_image(
            self,
            image: Image.Image | np.ndarray | Tensor,
            do_convert_rgb: bool | None = None,
            input_data_format: str | ChannelDimension | None = None,
            **kwargs: Any,
        ) -> np.ndarray:
            """As the library's from 5.21 on: (channels, height, width), with `do_convert_rgb` three channels.

            Raises:
                ValueError: If the channels cannot be told.
            """
            if isinstance(image, Image.Image):
                image, input_data_format = image.convert("RGB") if do_convert_rgb else image, ChannelDimension.LAST
            array = np.asarray(image)
            if array.ndim == 2:
                array, input_data_format = array[None], ChannelDimension.FIRST
            elif input_data_format is None:
                input_data_format = infer_channel_dimension_format(array, num_channels=(1, 3, 4))
            if input_data_format == ChannelDimension.LAST:
                array = np.moveaxis(array, -1, 0)
            return on_white(array) if do_convert_rgb else array


def on_white(array: np.ndarray) -> np.ndarray:
    """Make three channels of one, or of three and an alpha channel that lets white through.

    Args:
        array: (channels, height, width); floats from 0 to 1, integers from 0 to 255.

    Raises:
        ValueError: If floats with an alpha channel are out of this range.
    """
    if len(array) == 1:
        return array.repeat(3, axis=0)
    if len(array) != 4:
        return array
    is_float = array.dtype.kind == "f"
    if is_float and not 0 <= array.min() <= array.max() <= 1:
        raise ValueError(f"an image with alpha has floats from {array.min()} to {array.max()}, outside of 0 to 1")
    white = 1.0 if is_float else 255
    alpha = array[3:] / white
    mixed = alpha * array[:3] + (1 - alpha) * white
    return (mixed if is_float else mixed.round()).astype(array.dtype)


# ---- folders of other versions


def check_saved_version(version: str | None) -> None:
    """Refuse a folder that another LDVC saved, where this code would misread it.

    Args:
        version: `ldvc_version` of its config.json; `None` where it does not say, as until 0.1.0.

    Raises:
        ValueError: Names both versions and the remedy.
    """
    saved = read_version(str(version or LDVC_VERSION))
    remedy = "or let the folder bring its own code: `trust_remote_code=True` where `ldvc` is not imported."
    if saved > read_version(LDVC_VERSION):
        raise ValueError(f"the folder was saved by LDVC {version}, and this is {LDVC_VERSION}: update LDVC, {remedy}")
    if saved < read_version(OLDEST_FOLDER):
        raise ValueError(
            f"the folder was saved by LDVC {version}, and this one, {LDVC_VERSION}, reads those from {OLDEST_FOLDER} "
            f"on: save it again with an LDVC between the two, {remedy}"
        )


def code_digest(path: Path) -> str:
    """SHA-256 of a code file, whatever its line ends."""
    return hashlib.sha256(path.read_text(encoding="utf-8").encode()).hexdigest()


def check_code(folder: Path, digests: Mapping[str, str]) -> None:
    """Refuse code files that do not belong together.

    Until 5.7 nothing is said: there the folder to which code is copied still holds files of older states.

    Args:
        folder: Where they lie.
        digests: File name -> `code_digest`, as it was published; of a file that is not there yet, nothing is said.

    Raises:
        ImportError: Names the file and the remedy.
    """
    if read_version(transformers.__version__) < (5, 8):
        return
    for name, digest in digests.items():
        if (folder / name).is_file() and code_digest(folder / name) != digest:
            raise ImportError(
                f"{name} is not the one that was published with this folder: the code files of two versions were "
                "mixed. Fetch the whole folder again; or, if you changed it yourself, empty CODE_DIGESTS in "
                "configuration_ldvc.py."
            )
