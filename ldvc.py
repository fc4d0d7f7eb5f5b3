# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""LDVC's public names. Importing this module registers Auto classes and pipeline: no remote code is needed."""

from configuration_ldvc import LDVCConfig
from image_processing_ldvc import LDVCImageProcessor
from inference_ldvc import InferenceSettings, Segmentation, segment
from loss_ldvc import segmentation_loss
from modeling_ldvc import LDVCForSemanticSegmentation, LDVCImageFeatures, LDVCSemanticSegmenterOutput
from pipeline_ldvc import ZeroShotImageSegmentationPipeline
from processing_ldvc import LDVCProcessor
from vocabulary_ldvc import LDVCVocabulary


__version__ = "0.1.0"

__all__ = [
    "InferenceSettings",
    "LDVCConfig",
    "LDVCForSemanticSegmentation",
    "LDVCImageFeatures",
    "LDVCImageProcessor",
    "LDVCProcessor",
    "LDVCSemanticSegmenterOutput",
    "LDVCVocabulary",
    "Segmentation",
    "ZeroShotImageSegmentationPipeline",
    "segment",
    "segmentation_loss",
]
