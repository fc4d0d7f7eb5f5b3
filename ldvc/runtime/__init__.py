"""Segmentation by an exported folder, without PyTorch and Transformers: onnxruntime, tokenizers, numpy and Pillow."""

from ldvc.runtime.scores import Segmentation
from ldvc.runtime.segmenter import RuntimeSegmenter


__all__ = ["RuntimeSegmenter", "Segmentation"]
