"""Fixtures: a tiny CLIP with its tokenizer, made here, and LDVC on top of it. Nothing comes from a network."""

import copy
import gc
import logging
import os
import struct
import zlib


os.environ["HF_HUB_OFFLINE"] = "1"  # before the libraries read it

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, register_random, settings
from PIL import Image
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPSegConfig,
    CLIPSegForImageSegmentation,
    CLIPSegProcessor,
    CLIPTokenizer,
    ViTImageProcessor,
)

from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation
from ldvc.model.processing_ldvc import LDVCProcessor


torch.set_num_threads(1)


class TorchRandom:
    """PyTorch's random numbers, which Hypothesis then seeds alike for every draw: what it prints repeats all of it."""

    seed = staticmethod(torch.manual_seed)
    getstate = staticmethod(torch.get_rng_state)
    setstate = staticmethod(torch.set_rng_state)


TORCH_RANDOM = TorchRandom()  # Hypothesis holds it weakly
register_random(TORCH_RANDOM)
# A failing draw is printed with the line that repeats it; a busy machine is no failure.
settings.register_profile("ldvc", print_blob=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ldvc")

# Single tokens of the tiny tokenizer; every other text falls back to characters.
WORDS = ("photo", "of", "cat", "dog", "sofa", "grass", "sky")
SCENE_NAMES = ["cat", "dog", "sofa", "grass"]
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


def build_clipseg(seed=0, **fields):
    """A random CLIPSeg of three layers per tower, two of which its decoder reads."""
    tokenizer = build_tokenizer()
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
    text = {**tower, "vocab_size": len(tokenizer), "bos_token_id": tokenizer.bos_token_id}
    text |= {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    options = {"projection_dim": 32, "reduce_dim": 16, "extract_layers": [0, 1], "decoder_intermediate_size": 48}
    config = CLIPSegConfig(
        text_config=text,
        vision_config={**tower, "image_size": IMAGE_SIZE, "patch_size": 8},
        initializer_factor=0.05,  # the decoder's published start saturates every probability
        **{**options, **fields},
    )
    torch.manual_seed(seed)
    model = CLIPSegForImageSegmentation(config).eval()
    with torch.no_grad():  # names must matter more than rounding
        for module in (model.clip.text_projection, model.decoder.film_mul, model.decoder.film_add):
            module.weight.mul_(8)
    return model


def pytest_collection_finish():
    """What the libraries made stays to the end; looking through it again and again took a sixth of the time."""
    gc.freeze()


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
def clipseg_model():
    """Return the tiny CLIPSeg; never changed by a test."""
    return build_clipseg()


@pytest.fixture(scope="session")
def clipseg_folder(tmp_path_factory, clipseg_model):
    """Return a folder with a CLIPSeg and its processor, as published ones have them; its pictures are 24 x 24."""
    folder = tmp_path_factory.mktemp("clipseg")
    clipseg_model.save_pretrained(folder)
    images = ViTImageProcessor(size={"height": 24, "width": 24}, image_mean=[0.4, 0.5, 0.6], image_std=[0.3] * 3)
    CLIPSegProcessor(images, build_tokenizer()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def make_model(clip_model, tokenizer):
    """Return a function that builds a tiny LDVC in eval mode with the given configuration fields."""

    built: dict[str, LDVCForSemanticSegmentation] = {}

    def build_anew(clip, fields) -> LDVCForSemanticSegmentation:
        torch.manual_seed(1)
        return LDVCForSemanticSegmentation.from_clip_pretrained(clip, tokenizer, **{**TINY_FIELDS, **fields}).eval()

    def build(clip=clip_model, **config_fields) -> LDVCForSemanticSegmentation:
        if clip is not clip_model:
            return build_anew(clip, config_fields)
        key = repr(sorted(config_fields.items()))
        if key not in built:  # most tests ask for the same few, and a copy takes half the time
            built[key] = build_anew(clip, config_fields)
        torch.manual_seed(1)
        return copy.deepcopy(built[key])

    return build


@pytest.fixture
def tiny_model(make_model):
    return make_model()


@pytest.fixture(scope="session")
def tiny_processor(clip_folder):
    return LDVCProcessor.from_clip_pretrained(clip_folder, size=IMAGE_SIZE)


@pytest.fixture(scope="module")
def checkpoint(make_model, tiny_processor, tmp_path_factory):
    """Return the folder of a tiny checkpoint whose own vocabulary is cat, dog and sofa."""
    folder = tmp_path_factory.mktemp("checkpoint")
    model = make_model()
    model.set_vocabulary(["cat", "dog", "sofa"], tiny_processor)
    model.save_pretrained(folder)
    tiny_processor.save_pretrained(folder)
    return folder


@pytest.fixture
def ldvc():
    """Return a function that runs the command line in this process."""
    from typer.testing import CliRunner

    from ldvc.__main__ import app

    return lambda *arguments: CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def images():
    """Return two pictures of different sizes."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (h, w, 3), dtype=np.uint8)) for h, w in ((40, 56), (33, 24))]


@pytest.fixture
def pixel_values():
    return torch.randn(2, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(7))


@pytest.fixture
def fresh_accelerator():
    """Accelerate keeps its first settings for the life of a process."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def told(caplog, monkeypatch):
    """The library's log, which does not reach pytest's otherwise."""
    for name in ("transformers", "ldvc.train"):
        monkeypatch.setattr(logging.getLogger(name), "propagate", True)
    return caplog


@pytest.fixture
def inputs(request, tiny_processor, pixel_values):
    """Return two images and the class names `NAMES` of the test's own file, as the model takes them."""
    names = request.module.NAMES
    return {"pixel_values": pixel_values, **tiny_processor(class_names=names, return_tensors="pt")}


@pytest.fixture
def labels(request):
    """Return label maps of these images over the same names."""
    return torch.randint(0, len(request.module.NAMES), (2, 32, 32))


def png_of(width, height):
    """A PNG of a few bytes that says it has so many pixels."""
    chunks = b"\x89PNG\r\n\x1a\n"
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(b"\0" * 1000)), (b"IEND", b"")):
        chunks += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    return chunks


# The start of a script that cannot import LDVC, also where the checkout is installed in editable mode.
HIDE_LDVC = """
import json, sys
import torch

torch.set_num_threads(1)


class NotInstalled:
    def find_spec(self, name, path=None, target=None):
        if path is None and name.endswith("ldvc"):
            raise ModuleNotFoundError(f"{name} is hidden")


sys.meta_path.insert(0, NotInstalled())
"""


# ---- a tiny training run

# A model and steps that take a second.
TINY_RECIPE = {
    "class_names": SCENE_NAMES,
    "unseen_classes": ["sofa"],
    "num_vision_prompts": 2,
    "decoder_attention_heads": 4,
    "decoder_intermediate_size": 32,
    "num_regions": 2,
    "route_top_k": 2,
    "crop_size": 32,
    "image_scale": [40, 40],
    "short_side": 32,
    "window": 0,
    "num_workers": 0,
    "num_pictures": 0,
    "cpu": True,
}


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Ten scenes of four colour blocks, one per class; the last row of pixels is unlabelled."""
    from datasets import Dataset, Features
    from datasets import Image as ImageFeature

    rng = np.random.default_rng(0)
    colors = np.array([[200, 40, 40], [40, 200, 40], [40, 40, 200], [200, 200, 40]])
    columns = {"image": [], "label": []}
    for _ in range(10):
        quarters = rng.permutation(4)
        label = np.kron(quarters.reshape(2, 2), np.ones((20, 20), int)).astype(np.uint8)
        pixels = np.clip(colors[label] + rng.normal(0, 10, (40, 40, 3)), 0, 255).astype(np.uint8)
        label[-1] = 255
        columns["image"].append(Image.fromarray(pixels))
        columns["label"].append(Image.fromarray(label))
    features = Features({"image": ImageFeature(), "label": ImageFeature()})
    folder = tmp_path_factory.mktemp("scenes")
    for split in ("train", "validation"):
        Dataset.from_dict(columns, features=features).to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder


@pytest.fixture
def train_arguments(scenes, clip_folder, tmp_path, monkeypatch):
    """Command line of a run of six steps; without pictures and curves, which would be most of its time."""
    import yaml

    monkeypatch.setattr("ldvc.training.run.save_curves", lambda records, path: None)
    monkeypatch.setattr("datasets.config.SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)  # five seconds at the end of a stream

    recipe = TINY_RECIPE | {
        "dataset": str(scenes),
        "clip": str(clip_folder),
        "max_steps": 6,
        "batch_size": 4,
        "warmup_steps": 2,
        "log_every": 1,
        "save_every": 2,
        "output_dir": str(tmp_path / "run"),
    }
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return [str(path)]


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """Return a function that gives the folder of the run of `train_arguments`: trained once, to be read or copied."""
    from accelerate.state import AcceleratorState

    from ldvc.commands.training import train

    kept = {}

    def get(train_arguments):
        if not kept:
            AcceleratorState._reset_state(reset_partial_state=True)
            kept["folder"] = tmp_path_factory.mktemp("whole") / "run"
            assert train([*train_arguments, "--output_dir", str(kept["folder"])]) == 0
            AcceleratorState._reset_state(reset_partial_state=True)
        return kept["folder"]

    return get


@pytest.fixture
def finished_run(whole_run, train_arguments, tmp_path):
    """Return the output folder of `train_arguments` as that run left it."""
    import shutil

    return shutil.copytree(whole_run(train_arguments), tmp_path / "run")
