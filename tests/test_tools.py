"""The recipes of docs/tools.md give back every pixel under its name."""

import pytest

from benchmarks.readers import write_results
from benchmarks.readers_probe import recipes, run_recipe


NAMES = ["cat", "sofa", "grass", "empty", "sky"]


@pytest.mark.parametrize("package", sorted(recipes()))
def test_a_recipe_finds_what_was_written(package, tmp_path):
    for needed in {"pycocotools", "rasterio", package}:  # the first two write the files
        pytest.importorskip(needed)
    expected = write_results(tmp_path / "masks", NAMES)
    assert run_recipe(recipes()[package], tmp_path, expected) == "pixels and names"
