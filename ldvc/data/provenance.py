"""What a result can be traced to, and how it is written: whole, or not at all."""

import functools
import hashlib
import json
import os
import subprocess
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute

from ldvc.data.samples import dataset_fingerprint, spread_rows
from ldvc.masks.parts import written_aside
from ldvc.places import ROOT


__all__ = [
    "COMMIT_VARIABLE",
    "check_writable",
    "code_version",
    "provenance",
    "stored_bytes",
    "stored_fingerprint",
    "trace_to",
    "without_nan",
    "write_json",
]

COMMIT_VARIABLE = "LDVC_COMMIT"  # for a copied folder without .git
LIBRARIES = ("torch", "transformers", "datasets", "accelerate", "evaluate", "numpy", "pillow")


@functools.cache
def code_version() -> str | None:
    """Commit of this code, "+changes" where files differ from it; `None` if neither git nor the environment knows it.

    Asked once, at the start: the checkout may move on while a process runs. In a folder without .git, or without git,
    the environment variable LDVC_COMMIT names it.
    """

    def ask(*words: str) -> str:
        try:
            done = subprocess.run(["git", *words], cwd=ROOT, capture_output=True, text=True, check=False)
        except OSError:  # no git here
            return ""
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = ask("rev-parse", "HEAD")
    if not commit:
        return os.environ.get(COMMIT_VARIABLE)
    # result files do not make code other code
    return commit + ("+changes" if ask("status", "--porcelain", "--", ".", ":!results") else "")


def trace_to(dataset: Any, seed: int | None = None) -> dict[str, Any]:
    """What every score can be traced to: commit, data, seed and library versions."""
    versions = {name: version(name) for name in LIBRARIES}
    fingerprint = dataset_fingerprint(dataset)
    return {"commit": code_version(), "dataset_fingerprint": fingerprint, "seed": seed, "versions": versions}


def provenance(model_config: Any, dataset: Any, seed: int | None = None) -> dict[str, Any]:
    """What the score of a model can be traced to: `trace_to` and its configuration."""
    config = json.loads(model_config.to_json_string(use_diff=False))
    config.pop("_name_or_path", None)  # a checkpoint that is moved keeps its hash
    config_sha256 = hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()[:16]
    return {"config_sha256": config_sha256, **trace_to(dataset, seed)}


def stored_fingerprint(dataset: Any) -> str:
    """Hash what training reads, cheaply: `dataset_fingerprint`, the sizes of all files, and some of them whole.

    Args:
        dataset: A split as given by `load_split`; of a stream, the first label maps are all that is looked at.

    Returns:
        16 hexadecimal digits.
    """
    from datasets import Dataset, Image

    digest = hashlib.sha256(dataset_fingerprint(dataset).encode())
    if isinstance(dataset, Dataset):
        for column in ("image", "label"):
            stored = dataset.select_columns(column).cast_column(column, Image(decode=False))
            for batch in stored.with_format("arrow").iter(1000):
                for cells in batch[column].chunks:
                    lengths = pyarrow.compute.binary_length(cells.field("bytes")).to_pylist()
                    files = zip(cells.field("path").to_pylist(), lengths, strict=True)
                    sizes = [Path(path).stat().st_size if length is None else length for path, length in files]
                    digest.update("".join(f"{size} " for size in sizes).encode())
            for row in spread_rows(len(stored)):
                digest.update(stored_bytes(stored[row][column]))
    return digest.hexdigest()[:16]


def stored_bytes(cell: Mapping[str, Any]) -> bytes:
    """The file of an undecoded image."""
    return Path(cell["path"]).read_bytes() if cell["bytes"] is None else cell["bytes"]


def check_writable(path: str | os.PathLike | None) -> None:
    """Refuse a place for a result before the work whose result it is; `None` is no place, and passes.

    Raises:
        OSError: If no file can be written there.
    """
    if path is None:
        return
    folder = Path(path).parent
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent  # those below it will be made
    if Path(path).is_dir():
        reason = "it is a folder"
    elif not folder.is_dir():
        reason = f"{folder} is a file"
    elif not os.access(folder, os.W_OK):
        reason = f"{folder} cannot be written to"
    else:
        return
    raise OSError(f"the result cannot be written to {str(path)!r}: {reason}; name another file.")


def without_nan(value: Any) -> Any:
    """Replace NaN by `None`, all through: JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not np.isfinite(value) else value


def write_json(data: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Write JSON aside and rename it, so that no half-written file is taken for a whole one."""
    with written_aside(Path(path)) as file:
        file.write((json.dumps(without_nan(data), indent=2) + "\n").encode())
