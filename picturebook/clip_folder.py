"""The tiny CLIP as a folder: an ordinary `CLIPModel`, `CLIPTokenizer` and `CLIPImageProcessor` with a fingerprint."""

import copy
import hashlib
import json
import os
import shutil
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer


CLIP_FOLDER = Path(__file__).resolve().parent / "clip"
FINGERPRINT_FILE, WEIGHTS_FILE = "fingerprint.json", "model.safetensors"
IMAGE_MEAN, IMAGE_STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


def build_clip(
    tokenizer: CLIPTokenizer, image_size: int, num_layers: int = 6, hidden_size: int = 192, text_layers: int = 3,
    text_size: int = 128, projection_dim: int = 192,
) -> CLIPModel:  # fmt: skip
    """Build an untrained CLIP with 8-pixel patches; attention heads are 64 wide in both towers.

    Args:
        tokenizer: Gives the vocabulary size, the length and the special ids.
        image_size: Side of its images in pixels.
        num_layers: Vision layers.
        hidden_size: Vision width.
        text_layers: Text layers.
        text_size: Text width.
        projection_dim: Width of the joint space.
    """
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": text_size,
            "intermediate_size": 4 * text_size,
            "num_hidden_layers": text_layers,
            "num_attention_heads": text_size // 64,
            "max_position_embeddings": tokenizer.model_max_length,
            "hidden_act": "gelu",
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "projection_dim": projection_dim,
        },
        vision_config={
            "hidden_size": hidden_size,
            "intermediate_size": 4 * hidden_size,
            "num_hidden_layers": num_layers,
            "num_attention_heads": hidden_size // 64,
            "image_size": image_size,
            "patch_size": 8,
            "hidden_act": "gelu",
            "projection_dim": projection_dim,
        },
        projection_dim=projection_dim,
    )
    return CLIPModel(config)


def build_image_processor(image_size: int) -> CLIPImageProcessorPil:
    """Image processor that resizes to a square of `image_size` pixels and crops nothing."""
    return CLIPImageProcessorPil(
        do_resize=True,
        size={"height": image_size, "width": image_size},
        do_center_crop=False,
        crop_size={"height": image_size, "width": image_size},
        image_mean=list(IMAGE_MEAN),
        image_std=list(IMAGE_STD),
    )


def resize_positions(model: CLIPModel, image_size: int):
    """Give the vision tower another image size, in place: table, ids, count and config change together.

    Args:
        model: CLIP whose images were square.
        image_size: New side in pixels, a multiple of the patch size.
    """
    embeddings = model.vision_model.embeddings
    old_grid, new_grid = embeddings.image_size // embeddings.patch_size, image_size // embeddings.patch_size
    weight = embeddings.position_embedding.weight.detach()  # (1 + old_grid**2, hidden_size)
    table = weight[1:].T.reshape(1, -1, old_grid, old_grid)
    table = nn.functional.interpolate(table, size=(new_grid, new_grid), mode="bicubic", align_corners=False)
    resized = torch.cat([weight[:1], table.flatten(2)[0].T])
    embeddings.position_embedding = nn.Embedding.from_pretrained(resized.contiguous(), freeze=False)
    embeddings.register_buffer("position_ids", torch.arange(len(resized))[None], persistent=False)
    embeddings.num_patches, embeddings.num_positions = new_grid**2, len(resized)
    embeddings.image_size = model.config.vision_config.image_size = image_size


def save_clip_folder(model: CLIPModel, tokenizer: CLIPTokenizer, image_size: int, folder: Path | str) -> str:
    """Write the folder beside its place and swap it in, so that readers see the old one or the new one.

    Weights are stored in half precision; the config asks for single precision on loading, since half is slow on CPUs.

    Args:
        model: Trained at any image size; the copy that is written has its positions resized to `image_size`.
        tokenizer: Its tokenizer.
        image_size: Side of the images in pixels.
        folder: Target; an existing one is replaced.

    Returns:
        SHA-256 of the weights file.
    """
    folder = Path(folder)
    partial, previous = (folder.with_name(f"{folder.name}.{os.getpid()}.{tag}") for tag in ("partial", "previous"))
    weights = model.state_dict()
    model = CLIPModel(copy.deepcopy(model.config))  # a deep copy of the model would copy its hooks and their trainer
    model.load_state_dict(weights)
    if model.config.vision_config.image_size != image_size:
        resize_positions(model, image_size)
    try:
        partial.mkdir(parents=True)
        model.half().save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        build_image_processor(image_size).save_pretrained(partial)
        config = json.loads((partial / "config.json").read_text())
        config["dtype"] = "float32"
        (partial / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        fingerprint = hash_weights(partial)
        stamp = {"file": WEIGHTS_FILE, "sha256": fingerprint}
        (partial / FINGERPRINT_FILE).write_text(json.dumps(stamp, indent=2) + "\n")
        for path in partial.iterdir():
            path.chmod(0o644)  # safetensors writes files that only their owner may read
        if folder.exists():
            folder.rename(previous)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(previous, ignore_errors=True)
    return fingerprint


def hash_weights(folder: Path | str) -> str:
    """SHA-256 of the weights file of a CLIP folder, in hexadecimal."""
    with open(Path(folder) / WEIGHTS_FILE, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_clip_folder(folder: Path | str = CLIP_FOLDER) -> str:
    """Make sure that a CLIP folder is the one that its fingerprint was written for.

    Returns:
        The fingerprint, the SHA-256 of the weights file.

    Raises:
        FileNotFoundError: If the folder, the weights or the fingerprint is missing.
        ValueError: If the weights are not those of the fingerprint.
    """
    folder = Path(folder)
    remedy = "restore it with `git checkout -- picturebook/clip` or make it with `python -m picturebook.pretrain_clip`"
    for name in (WEIGHTS_FILE, FINGERPRINT_FILE):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"the picturebook's CLIP folder {folder} has no {name}; {remedy}")
    expected = json.loads((folder / FINGERPRINT_FILE).read_text())["sha256"]
    found = hash_weights(folder)
    if found != expected:
        raise ValueError(f"{folder / WEIGHTS_FILE} was altered: its SHA-256 is {found}, expected {expected}; {remedy}")
    return found


def load_clip_folder(folder: Path | str = CLIP_FOLDER) -> tuple[CLIPModel, CLIPTokenizer, CLIPImageProcessorPil]:
    """Load model (float32, evaluation mode), tokenizer and image processor after `check_clip_folder`."""
    check_clip_folder(folder)
    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    return model, CLIPTokenizer.from_pretrained(folder), CLIPImageProcessorPil.from_pretrained(folder)
