"""Label files that MATLAB saved as version 7.3, which is HDF5 and no longer what SciPy reads."""

from pathlib import Path

import numpy as np


__all__ = ["is_matlab_73", "load_matlab_73"]

HDF5_START = b"\x89HDF\r\n\x1a\n"
USER_BLOCK = 512  # bytes of text that MATLAB puts before it


def is_matlab_73(path: Path) -> bool:
    """Whether a file is HDF5, as `save -v7.3` writes it."""
    with path.open("rb") as file:
        start = file.read(USER_BLOCK + len(HDF5_START))
    return start.startswith(HDF5_START) or start[USER_BLOCK:] == HDF5_START


def load_matlab_73(path: Path) -> np.ndarray:
    """Read `LabelMap` or `GTcls.Segmentation`; HDF5 holds MATLAB's columns as rows, so it is transposed.

    Returns:
        (height, width) ids as stored.

    Raises:
        ValueError: If h5py is missing, the file is damaged, or has neither variable.
    """
    try:
        import h5py
    except ModuleNotFoundError as error:
        raise ValueError(
            "it was saved as MATLAB v7.3, which needs the package h5py (pip install h5py); or save it in MATLAB as "
            "v7: save(name, 'LabelMap', '-v7')."
        ) from error
    try:
        with h5py.File(path, "r") as file:
            found = file["GTcls"]["Segmentation"] if "GTcls" in file else file["LabelMap"]
            return np.asarray(found).T
    except KeyError as error:
        raise ValueError("it has no variable LabelMap or GTcls; unpack its archive again.") from error
    except Exception as error:  # a damaged file fails anywhere in HDF5
        raise ValueError(f"it was saved as MATLAB v7.3 and cannot be read ({error}); save it as v7.") from error
