"""What `import ldvc` and loading a checkpoint with a baked vocabulary import, and how long they take."""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.models import build_model
from benchmarks.timing import Settings, spread


TITLE = "start-up: import ldvc, loading a baked checkpoint"
GOALS: dict[str, tuple[str, float]] = {"heavy_modules": ("at most", 0)}
HEAVY = ("datasets", "accelerate", "evaluate", "matplotlib", "gradio")
ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import json, sys, time
started = time.perf_counter()
import torch, transformers.modeling_utils
libraries, known = time.perf_counter(), set(sys.modules)
import ldvc
imported = time.perf_counter()
model = ldvc.LDVCForSemanticSegmentation.from_pretrained(sys.argv[1])
loaded = time.perf_counter()
heavy = [name for name in sys.argv[2:] if name in sys.modules and name not in known]
by_library = [name for name in sys.argv[2:] if name in known]
seconds = {"torch_and_transformers": libraries - started, "ldvc": imported - libraries, "load": loaded - imported}
json.dump({"heavy": heavy, "by_library": by_library, "seconds": seconds}, sys.stdout)
"""


def measure(settings: Settings) -> dict[str, Any]:
    """Start Python anew for every round, so that nothing is imported before; the machine's file cache is warm.

    There is nothing to compare results with. `heavy` names the modules that inference should not have imported;
    `by_library` those that Transformers imports by itself where they are installed.
    """
    names = [f"thing {index}" for index in range(20)]
    with tempfile.TemporaryDirectory() as folder:
        model = build_model(
            settings,
            baked_vocabulary=True,
            class_token_ids=[[index] for index in range(len(names))],
            id2label=dict(enumerate(names)),
        )
        model.save_pretrained(folder)
        runs = [start(folder) for _ in range(1 + settings.repeats)][1:]
    heavy, by_library = (sorted({name for run in runs for name in run[key]}) for key in ("heavy", "by_library"))
    seconds = {part: spread([run["seconds"][part] for run in runs]) for part in runs[0]["seconds"]}
    return {"ratios": {"heavy_modules": len(heavy)}, "heavy": heavy, "by_library": by_library, "seconds": seconds}


def start(folder: str) -> dict[str, Any]:
    """Run the program in a fresh interpreter."""
    command = [sys.executable, "-c", PROGRAM, folder, *HEAVY]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, env=environment)
    return json.loads(done.stdout)
