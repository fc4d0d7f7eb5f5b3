"""Fixtures: a tiny CLIP with its tokenizer, made here, and LDVC on top of it. Nothing comes from a network."""

import os


os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries read it

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from modeling_ldvc import LDVCForSemanticSegmentation
from processing_ldvc import LDVCProcessor


torch.set_num_threads(1)

# Single tokens of the tiny tokenizer; every other text falls back to characters.
WORDS = ("photo", "of", "cat", "dog", "sofa", "grass", "sky")
IMAGE_SIZE, PATCH_SIZE = 32, 8
TINY_FIELDS = {
    "num_vision_prompts": 3,
    "decoder_attention_heads": 4,
    "decoder_intermediate_size": 48,
    "num_regions": 2,
    "route_top_k": 2,
    "window_size": 2,
}


def build_tokenizer() -> CLIPTokenizer:
    """Byte-level BPE over `WORDS`; as in CLIP, the special tokens have the two highest ids and padding is the end."""
    alphabet = sorted(ByteLevel.alphabet())
    tokens, merges = [*alphabet, *(letter + "</w>" for letter in alphabet)], []
    for word in WORDS:
        pieces = [*word[:-1], word[-1] + "</w>"]
        for length in range(2, len(pieces) + 1):
            merges.append(("".join(pieces[: length - 1]), pieces[length - 1]))
            tokens.append("".join(pieces[:length]))
    tokens = [*dict.fromkeys(tokens), "<|startoftext|>", "<|endoftext|>"]
    vocab = {token: index for index, token in enumerate(tokens)}
    return CLIPTokenizer(vocab=vocab, merges=list(dict.fromkeys(merges)), model_max_length=77)


def build_clip(
    tokenizer: CLIPTokenizer, seed: int = 0, image_size: int = IMAGE_SIZE, patch_size: int = PATCH_SIZE, **text_fields
) -> CLIPModel:
    """Build a random CLIP of three layers per tower."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": 48,
        "intermediate_size": 64,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "image_size": image_size,
        "patch_size": patch_size,
    }
    # a large initialisation, so that images and names differ by more than rounding
    config = CLIPConfig(
        text_config=text | text_fields, vision_config=vision, projection_dim=32, initializer_factor=4.0
    )
    torch.manual_seed(seed)
    return CLIPModel(config).eval()


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def tokenizer():
    tokenizer = build_tokenizer()
    for word in WORDS:
        assert len(tokenizer(word)["input_ids"]) == 3, word  # start, word, end
    assert len(tokenizer("zebra")["input_ids"]) == 7
    return tokenizer


@pytest.fixture(scope="session")
def clip_model(tokenizer):
    """Return the tiny CLIP; never changed by a test."""
    return build_clip(tokenizer)


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory, clip_model, tokenizer):
    """Return a folder with model, tokenizer and preprocessing, as published CLIPs have them."""
    folder = tmp_path_factory.mktemp("clip")
    clip_model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
    CLIPImageProcessor(size={"shortest_edge": IMAGE_SIZE}, crop_size=side).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_model(clip_model, tokenizer):
    """Return a function that builds a tiny LDVC in eval mode with the given configuration fields."""

    def build(clip=clip_model, **config_fields) -> LDVCForSemanticSegmentation:
        torch.manual_seed(1)
        return LDVCForSemanticSegmentation.from_clip_pretrained(
            clip, tokenizer, **{**TINY_FIELDS, **config_fields}
        ).eval()

    return build


@pytest.fixture
def tiny_model(make_model):
    return make_model()


@pytest.fixture(scope="session")
def tiny_processor(clip_folder):
    return LDVCProcessor.from_clip_pretrained(clip_folder, size=IMAGE_SIZE)


@pytest.fixture
def images():
    """Return two pictures of different sizes."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 56), (33, 24))]


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(7))
