"""What must work where LDVC is installed without PyTorch: `python tests/smoke_runtime.py EXPORTED_FOLDER`."""

import importlib.util
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image


sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]

import ldvc  # noqa: E402
from ldvc.places import EMBEDDED_CHECKPOINT, shipped  # noqa: E402
from ldvc.runtime import RuntimeSegmenter  # noqa: E402


NAMES = ["balloon", "cat", "grass", "sky"]


def check(is_right: bool, what: str) -> None:
    """Say what was seen, and leave if it is wrong."""
    sys.stdout.write(f"{'ok' if is_right else 'WRONG'}: {what}\n")
    if not is_right:
        sys.exit(1)


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Run the command."""
    return subprocess.run([sys.executable, "-m", "ldvc", *arguments], capture_output=True, text=True, check=False)


def main(program: str) -> None:
    """Try an exported program by the class and by the command."""
    packages = [name for name in ("torch", "transformers") if importlib.util.find_spec(name)]
    check(not packages, f"neither PyTorch nor Transformers is here {packages}")
    picture = str(shipped("assets/demo_page.jpg"))
    found = RuntimeSegmenter(program).segment(picture, NAMES)
    check(set(np.unique(found.label_map)) == {0, 1, 2, 3}, f"the class: {found.label_map.shape}")
    with tempfile.TemporaryDirectory() as folder:
        options = ("segment", picture, "--labels", ", ".join(NAMES), "--format", "grey", "--output", folder)
        done = run(*options, "--model", program)
        check(done.returncode == 0, f"the command: {done.stdout}{done.stderr}")
        same = np.array_equal(np.asarray(Image.open(Path(folder, "demo_page.grey.png"))), found.label_map)
        check(same, "both give one label map")
        done = run(*options, "--overwrite", "--model", str(EMBEDDED_CHECKPOINT))
        check(done.returncode == 2 and "pip install" in done.stderr, f"a checkpoint: {done.stderr}")
    try:
        _ = ldvc.LDVCForSemanticSegmentation
    except ImportError as error:
        check("pip install" in str(error), f"a name of PyTorch's: {error}")


if __name__ == "__main__":
    main(sys.argv[1])
