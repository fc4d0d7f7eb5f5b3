"""Where the files lie that come with the code: at the root of a checkout, inside the package of an installed wheel."""

import os
import re
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path


__all__ = ["EMBEDDED_CHECKPOINT", "PACKAGE", "ROOT", "cache_folder", "how_to_install", "shipped"]

PACKAGE = Path(__file__).resolve().parent
ROOT = PACKAGE.parent  # of the checkout; of an installed package, the folder of all packages

# The small checkpoint that comes with the code: every command works on it without a download.
EMBEDDED_CHECKPOINT = ROOT / "picturebook" / "ldvc"


def shipped(place: str) -> Path:
    """Find a file or folder that comes with the code, such as "recipes/picturebook_inductive.yaml".

    Args:
        place: Below the root of the repository.

    Returns:
        Where it is in a checkout; in a wheel, which has it inside the package, where it is there.
    """
    inside = PACKAGE / place
    return inside if inside.exists() else ROOT / place


def how_to_install(extra: str) -> str:
    """The command that installs an extra: in the checkout, or its packages by name where there is none."""
    if (ROOT / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]' in the checkout"
    try:
        listed = requires("ldvc") or []
    except PackageNotFoundError:  # run from a copied folder
        listed = []
    wanted = [line.partition(";")[0].strip() for line in listed if re.search(rf"extra == .{extra}\b", line)]
    return "pip install " + " ".join(f"'{name}'" for name in wanted or [f"ldvc[{extra}]"])


def cache_folder() -> Path:
    """Where exports, embeddings and measurements are kept: LDVC_CACHE, or the platform's folder for such things."""
    if set_by_user := os.environ.get("LDVC_CACHE"):
        return Path(set_by_user).expanduser()
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches" / "ldvc"
    if sys.platform == "win32":
        return Path(os.environ.get("LOCALAPPDATA", Path.home() / "AppData" / "Local")) / "ldvc" / "Cache"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ldvc"
