#!/usr/bin/env bash
# accelerate 1.15.0: two settings of `Accelerator(...)` that are not what is computed, without a word.
#
# 1. `gradient_accumulation_steps=1`, stated by the program, gives way to the environment variable
#    ACCELERATE_GRADIENT_ACCUMULATION_STEPS. One would expect the argument to win, as `mixed_precision=` does over
#    ACCELERATE_MIXED_PRECISION. A GradientAccumulationPlugin does win.
# 2. `mixed_precision="fp16"` on a CPU: `accelerator.mixed_precision` says "fp16" to the end, though no autocast is
#    entered; only the attribute `native_amp` tells.
#
# Seen:
#   stated 1, environment 4: 4 steps; as a plugin: 1
#   mixed_precision says fp16, a linear layer gives torch.float32, native_amp False
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet torch==2.13.0 accelerate==1.15.0 numpy==2.4.6
cat > "$folder/try.py" <<'EOF'
import os

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import GradientAccumulationPlugin


os.environ["ACCELERATE_GRADIENT_ACCUMULATION_STEPS"] = "4"
stated = Accelerator(cpu=True, gradient_accumulation_steps=1).gradient_accumulation_steps
AcceleratorState._reset_state(reset_partial_state=True)
plugin = Accelerator(
    cpu=True, gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1)
).gradient_accumulation_steps
print(f"stated 1, environment 4: {stated} steps; as a plugin: {plugin}")
AcceleratorState._reset_state(reset_partial_state=True)
half = Accelerator(cpu=True, mixed_precision="fp16")
dtype = half.prepare(torch.nn.Linear(2, 2))(torch.zeros(1, 2)).dtype
print(f"mixed_precision says {half.mixed_precision}, a linear layer gives {dtype}, native_amp {half.native_amp}")
assert (stated, plugin) == (4, 1), "accelerate asks the environment otherwise now"
assert (half.mixed_precision, dtype, half.native_amp) == ("fp16", torch.float32, False), "fp16 is handled otherwise now"
EOF
OMP_NUM_THREADS=1 "$folder/venv/bin/python" "$folder/try.py"
