"""Programs without this code, ONNX and torch.export: pixels and class embeddings to logits, tokens to embeddings.

model.onnx               (batch, channels, height, width), (classes, dim) -> (batch, classes, grid)
model_onnxruntime.onnx   the same on the same weights file, with ONNX Runtime's own attention
text.onnx                (prompts, length) token ids and attention mask -> (prompts, dim)
ldvc_export.json         what they take, see ldvc/segmenters/exported_folder.py
"""

from ldvc.export.folder import export_checkpoint, export_folder, export_model, measure_agreement


__all__ = ["export_checkpoint", "export_folder", "export_model", "measure_agreement"]
