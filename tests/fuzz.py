"""Fuzzing of everything that reads a user's file: pictures, recipes, vocabularies.

    python -m tests.fuzz pictures --seconds 180
    python -m tests.fuzz recipes --seconds 180 --seed 7
    python -m tests.fuzz vocabularies --seconds 180

Good inputs are damaged at random, one seed gives one sequence of cases. A reader may take a case, or refuse it with
one of its own errors, whose message is not empty; any other error, and any case that takes longer than `MAX_SECONDS`,
is a finding. `test_security.py` runs two seconds of it with every change.
"""

import argparse
import hashlib
import io
import json
import random
import signal
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import datasets
import numpy as np
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from safetensors.torch import load, save
from torch import Tensor

from ldvc.app import session
from ldvc.data import samples
from ldvc.masks.files import open_picture
from ldvc.masks.writer import is_whole
from ldvc.model.image_processing_ldvc import LDVCImageProcessor
from ldvc.model.vocabulary_ldvc import VOCABULARY_CONFIG, VOCABULARY_WEIGHTS, LDVCVocabulary
from ldvc.training.recipe import DEFAULT_RECIPE, read_recipe


ROOT = Path(__file__).resolve().parents[1]
MAX_SECONDS = 10.0  # of one case; the slowest good one takes a fraction of a second
NAMES = ["cat", "dog", "sofa", "grass"]
EXTREMES = (0, 1, 0x7F, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


class Hang(BaseException):
    """A case that took too long; no `Exception`, so that no reader swallows it."""


@dataclass
class Findings:
    """What a run of cases gave.

    Attributes:
        cases: How many were read.
        taken: How many of them were accepted.
        errors: Kind and place of each wrong error -> traceback and case of the first one.
    """

    cases: int = 0
    taken: int = 0
    errors: dict[str, str] = field(default_factory=dict)


@contextmanager
def at_most(seconds: float) -> Iterator[None]:
    """Stop the block when it takes longer."""

    def stop(*_: object) -> None:
        raise Hang(f"more than {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# ---- damage


def damage(content: bytes, others: list[bytes], rng: random.Random) -> bytes:
    """Change bytes: flips, extreme numbers, cuts, doubled and foreign parts, up to eight times."""
    data = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 4, 8))):
        at = rng.randrange(len(data) + 1)
        # headers decide most, so that every other change is near the start
        at = min(at, rng.randrange(64)) if rng.random() < 0.5 else at
        length = rng.choice((1, 2, 4, 16, 64))
        kind = rng.randrange(6)
        if kind == 0:
            data[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            number = rng.choice(EXTREMES)
            data[at : at + 4] = struct.pack(rng.choice("<>") + "I", number)
        elif kind == 2:
            del data[at : at + length]
        elif kind == 3:
            data[at:at] = data[at : at + length] * rng.choice((1, 2, 50))
        elif kind == 4:
            other = rng.choice(others)
            start = rng.randrange(len(other) + 1)
            data[at : at + length] = other[start : start + length]
        else:
            del data[at:]
    return bytes(data)


def mend_png(content: bytes) -> bytes:
    """Give the chunks of a PNG right sums again, so that damage gets past the first check."""
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack(">I", data[at : at + 4])
        if at + 12 + length > len(data):
            break
        data[at + 8 + length : at + 12 + length] = struct.pack(">I", zlib.crc32(data[at + 4 : at + 8 + length]))
        at += 12 + length
    return bytes(data)


# ---- pictures


def good_pictures() -> list[tuple[str, bytes]]:
    """Small files of many formats and modes: suffix and content."""
    rng = np.random.default_rng(0)
    rgb = Image.fromarray(rng.integers(0, 256, (9, 13, 3), dtype=np.uint8))
    grey = rgb.convert("L")
    exif = Image.Exif()
    exif[0x0112] = 6
    deep = Image.fromarray(rng.integers(0, 65536, (9, 13), dtype=np.uint16))
    wanted = [
        ("png", rgb, {}),
        ("png", rgb.convert("P"), {"transparency": 3}),
        ("png", grey.convert("LA"), {}),
        ("png", deep, {}),
        ("png", grey.convert("1"), {}),
        ("jpg", rgb, {"exif": exif}),
        ("jpg", rgb.convert("CMYK"), {}),
        ("jpg", rgb, {"progressive": True}),
        ("gif", rgb.convert("P"), {"save_all": True, "append_images": [grey.convert("P")]}),
        ("bmp", rgb, {}),
        ("tif", rgb, {"compression": "tiff_lzw"}),
        ("tif", Image.fromarray(rng.random((9, 13), dtype=np.float32)), {}),
        ("webp", rgb, {}),
        ("webp", rgb.convert("RGBA"), {"lossless": True}),
        ("ppm", rgb, {}),
        ("tga", rgb, {"compression": "tga_rle"}),
        ("jp2", rgb, {}),
        ("avif", rgb, {}),
        ("ico", rgb, {}),
    ]
    Image.init()
    kinds = {"jpg": "jpeg", "tif": "tiff", "jp2": "jpeg2000"}
    files = []
    for suffix, image, options in wanted:
        name = kinds.get(suffix, suffix).upper()
        if name not in Image.SAVE:
            continue  # AVIF and JPEG 2000 depend on the build of Pillow
        stream = io.BytesIO()
        image.save(stream, name, **options)
        files.append((suffix, stream.getvalue()))
    return files


class Rows:
    """A dataset whose every cell holds one file, decoded when it is asked for, as `datasets` does."""

    def __init__(self, content: bytes):
        self.cell = {"bytes": content, "path": None}

    def __getitem__(self, index: int) -> dict[str, Image.Image]:
        return {name: datasets.Image().decode_example(self.cell) for name in ("image", "label")}


def fuzz_pictures(folder: Path, rng: random.Random) -> Iterator[tuple[bytes, list[Callable[[], object]], tuple]]:
    """Yield damaged pictures with their readers: command line, page, processor, label maps and data sets."""
    files, processor = good_pictures(), LDVCImageProcessor(size={"height": 16, "width": 16})
    contents = [content for _, content in files]
    while True:
        suffix, content = rng.choice(files)
        case = damage(content, contents, rng)
        if suffix == "png" and rng.random() < 0.7:
            case = mend_png(case)
        path = folder / f"case.{suffix}"
        path.write_bytes(case)
        rows = Rows(case)
        readers = [
            lambda path=path: open_picture(path),
            lambda path=path: session.read_picture(path),
            lambda path=path: processor.load_rgb(path),
            lambda path=path: processor(Image.new("RGB", (13, 9)), segmentation_maps=path, return_tensors="pt"),
            lambda path=path: processor(path, return_tensors="pt"),
            lambda rows=rows: samples.read_sample(rows, 0),
            lambda path=path: is_whole(path),
        ]
        yield case, readers, (ValueError,)


# ---- recipes

NASTY = (
    "", "~", "true", "-1", "0", "1e400", ".nan", ".inf", "99999999999999999999999", "[]", "{}", "[[[[]]]]", "''",
    "a: b", "'\\0'", '"\\u202e"', "!!python/object/apply:os.system ['true']", "!!python/name:os.system",
    "!!binary aGk=", "2026-01-01", "2026-13-41", "&a [*a]", "*b", "!!set {a}", "!!timestamp x", "!!int x", "!!float x",
    "!!bool x", "!!binary é", "0x1F", "1_000", "0o17", "12:30:45", "..", "../../etc/passwd", "=", "<<", "? a",
    "|\n  text", "[cat, cat]", "[1, 2]", "[1, two]", "[0.5, .nan]", "? [a, b]", "{? [a]: b}", "{? {a: b}: c}",
)  # fmt: skip


def fuzz_recipes(folder: Path, rng: random.Random) -> Iterator[tuple[bytes, list[Callable[[], object]], tuple]]:
    """Yield recipes with foreign values, doubled lines and damaged bytes, and command lines."""
    good = [path.read_text() for path in sorted((ROOT / "recipes").glob("*.yaml"))]
    keys = sorted({line.partition(":")[0] for text in good for line in text.splitlines() if line[:1].isalpha()})
    keys += ["base", "model", "num_vision_prompts", "route_top_k", "id2label", "seed", "prompt_template"]
    path = folder / "recipe.yaml"
    while True:
        lines = rng.choice(good).splitlines()
        for _ in range(rng.choice((1, 2, 4))):
            at = rng.randrange(len(lines) + 1)
            line = f"{rng.choice(keys)}: {rng.choice(NASTY)}"
            lines[at : at + rng.randrange(2)] = [line]
        content = "\n".join(lines).encode()
        if rng.random() < 0.4:
            content = damage(content, [value.encode() for value in NASTY], rng)
        path.write_bytes(content)
        words = [f"--{rng.choice(keys)}", rng.choice(NASTY), f"--{rng.choice(keys)}={rng.choice(NASTY)}"]

        calls = ([str(path)], [str(DEFAULT_RECIPE), *words], words)
        readers = [lambda argv=argv: read_recipe(argv).get_vocabulary() for argv in calls]
        yield content + " ".join(words).encode(), readers, (ValueError, StrictDataclassError)


# ---- vocabularies


def make_vocabulary(folder: Path) -> None:
    """Write a good vocabulary of four names."""
    import torch

    embeds = torch.nn.functional.normalize(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)), dim=-1)
    vocabulary = LDVCVocabulary(
        class_names=NAMES,
        class_embeds=embeds,
        fingerprint=hashlib.sha256(b"weights").hexdigest(),
        class_token_ids=[[1, 2, index] for index in range(4)],
        prompt_class_ids=None,
        prompt_templates=["a photo of a {}"],
        synonyms={name: [name] for name in NAMES},
        other_label="other",
    )
    vocabulary.save(folder)


JSON_VALUES = (
    None, True, 0, -1, 1e308, 2**70, "", "cat", "\x00", "\u202e", "\ud800", [], {}, [[]], [None], ["cat"], ["cat"] * 4,
    [[1]] * 4, {"cat": None}, {"cat": ["cat"]}, [0, 1, 2, 3], ["a photo of a {}"], ["{}"] * 2, "0" * 64, [["x"]] * 4,
    [1.5] * 4, "x" * 5000,
)  # fmt: skip


def fuzz_vocabularies(folder: Path, rng: random.Random) -> Iterator[tuple[bytes, list[Callable[[], object]], tuple]]:
    """Yield vocabularies with damaged files, and with wrong content under a right sum."""
    make_vocabulary(folder)
    good = {name: (folder / name).read_bytes() for name in (VOCABULARY_WEIGHTS, VOCABULARY_CONFIG)}
    embeds = load(good[VOCABULARY_WEIGHTS])["class_embeds"]
    while True:
        files = dict(good)
        if rng.random() < 0.4:
            name = rng.choice(list(good))
            files[name] = damage(good[name], list(good.values()), rng)
        else:
            files = wrong_content(files, embeds, rng)
        for name, data in files.items():
            (folder / name).write_bytes(data)
        yield b"|".join(files.values()), [lambda: LDVCVocabulary.load(folder)], (ValueError,)


def wrong_content(files: dict[str, bytes], embeds: Tensor, rng: random.Random) -> dict[str, bytes]:
    """Put wrong values and tensors into the files of a vocabulary, with the sum that belongs to them."""
    content, weights = json.loads(files[VOCABULARY_CONFIG]), files[VOCABULARY_WEIGHTS]
    for _ in range(rng.choice((0, 1, 2))):
        content[rng.choice([*content, "class_embeds", "__class__", "extra"])] = rng.choice(JSON_VALUES)
    kind = rng.randrange(3)
    if kind == 0:
        wrong = rng.choice((embeds.double(), embeds[:2], embeds * 2, embeds * float("nan"), embeds.int(), embeds[0]))
        weights = save({rng.choice(("class_embeds", "fingerprint", "self")): wrong.contiguous()})
    elif kind == 1:
        weights = damage(weights, [weights], rng)
    del content["sha256"]
    content["sha256"] = hashlib.sha256(weights + json.dumps(content, sort_keys=True).encode()).hexdigest()
    return {VOCABULARY_WEIGHTS: weights, VOCABULARY_CONFIG: json.dumps(content).encode()}


# ---- running

FUZZERS = {"pictures": fuzz_pictures, "recipes": fuzz_recipes, "vocabularies": fuzz_vocabularies}


def fuzz(name: str, seconds: float, seed: int = 0, max_cases: int | None = None) -> Findings:
    """Run cases of one reader until the time is over.

    Args:
        name: One of `FUZZERS`.
        seconds: How long.
        seed: Of the sequence of cases.
        max_cases: Stop after so many.
    """
    findings, end = Findings(), time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for case, readers, allowed in FUZZERS[name](Path(temporary), random.Random(seed)):
            findings.cases += 1
            for number, read in enumerate(readers):
                run_case(read, allowed, case, number, findings)
            if time.monotonic() > end or findings.cases == max_cases:
                return findings
    return findings


def run_case(read: Callable[[], object], allowed: tuple, case: bytes, number: int, findings: Findings) -> None:
    """Read one case with one reader, and keep what goes wrong."""
    try:
        with at_most(MAX_SECONDS):
            read()
        findings.taken += 1
    except allowed as error:
        if str(error).strip():
            return
        place, text = "no message", traceback.format_exc()
    except (Exception, Hang) as error:
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if str(ROOT) in frame.filename and "tests" not in frame.filename]
        where = own[-1] if own else frames[-1]
        place = f"{type(error).__name__} in {Path(where.filename).name}:{where.name}"
        text = traceback.format_exc()
    else:
        return
    findings.errors.setdefault(f"reader {number}: {place}", f"{text}\ncase: {case[:2000]!r}")


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=FUZZERS)
    parser.add_argument("--seconds", type=float, default=180.0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    findings = fuzz(arguments.name, arguments.seconds, arguments.seed)
    sys.stdout.write(f"{arguments.name}: {findings.cases} cases, {findings.taken} reads accepted\n")
    for place, text in findings.errors.items():
        sys.stdout.write(f"\n==== {place}\n{text}\n")
    return 1 if findings.errors else 0


if __name__ == "__main__":
    sys.exit(main())
