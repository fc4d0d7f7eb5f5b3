# Copyright 2026 The LDVC authors. Licensed under the Apache License, Version 2.0.
"""An exported folder: programs, what they take, processor and vocabulary beside them; written aside, then in place.

ONNX Runtime alone would cut pictures of other sizes than `size_multiple(model)` without a word: the folder says the
multiple, and `ExportedLDVC`, which runs the program, checks it.
"""

import argparse
import errno
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldvc.export.graphs import check_packages, fuse_attention, quantize, write_onnx
from ldvc.export.programs import (
    TextProgram,
    example_picture,
    example_prompts,
    find_kind,
    free_axes,
    has_text_tower,
    picture_program,
    size_multiple,
    smallest_side,
)
from ldvc.loading import is_exported, load, one_line, plain_config, read_settings
from ldvc.masks.parts import part_suffix
from ldvc.model.compat_ldvc import LDVC_VERSION, code_digest
from ldvc.model.processing_ldvc import LDVCProcessor
from ldvc.model.segmenter_ldvc import Segmenter, own_names
from ldvc.model.vocabulary_ldvc import VOCABULARY_CONFIG, VOCABULARY_WEIGHTS, LDVCVocabulary, text_fingerprint
from ldvc.model.weights_ldvc import weights_fingerprint
from ldvc.places import PACKAGE
from ldvc.segmenters.exported import BAKED_FILE, ExportedLDVC
from ldvc.segmenters.exported_folder import EXPORT_FILE, ExportedFolder


PICTURE_FILE, ONNXRUNTIME_FILE, TEXT_FILE = "model.onnx", "model_onnxruntime.onnx", "text.onnx"
TORCH_FILE = "model.pt2"
CODE = ("model/*.py", "segmenters/*.py", "export/*.py")
# CLIPSeg's decoder needs 8 MB per class at 352 x 352 pixels; its tower runs again for every so many.
CLASSES_PER_CALL = {"clipseg": 64}


def export_folder(
    checkpoint: str | Path,
    folder: str | Path,
    *,
    file_format: str = "onnx",
    int8: bool = False,
    **load_settings: Any,
) -> ExportedFolder:
    """Load a checkpoint and write a whole exported folder of it.

    Args:
        checkpoint: Folder or Hub id of an LDVC, CLIP or CLIPSeg, as `ldvc.load` takes it.
        folder: See `export_model`.
        file_format: See `export_model`.
        int8: See `export_model`.
        load_settings: Further arguments of `ldvc.load`, such as `method`.

    Raises:
        ValueError: If the checkpoint cannot be loaded, or no program can be made of it.
        ImportError: If a package is missing.
        OSError: If the folder cannot be written.
    """
    if is_exported(checkpoint):
        raise ValueError(f"{str(checkpoint)!r} is exported already; give the checkpoint that it was exported from.")
    model, processor = load(checkpoint, "cpu", **load_settings)
    return export_model(
        model.float(), processor, folder, file_format=file_format, int8=int8, load_settings=load_settings
    )


def export_model(
    model: Segmenter,
    processor: LDVCProcessor,
    folder: str | Path,
    *,
    file_format: str = "onnx",
    int8: bool = False,
    load_settings: dict[str, Any] | None = None,
) -> ExportedFolder:
    """Write a whole exported folder of a model; an error leaves nothing of it.

    Args:
        model: In eval mode, float32, on the CPU.
        processor: Its processor.
        folder: Made where it does not exist; of an export that is there, the files are replaced.
        file_format: `"onnx"`, or `"torch"` for `torch.export`, without text tower, which runs from C++ too.
        int8: Quantise the weights of the picture program's matrix products dynamically: activations are quantised at
            run time, and no pictures are needed to calibrate. A quarter of the size; the logits change a little. The
            text program stays float32.
        load_settings: What the model was loaded with, to be told.

    Returns:
        What the folder says of itself.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is missing.
        ValueError: If no program can be made of this model; see `picture_program`.
        OSError: If the folder cannot be written.
    """
    folder = Path(folder).absolute()
    find_kind(model)  # before anything is written
    part = folder.with_name(f".{folder.name}{part_suffix()}")
    try:
        part.mkdir(parents=True)
        described = write_folder(model, processor, part, file_format, int8, load_settings or {})
        move_into_place(part, folder)
    except OSError as error:
        reason = "the disk is full" if error.errno == errno.ENOSPC else one_line(error, 160)
        failure = OSError(
            f"{folder} cannot be written ({reason}), and nothing was left there; free some space, or choose another "
            "folder."
        )
        failure.errno = error.errno
        raise failure from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return described


def move_into_place(part: Path, folder: Path) -> None:
    """Give a whole folder its name; into one that is there the files go one by one, the one that counts at the end."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EXPORT_FILE).unlink(missing_ok=True)
    for name in (VOCABULARY_CONFIG, VOCABULARY_WEIGHTS, BAKED_FILE):  # of another model, unless they come anew
        (folder / name).unlink(missing_ok=True)
    for path in sorted(part.iterdir(), key=lambda path: path.name == EXPORT_FILE):
        os.replace(path, folder / path.name)


def write_folder(
    model: Segmenter,
    processor: LDVCProcessor,
    folder: Path,
    file_format: str,
    int8: bool,
    load_settings: dict[str, Any],
) -> ExportedFolder:
    """Write programs, processor, vocabulary and their description."""
    write: Callable[..., dict[str, Any]] = write_torch if file_format == "torch" else write_programs
    files = write(model, folder, **({"int8": True} if int8 else {}))
    processor.save_pretrained(folder)
    write_vocabulary(model, processor, folder)
    described = ExportedFolder(**describe(model, processor, file_format), **files, load_settings=load_settings)
    described.write(folder)
    return described


def write_programs(model: Segmenter, folder: Path, int8: bool = False) -> dict[str, Any]:
    """Write both programs as ONNX; returns their fields."""
    fields = write_pictures(model, folder, int8)
    if has_text_tower(model):
        inputs, axes = example_prompts(model), free_axes(model)[1]
        write_onnx(TextProgram(model).eval(), inputs, axes, "text_embeds", folder / TEXT_FILE)
        fields["text_program"] = TEXT_FILE
    return fields


def write_pictures(model: Segmenter, folder: Path, int8: bool = False) -> dict[str, Any]:
    """Write the picture program as ONNX, of standard operators and of ONNX Runtime's own; returns its fields.

    Raises:
        ImportError: If onnx, onnxscript or onnxruntime is missing.
    """
    check_packages()
    program, axes = picture_program(model), free_axes(model)[0]
    write_onnx(program, example_picture(model), axes, "logits", folder / PICTURE_FILE)
    if int8:
        quantize(folder / PICTURE_FILE)
    fuse_attention(folder / PICTURE_FILE, folder / ONNXRUNTIME_FILE)
    return {
        "picture_program": PICTURE_FILE,
        "onnxruntime_program": ONNXRUNTIME_FILE,
        "precision": "int8" if int8 else "float32",
        "one_picture_at_a_time": int8 or find_kind(model) == "clipseg",
    }


def write_torch(model: Segmenter, folder: Path) -> dict[str, Any]:
    """Write the picture program for `torch.export`; returns its fields."""
    with torch.no_grad():
        exported = torch.export.export(
            picture_program(model), (), example_picture(model), dynamic_shapes=free_axes(model)[0], strict=False
        )
    torch.export.save(exported, folder / TORCH_FILE)
    return {"picture_program": TORCH_FILE, "one_picture_at_a_time": find_kind(model) == "clipseg"}


def describe(model: Segmenter, processor: LDVCProcessor, file_format: str) -> dict[str, Any]:
    """Fields of [`ExportedFolder`] that do not depend on the files."""
    config, kind, images = model.config, find_kind(model), processor.image_processor
    has_prompts = getattr(model, "text_prompts", None) is not None
    return {
        "kind": kind,
        "format": file_format,
        "size_multiple": size_multiple(model),
        "smallest_side": smallest_side(model, file_format),
        "num_channels": config.vision_config.num_channels,
        "projection_dim": config.projection_dim,
        "max_length": config.text_config.max_position_embeddings,
        "pad_token_id": processor.tokenizer.pad_token_id,
        "prompt_templates": list(processor.prompt_templates),
        "image": {
            "size": dict(images.size),
            "resample": int(images.resample),
            "mean": list(images.image_mean),
            "std": list(images.image_std),
            "rescale_factor": images.rescale_factor,
            "value_range": images.value_range,
            **{name: bool(getattr(images, name)) for name in ("do_resize", "do_rescale", "do_normalize")},
        },
        "source": describe_source(model),
        "unit_embeds": kind != "clipseg",
        "classes_at_a_time": CLASSES_PER_CALL.get(kind),
        "prompt_token_ids": config.prompt_token_ids if has_prompts else None,
        "default_class_names": own_names(model),
        "other_label": getattr(config, "other_label", None),
        "seen_classes": getattr(config, "seen_classes", None),
        "seen_score_offset": float(getattr(config, "seen_score_offset", 0)),
        "ldvc_version": LDVC_VERSION,
    }


def describe_source(model: Segmenter) -> dict[str, str]:
    """SHA-256 of weights, configuration and code that programs are made from, and an LDVCVocabulary's name of them."""
    paths = (path for pattern in CODE for path in sorted(PACKAGE.glob(pattern)))
    code = "".join(f"{path.name} {code_digest(path)}\n" for path in paths)
    found = {
        "weights": weights_fingerprint(model.state_dict()),
        "config": hashlib.sha256(json.dumps(plain_config(model.config), sort_keys=True).encode()).hexdigest(),
        "code": hashlib.sha256(code.encode()).hexdigest(),
    }
    if find_kind(model) != "clipseg":  # whose embeddings are no unit vectors, as those of a vocabulary are
        text = text_fingerprint(model) if has_text_tower(model) else getattr(model.config, "text_fingerprint", None)
        found |= {} if text is None else {"text_fingerprint": text}
    return found


def write_vocabulary(model: Segmenter, processor: LDVCProcessor, folder: Path) -> None:
    """Write the model's own classes, for `LDVCVocabulary.load(folder)`; a baked vocabulary as an array alone."""
    if not own_names(model):
        return
    if model.baked_vocabulary is not None:
        np.save(folder / BAKED_FILE, model.baked_vocabulary().numpy())
        return
    config = model.config
    with torch.no_grad():
        embeds = model._default_class_embeds()  # with the synonyms and templates that they were set with
    LDVCVocabulary(
        class_names=config.default_class_names,
        class_embeds=embeds,
        fingerprint=text_fingerprint(model),
        class_token_ids=config.class_token_ids,
        prompt_class_ids=config.prompt_class_ids,
        prompt_templates=list(processor.prompt_templates),
        other_label=config.other_label,
    ).save(folder)


# ---- the command


@torch.no_grad()
def measure_agreement(
    model: Segmenter, program: Callable[[Tensor, Tensor], Tensor], pixel_values: Tensor, class_embeds: Tensor
) -> dict[str, float]:
    """Compare a program with the model on pictures.

    Args:
        model: The model it was exported from.
        program: Of pixels and class embeddings, such as [`ExportedLDVC`].
        pixel_values: (num_images, num_channels, height, width).
        class_embeds: (num_classes, projection_dim).

    Returns:
        `same_class`, the share of tokens whose best class is the same, 0 to 1, and `largest_difference` of logits.
    """
    same, largest = [], 0.0
    for pixels in pixel_values.split(1):
        expected = model(pixel_values=pixels, class_embeds=class_embeds).logits
        logits = program(pixels, class_embeds)
        same.append((expected.argmax(dim=1) == logits.argmax(dim=1)).float().mean().item())
        largest = max(largest, (expected - logits).abs().max().item())
    return {"same_class": float(np.mean(same)), "largest_difference": largest}


def export_checkpoint(arguments: argparse.Namespace) -> None:
    """Run `ldvc export`: write the folder, say what it takes, compare on pictures.

    Raises:
        ValueError: If the checkpoint is not whole, or there are no classes of its own to compare with.
    """
    settings = read_settings(arguments.method, arguments.setting)
    model, processor = load(arguments.checkpoint, "cpu", **settings)
    if arguments.check and not own_names(model):
        raise ValueError("--check compares the checkpoint's own classes, and it has none; see set_vocabulary.")
    model = model.float()
    described = export_model(
        model,
        processor,
        arguments.output,
        file_format=arguments.format,
        int8=arguments.int8,
        load_settings=settings,
    )
    sys.stdout.write(
        f"{arguments.output / described.picture_program}: any class list; sides are multiples of "
        f"{described.size_multiple} pixels from {described.smallest_side} on; "
        f"{'one picture' if described.one_picture_at_a_time else 'any number of pictures'} per call; "
        f"{'new names by ' + described.text_program if described.text_program else 'no text tower'}.\n"
    )
    if arguments.check:
        pictures = [Image.open(path) for path in arguments.check]
        pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            embeds = model._default_class_embeds()
        agreement = measure_agreement(model, ExportedLDVC(arguments.output), pixels, embeds)
        sys.stdout.write(
            f"same class in {agreement['same_class']:.4f} of the tokens of {len(pictures)} picture(s); logits differ "
            f"by at most {agreement['largest_difference']:.2g}.\n"
        )
