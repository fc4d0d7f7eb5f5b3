# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""LDVC's public names. Importing this module registers the Auto classes, so that no remote code is needed."""

from configuration_ldvc import LDVCConfig
from image_processing_ldvc import LDVCImageProcessor
from loss_ldvc import segmentation_loss
from modeling_ldvc import LDVCForSemanticSegmentation, LDVCImageFeatures, LDVCSemanticSegmenterOutput
from processing_ldvc import LDVCProcessor


__version__ = "0.1.0"

__all__ = [
    "LDVCConfig",
    "LDVCForSemanticSegmentation",
    "LDVCImageFeatures",
    "LDVCImageProcessor",
    "LDVCProcessor",
    "LDVCSemanticSegmenterOutput",
    "segmentation_loss",
]
