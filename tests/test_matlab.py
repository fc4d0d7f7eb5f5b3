"""Label files that MATLAB saved as version 7.3."""

import sys

import numpy as np
import pytest
from scipy.io import savemat

from ldvc.data.converters import read_label_file
from ldvc.data.matlab import is_matlab_73


IDS = np.arange(6, dtype=np.uint16).reshape(2, 3)


def save_73(path, **variables):
    """What MATLAB's save -v7.3 writes: 512 bytes of text, then HDF5 with columns first."""
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, value in variables.items():
            file[name.replace("__", "/")] = value.T
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file, Platform: GLNXA64".ljust(124) + b"\x00\x02IM")
    return path


@pytest.mark.parametrize("name", ["LabelMap", "GTcls__Segmentation"])
def test_label_maps_of_matlab_73_are_read_the_right_way_round(tmp_path, name):
    path = save_73(tmp_path / "a.mat", **{name: IDS})
    label_map, picture = read_label_file(path)
    assert np.array_equal(label_map, IDS)
    assert picture is None


def test_older_files_are_read_as_ever(tmp_path):
    savemat(tmp_path / "a.mat", {"LabelMap": IDS})
    assert not is_matlab_73(tmp_path / "a.mat")
    assert np.array_equal(read_label_file(tmp_path / "a.mat")[0], IDS)


def test_without_h5py_the_message_says_how_to_save_the_file(tmp_path, monkeypatch):
    (tmp_path / "a.mat").write_bytes(b"MATLAB 7.3 MAT-file".ljust(512) + b"\x89HDF\r\n\x1a\n")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"a\.mat: it was saved as MATLAB v7\.3, .*save it in MATLAB as v7: save\("):
        read_label_file(tmp_path / "a.mat")


def test_a_file_of_other_variables_or_a_damaged_one_says_so(tmp_path):
    path = save_73(tmp_path / "a.mat", Other=IDS)
    with pytest.raises(ValueError, match=r"a\.mat: it has no variable LabelMap or GTcls; unpack its archive again"):
        read_label_file(path)
    path.write_bytes(path.read_bytes()[:600])
    with pytest.raises(
        ValueError, match=r"a\.mat: it was saved as MATLAB v7\.3 and cannot be read \(.*\); save it as v7"
    ):
        read_label_file(path)
