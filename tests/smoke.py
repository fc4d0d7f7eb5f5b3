"""What must work wherever LDVC is installed, however: `python tests/smoke.py`, from any folder, with that Python.

A mask by the command, the pipeline, the public names, and `ldvc doctor`; nothing of the checkout and of the network.
"""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from transformers import pipeline

import ldvc
from ldvc.places import EMBEDDED_CHECKPOINT, shipped


os.environ["HF_HUB_OFFLINE"] = "1"
sys.path[:] = [place for place in sys.path if Path(place or ".").resolve() != Path(__file__).resolve().parent]


NAMES = ["balloon", "cat", "grass", "sky"]


def check(is_right: bool, what: str) -> None:
    """Say what was seen, and leave if it is wrong."""
    sys.stdout.write(f"{'ok' if is_right else 'WRONG'}: {what}\n")
    if not is_right:
        sys.exit(1)


def run(*arguments: str) -> subprocess.CompletedProcess:
    """Run the command as users do who have it on their path, in a folder with nothing of ours."""
    script = Path(sys.executable).with_name("ldvc")
    command = [str(script)] if script.exists() and not os.environ.get("PYTHONPATH") else [sys.executable, "-m", "ldvc"]
    return subprocess.run([*command, *arguments], capture_output=True, text=True, check=False)


def main() -> None:
    """Try everything in a temporary folder."""
    picture = shipped("assets/demo_page.jpg")
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        sys.stdout.write(f"ldvc {ldvc.__version__} in {Path(ldvc.__file__).parent}\n")
        done = run("segment", str(picture), "--labels", ", ".join(NAMES), "--format", "png", "--output", "masks")
        check(done.returncode == 0 and Path("masks", "demo_page.png").is_file(), f"segment {done.stdout}{done.stderr}")
        segment = pipeline("zero-shot-image-segmentation", model=str(EMBEDDED_CHECKPOINT))
        found = {answer["label"] for answer in segment(str(picture), candidate_labels=NAMES)}
        check(found == set(NAMES), f"pipeline: {', '.join(sorted(found))}")
        check(ldvc.LDVCForSemanticSegmentation.__module__ == "ldvc.model.modeling_ldvc", "one home for the model")
        done = run("doctor")
        check(done.returncode == 0, f"doctor\n{done.stdout}{done.stderr}")


if __name__ == "__main__":
    main()
