# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""LDVC's public names. Importing this package registers Auto classes and pipeline: no remote code is needed.

Names are imported when they are asked for where the command starts (`ldvc`, `python -m ldvc`), since libraries take
seconds and `ldvc --help` needs none; and where PyTorch or Transformers is not installed: `ldvc.runtime` needs neither.
"""

import importlib
import sys
from pathlib import PurePath
from typing import Any


__version__ = "0.1.0"

_HOMES = {
    "CLIPSegSegmenter": "ldvc.segmenters.clipseg",
    "InferenceSettings": "ldvc.model.inference_ldvc",
    "LDVCConfig": "ldvc.model.configuration_ldvc",
    "LDVCForSemanticSegmentation": "ldvc.model.modeling_ldvc",
    "LDVCImageFeatures": "ldvc.model.modeling_ldvc",
    "LDVCImageProcessor": "ldvc.model.image_processing_ldvc",
    "LDVCProcessor": "ldvc.model.processing_ldvc",
    "LDVCSemanticSegmenterOutput": "ldvc.model.modeling_ldvc",
    "LDVCVocabulary": "ldvc.model.vocabulary_ldvc",
    "RuntimeSegmenter": "ldvc.runtime.segmenter",
    "Segmentation": "ldvc.model.inference_ldvc",
    "TrainingFreeCLIP": "ldvc.segmenters.training_free",
    "ZeroShotImageSegmentationPipeline": "ldvc.segmenters.pipeline",
    "load": "ldvc.loading",
    "segment": "ldvc.model.inference_ldvc",
    "segmentation_loss": "ldvc.model.loss_ldvc",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    """Import a public name's module.

    Raises:
        AttributeError: If it is no public name.
        ImportError: If it needs PyTorch or Transformers, and these are missing.
        ModuleNotFoundError: If another package is.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'ldvc' has no attribute {name!r}")
    try:
        return getattr(importlib.import_module(_HOMES[name]), name)
    except ModuleNotFoundError as error:
        if not _is_missing(error):
            raise
        from ldvc.places import how_to_install

        raise ImportError(
            f"ldvc.{name} needs {error.name}, which is not installed: {how_to_install('torch')}"
        ) from error


def _is_missing(error: ModuleNotFoundError) -> bool:
    """Whether it is one of the packages that `ldvc.runtime` does without."""
    return (error.name or "").partition(".")[0] in ("huggingface_hub", "safetensors", "torch", "transformers")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])


# While Python looks for the module of `python -m`, sys.argv[0] is "-m".
if sys.argv[0] != "-m" and PurePath(sys.argv[0]).stem != "ldvc":
    try:
        globals().update({name: __getattr__(name) for name in __all__})
    except ImportError as _error:
        if not (isinstance(_error.__cause__, ModuleNotFoundError) and _is_missing(_error.__cause__)):
            raise
