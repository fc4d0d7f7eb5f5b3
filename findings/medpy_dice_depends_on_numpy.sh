#!/usr/bin/env bash
# medpy 0.5.2: the Dice of a class that neither mask has is 1.0 with one NumPy and NaN with the next.
#
# `medpy.metric.binary.dc` divides by the sum of both sizes and catches ZeroDivisionError, for which it gives 1.0. The
# sizes come from `numpy.count_nonzero`, which gave a Python integer and gives a NumPy one now: dividing that by zero
# raises nothing, so the 1.0 is never reached. A mean over classes, of which a scan rarely has all, becomes NaN; where
# NaN is left out (`nanmean`), it is a lower mean than the same code gave before. Neither package was changed in its
# documents for it, and the version of MedPy is the same.
#
# Seen:
#   numpy 2.0.2: dice 1.0, count_nonzero gives int
#   numpy 2.4.6: dice nan, count_nonzero gives int64
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
cat > "$folder/try.py" <<'EOF'
import sys

import numpy as np
from medpy.metric.binary import dc


nothing = np.zeros((4, 4), int)
seen = (str(float(dc(nothing, nothing))), type(np.count_nonzero(nothing)).__name__)
print("numpy %s: dice %s, count_nonzero gives %s" % (np.__version__, *seen))
assert seen == tuple(sys.argv[1:]), "medpy or numpy behaves otherwise now"
EOF
"$python" -m pip install --quiet --no-deps --target "$folder/medpy" medpy==0.5.2
for case in "2.0.2 1.0 int" "2.4.6 nan int64"; do
    read -r numpy dice kind <<< "$case"
    "$python" -m pip install --quiet --no-deps --target "$folder/$numpy" "numpy==$numpy" scipy==1.16.3
    PYTHONPATH="$folder/$numpy:$folder/medpy" "$python" -W ignore "$folder/try.py" "$dice" "$kind"
done
