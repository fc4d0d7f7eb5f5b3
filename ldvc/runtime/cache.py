"""Checkpoints exported on first use, in a folder of this machine: keyed by files, settings and code, written aside."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from ldvc.loading import one_line
from ldvc.masks.parts import is_left_over, part_suffix
from ldvc.places import PACKAGE, cache_folder, how_to_install
from ldvc.runtime.programs import EXPORT_FILE, EXPORT_VERSION


__all__ = ["checkpoint_key", "exported_folder", "is_exported_already"]

# Of a checkpoint's folder, what decides what the model computes.
CHECKPOINT_FILES = (
    *("config.json", "*.safetensors", "*.safetensors.index.json", "*.bin", "*.bin.index.json", "ldvc_adapter.json"),
    *("*processor_config.json", "tokenizer*.json", "special_tokens_map.json", "vocab.json", "merges.txt"),
)
CODE = ("model/*.py", "segmenters/*.py", "export.py", "export/*.py")
SIZES_FILE = "sizes.json"  # bytes of every file of a cached folder: one that was cut off is noticed


def checkpoint_key(model: str | Path, load_settings: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of all that an exported program depends on; needs neither PyTorch nor Transformers.

    Args:
        model: Folder or Hub id of a checkpoint, an adapter or a CLIP.
        load_settings: See `ldvc.load`.

    Raises:
        ValueError: If it is not there.
    """
    digest = hashlib.sha256(json.dumps([EXPORT_VERSION, dict(load_settings or {})], sort_keys=True).encode())
    for place in (path for pattern in CODE for path in sorted(PACKAGE.glob(pattern))):
        digest.update(place.name.encode() + place.read_bytes())
    for part in checkpoint_parts(str(model)):
        digest.update(part.encode())
    return digest.hexdigest()


def checkpoint_parts(model: str) -> Iterator[str]:
    """Yield what tells a checkpoint's content: its files with their digests, or the commit of a Hub id.

    Raises:
        ValueError: If it is not there.
    """
    folder = Path(model)
    if not folder.is_dir():
        yield f"{model}@{find_commit(model)}"
        return
    for path in sorted({path for pattern in CHECKPOINT_FILES for path in folder.glob(pattern)}):
        with path.open("rb") as file:
            yield f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}"
    if (folder / "ldvc_adapter.json").is_file():
        yield from checkpoint_parts(json.loads((folder / "ldvc_adapter.json").read_bytes())["clip"])


def find_commit(model: str) -> str:
    """The commit of a Hub id that this machine has, or after a look at the Hub will have.

    Raises:
        ValueError: If there is no such model.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(hf_hub_download(model, "config.json")).parent.name
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise ValueError(
            f"{model!r}: no such folder, and no model at hand by this Hub id ({one_line(error)})."
        ) from error


def is_exported_already(model: str | Path, load_settings: Mapping[str, Any] | None = None) -> bool:
    """Whether the cache has the program of a checkpoint."""
    return place_of(model, load_settings).is_dir()


def place_of(model: str | Path, load_settings: Mapping[str, Any] | None) -> Path:
    """Where the cache keeps, or would keep, the program of a checkpoint."""
    name = re.sub(r"[^\w.-]+", "-", "-".join(Path(model).parts[-2:])).strip("-.")[-60:]
    return cache_folder() / "exports" / f"{name}-{checkpoint_key(model, load_settings)[:24]}"


def exported_folder(
    model: str | Path, load_settings: Mapping[str, Any] | None = None, say: Callable[[str], Any] | None = None
) -> Path:
    """The exported program of a checkpoint, made on first use.

    Args:
        model: Folder or Hub id of a checkpoint, an adapter, a CLIP or a CLIPSeg.
        load_settings: See `ldvc.load`.
        say: Told in one line that an export begins.

    Raises:
        ImportError: If exporting needs what is not installed.
        ValueError: If the checkpoint cannot be exported, or what the cache has of it is damaged.
        OSError: If the cache cannot be written.
    """
    place = place_of(model, load_settings)
    if place.is_dir():
        check_whole(place)
        return place
    if say is not None:
        say(f"{model} is exported to {place}, once")
    part = place.with_name(f".{place.name}{part_suffix()}")
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        remove_left_over(place.parent)
        part.mkdir()
        export_into(model, part, dict(load_settings or {}))
        sizes = {path.name: path.stat().st_size for path in part.iterdir()}
        (part / SIZES_FILE).write_text(json.dumps(sizes))
        os.rename(part, place)
    except OSError as error:
        if place.is_dir():  # another process was faster
            return place
        what = "the disk is full" if error.errno == errno.ENOSPC else one_line(error, 160)
        raise OSError(
            f"the export of {str(model)!r} cannot be written to {place.parent} ({what}); set LDVC_CACHE to a folder "
            "with room, or use --runtime torch."
        ) from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return place


def export_into(model: str | Path, folder: Path, load_settings: dict[str, Any]) -> None:
    """Export a checkpoint.

    Raises:
        ImportError: If a package is missing.
    """
    try:
        from ldvc.export import export_folder
    except ModuleNotFoundError as error:
        raise ImportError(
            f"{str(model)!r} is to be exported on first use, which needs {error.name}: {how_to_install('export')}; or "
            "give a folder that ldvc export wrote elsewhere."
        ) from error
    export_folder(model, folder, **load_settings)


def check_whole(place: Path) -> None:
    """Check that a cached folder has all that was written into it.

    Raises:
        ValueError: If not.
    """
    try:
        sizes = json.loads((place / SIZES_FILE).read_bytes())
        wrong = next((name for name, size in sizes.items() if (place / name).stat().st_size != size), None)
        reason = None if wrong is None and EXPORT_FILE in sizes else f"{wrong or EXPORT_FILE} is cut off"
    except (OSError, ValueError, AttributeError) as error:
        reason = one_line(error, 160)
    if reason is not None:
        raise ValueError(
            f"the cached program {str(place)!r} is damaged ({reason}); delete that folder: it is made again."
        )


def remove_left_over(folder: Path) -> None:
    """Delete what stopped processes left half-exported."""
    for part in folder.glob(".*.part"):
        if is_left_over(part):
            shutil.rmtree(part, ignore_errors=True)
