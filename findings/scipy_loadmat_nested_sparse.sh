#!/usr/bin/env bash
# scipy 1.17.1: `loadmat(..., spmatrix=True)` gives sparse matrices at the top and sparse arrays inside structs.
#
# `spmatrix=True`, the default, is documented as "return sparse matrix". It holds for variables of a file; those in cells
# and structs, as in the boundaries of the Semantic Boundaries Dataset, come as csc_array. There `*` is a product of
# elements, for csc_matrix one of matrices, so code written for 1.14 computes something else without an error. No value of
# `spmatrix` brings the kind of 1.14 back.
#
# Seen:
#   scipy 1.14.1: top csc_matrix, in a struct csc_matrix, sum of inner * inner 4
#   scipy 1.17.1: top csc_matrix, in a struct csc_array, sum of inner * inner 3
#   scipy 1.17.1, spmatrix=True: in a struct csc_array
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
python="$folder/venv/bin/python"
cat > "$folder/try.py" <<'EOF'
import sys

import numpy as np
import scipy
import scipy.io
import scipy.sparse


place, expected = sys.argv[1] + "/a.mat", sys.argv[2]
matrix = scipy.sparse.csc_matrix(np.array([[1.0, 1.0], [0.0, 0.0]]))
cells = np.empty((1, 1), dtype=object)
cells[0, 0] = scipy.sparse.csc_matrix(np.array([[1.0, 1.0], [0.0, 1.0]]))
scipy.io.savemat(place, {"top": matrix, "GTcls": {"Boundaries": cells}})


def inner(**options):
    return scipy.io.loadmat(place, **options)["GTcls"]["Boundaries"][0, 0][0, 0]


top, found = scipy.io.loadmat(place)["top"], inner()
seen = (type(top).__name__, type(found).__name__)
print("scipy %s: top %s, in a struct %s, sum of inner * inner %g" % (scipy.__version__, *seen, (found * found).sum()))
assert seen == ("csc_matrix", expected), "loadmat gives other kinds now"
if expected == "csc_array":
    stated = type(inner(spmatrix=True)).__name__
    print("scipy %s, spmatrix=True: in a struct %s" % (scipy.__version__, stated))
    assert stated == "csc_array", "spmatrix holds inside structs now"
EOF
for case in "1.14.1 2.2.6 csc_matrix" "1.17.1 2.4.6 csc_array"; do
    read -r scipy numpy kind <<< "$case"
    "$python" -m pip install --quiet --no-deps --target "$folder/$scipy" "scipy==$scipy" "numpy==$numpy"
    PYTHONPATH="$folder/$scipy" "$python" -W ignore "$folder/try.py" "$folder" "$kind"
done
