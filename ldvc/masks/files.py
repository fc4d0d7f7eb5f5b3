"""Pictures for the command line: finding them, naming what is made of them, opening them safely."""

from __future__ import annotations

import glob
import os
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import IO

from PIL import Image, UnidentifiedImageError

from ldvc.loading import one_line


# What a folder is searched for; a file that is named itself is tried whatever its suffix.
PICTURE_SUFFIXES = frozenset(
    f".{kind}"
    for kind in (
        "avif",
        "bmp",
        "gif",
        "jfif",
        "jp2",
        "jpeg",
        "jpg",
        "pbm",
        "pgm",
        "png",
        "ppm",
        "tga",
        "tif",
        "tiff",
        "webp",
    )
)
MAX_PIXELS = 178_956_970  # Pillow's own limit: more in one file is taken for a decompression bomb


@dataclass(frozen=True)
class Picture:
    """A file to segment.

    Attributes:
        path: The file, or what a picture without one is called.
        name: Output path below the output folder, without a suffix.
    """

    path: Path
    name: PurePath

    @property
    def file_name(self) -> str:
        """The file below the folder that was searched, as tools look for it; of a file named itself, its name."""
        return PurePath(*self.path.parts[-len(self.name.parts) :]).as_posix()

    def read(self, max_pixels: int, value_range: Sequence[float] | None = None) -> Image.Image:
        """Decode it, under a `pixel_limit`; see `decode_picture`."""
        return decode_picture(self.path, max_pixels, value_range)


@dataclass
class Found:
    """What a search gave.

    Attributes:
        pictures: Each file once, in the order of the arguments, folders sorted.
        failures: What cannot be read, as (argument, reason).
        left_out: How many files of searched folders have a suffix of no picture format that is read, such as ".heic".
    """

    pictures: list[Picture] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)

    def describe_left_out(self) -> str:
        """What was left out, in words; empty where nothing was."""
        counts = ", ".join(f"{count} {suffix}" for suffix, count in sorted(self.left_out.items()))
        return f"Left out, as no picture format that is searched for: {counts}." if counts else ""


def find_pictures(arguments: Sequence[str], recursive: bool = False, output: Path | None = None) -> Found:
    """Find the pictures that files, folders and glob patterns name.

    A picture found in a folder is named by its path below that folder, any other by its file name; the suffix is left
    out. Pictures that would get one name keep their suffix.

    Args:
        arguments: Files, folders, patterns such as `photos/*.jpg` or `photos/**/*.jpg`.
        recursive: Search folders below folders too.
        output: A folder to leave out, whose pictures are results.

    Raises:
        ValueError: If there is no picture at all, two have one name even with their suffix, or a folder to search is
            the one to leave out.
    """
    found, seen = Found(), set()
    for argument in arguments:
        files = list(expand(argument, recursive, output, found))
        for path, name in files:
            key = os.path.realpath(path)
            if key not in seen:
                seen.add(key)
                found.pictures.append(Picture(path, name))
    if not found.pictures:
        reasons = "; ".join(f"{argument}: {reason}" for argument, reason in found.failures[:3])
        raise ValueError(f"no picture to segment: {reasons} {found.describe_left_out()}".rstrip())
    found.pictures = drop_suffixes(found.pictures)
    return found


def expand(argument: str, recursive: bool, output: Path | None, found: Found) -> Iterator[tuple[Path, PurePath]]:
    """Yield the files of one argument, each with its name and suffix; note in `found` what gives none."""
    path, failures = Path(argument), found.failures
    if path.is_dir():
        is_empty = True
        for file in search_folder(path, recursive, output, found):
            is_empty = False
            yield file, file.relative_to(path)
        if is_empty:
            hint = "" if recursive else "; --recursive searches the folders below it too"
            failures.append((argument, f"the folder holds no picture{hint}."))
    elif path.is_file():
        yield path, PurePath(path.name)
    elif glob.has_magic(argument):
        files = [Path(match) for match in sorted(glob.glob(argument, recursive=True)) if os.path.isfile(match)]
        if not files:
            failures.append((argument, "no file matches this pattern."))
        yield from ((file, PurePath(file.name)) for file in files)
    else:
        failures.append((argument, "no such file."))


def search_folder(folder: Path, recursive: bool, output: Path | None, found: Found) -> Iterator[Path]:
    """Yield the pictures of a folder, sorted; hidden files (`._photo.jpg` of macOS) are no pictures.

    Raises:
        ValueError: If it is the folder to leave out.
    """

    def note(error: OSError) -> None:
        found.failures.append((str(error.filename), f"the folder cannot be read ({error.strerror})."))

    left_out = None if output is None else os.path.realpath(output)
    if os.path.realpath(folder) == left_out:
        raise ValueError(
            f"{str(folder)!r} is searched for pictures and is the output folder too, so that results would be taken "
            "for pictures; choose another with --output."
        )
    for parent, folders, files in os.walk(folder, onerror=note):
        if recursive:
            folders[:] = sorted(name for name in folders if os.path.realpath(Path(parent, name)) != left_out)
        else:
            folders.clear()
        for name in sorted(files):
            suffix = Path(name).suffix.lower()
            if suffix in PICTURE_SUFFIXES and not name.startswith("."):
                yield Path(parent, name)
            elif not name.startswith("."):
                found.left_out[suffix or "without suffix"] += 1


def drop_suffixes(pictures: Iterable[Picture]) -> list[Picture]:
    """Leave the suffix out of every name that stays the only one of its kind; capitals do not tell files apart.

    Raises:
        ValueError: If two names are the same even with their suffix.
    """
    pictures = list(pictures)
    names = [picture.name.with_suffix("") for picture in pictures]
    while True:
        groups = defaultdict(list)
        for index, name in enumerate(names):
            groups[str(name).casefold()].append(index)
        doubles = [group for group in groups.values() if len(group) > 1]
        if not doubles:
            return [Picture(picture.path, name) for picture, name in zip(pictures, names, strict=True)]
        for group in doubles:
            short = [index for index in group if names[index] != pictures[index].name]
            if not short:
                first, second = (str(pictures[index].path) for index in group[:2])
                raise ValueError(
                    f"{first!r} and {second!r} have one file name, so one would overwrite the other's results; "
                    "segment them into two output folders, or give their common folder with --recursive."
                )
            for index in short:
                names[index] = pictures[index].name


def parse_value_range(text: str | None) -> tuple[float, float] | None:
    """Read "0,4095": the values of pictures that are black and white.

    Raises:
        ValueError: If it is no such pair.
    """
    if text is None:
        return None
    from ldvc.model.pixels_ldvc import check_value_range

    try:
        return check_value_range([float(part) for part in text.split(",")])
    except ValueError as error:
        raise ValueError(
            f"--value-range {text!r} is no pair of numbers, the first below the second: 0,4095."
        ) from error


@contextmanager
def pixel_limit(max_pixels: int | None) -> Iterator[None]:
    """Let Pillow open pictures of up to `max_pixels` pixels (`None`: of any size), without warnings on the way.

    The limit is the whole process's: around threads that decode pictures, not in them.
    """
    own_limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None if max_pixels is None else max_pixels / 2  # Pillow refuses twice as many
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of bombs below the limit, and of broken EXIF data, which does no harm
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = own_limit


def open_picture(path: Path, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Open a picture and decode it.

    Args:
        path: Any file that Pillow reads; of several frames, the first.
        max_pixels: Limit of width times height, checked before anything is decoded.

    Returns:
        RGB picture, upright.

    Raises:
        ValueError: If it is no picture, is damaged or over the limit.
    """
    with pixel_limit(max_pixels):
        return decode_picture(path, max_pixels)


def decode_picture(
    source: Path | IO[bytes], max_pixels: int, value_range: Sequence[float] | None = None
) -> Image.Image:
    """Decode a picture under a `pixel_limit` that is set already; otherwise as `open_picture`.

    Args:
        source: File, or its open content.
        max_pixels: That of the limit, for the message.
        value_range: The values that are black and white, where it has no 8 bits.

    Raises:
        ValueError: If it is no picture, is damaged or over the limit, or nothing says what its values mean.
    """
    from ldvc.model.pixels_ldvc import to_rgb

    try:
        with Image.open(source) as image:
            return to_rgb(image, value_range)
    except Image.DecompressionBombError as error:
        raise ValueError(
            f"more than {max_pixels:,} pixels, perhaps a decompression bomb; raise --max-pixels if you trust the file."
        ) from error
    except UnidentifiedImageError as error:
        raise ValueError("no picture, or of a format that Pillow does not read; convert it to PNG or JPEG.") from error
    except MemoryError as error:
        raise ValueError("it does not fit into memory; make it smaller.") from error
    except ValueError as error:
        raise ValueError(one_line(error).removeprefix(f"{source} ")) from error
    except Exception as error:  # decoders raise nearly anything at damaged files
        raise ValueError(f"cannot be read ({one_line(error, 160)}).") from error
