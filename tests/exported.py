"""Exported folders for tests of the runtime."""

import json
from pathlib import Path

import torch
from torch import nn

from ldvc.export import export_onnx, write_vocabulary
from ldvc.loading import load


def export_folder(model, folder, **load_settings):

    loaded, processor = load(model, "cpu", **load_settings)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    export_onnx(loaded.float(), folder)
    sizes = json.loads((folder / "ldvc_export.json").read_text())
    processor.save_pretrained(folder)
    if loaded.config.num_default_classes:
        write_vocabulary(loaded, processor, folder)

    class Text(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = loaded

        def forward(self, input_ids, attention_mask):
            return self.model.get_class_embeds(input_ids, attention_mask)

    example = processor(class_names=["cat", "dog grass", "sofa"], return_tensors="pt")
    free = {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO}
    program = torch.onnx.export(
        Text(),
        (example["input_ids"], example["attention_mask"]),
        dynamo=True,
        dynamic_shapes={"input_ids": free, "attention_mask": free},
        input_names=["input_ids", "attention_mask"],
        output_names=["text_embeds"],
    )
    program.save(str(folder / "text.onnx"))
    own = processor.image_processor
    content = {
        "export_version": 2,
        "kind": "ldvc",
        "format": "onnx",
        "precision": "float32",
        "picture_program": "model.onnx",
        "text_program": "text.onnx",
        "size_multiple": sizes["size_multiple"],
        "smallest_side": sizes["smallest_side"],
        "num_channels": 3,
        "projection_dim": loaded.config.projection_dim,
        "default_class_names": list(loaded.config.default_class_names),
        "other_label": loaded.config.other_label,
        "seen_classes": loaded.config.seen_classes,
        "seen_score_offset": loaded.config.seen_score_offset,
        "prompt_templates": list(processor.prompt_templates),
        "max_length": 77,
        "pad_token_id": processor.tokenizer.pad_token_id,
        "image": {
            "size": dict(own.size),
            "resample": int(own.resample),
            "mean": list(own.image_mean),
            "std": list(own.image_std),
            "rescale_factor": own.rescale_factor,
        },
        "source": {"weights": "0" * 64, "code": "0" * 64},
    }
    (folder / "ldvc_export.json").write_text(json.dumps(content))
