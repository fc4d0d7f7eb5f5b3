#!/usr/bin/env bash
# datumaro 1.13.0: a COCO file whose category ids begin with 0 loses its first class.
#
# COCO says of `category_id` only that it is an integer that stands in `categories`, and pycocotools takes 0 like any
# other. Datumaro reads both categories, but gives the object of category 0 no label; the one of category 1 is right.
# One log line is all that says so.
#
# Seen:
#   categories read: cat, dog
#   object of category 0 has the label None; object of category 1 has the label dog
set -euo pipefail
folder="$(mktemp -d)"
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet datumaro==1.13.0 numpy pillow
cat > "$folder/try.py" <<'EOF'
import json
import sys
from pathlib import Path

import numpy as np
from datumaro.components.annotation import AnnotationType
from datumaro.components.dataset import Dataset
from PIL import Image


root = Path(sys.argv[1]) / "data"
(root / "images").mkdir(parents=True)
(root / "annotations").mkdir()
Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(root / "images" / "a.jpg")
square = {"image_id": 1, "iscrowd": 0, "area": 9, "bbox": [1, 1, 3, 3], "segmentation": [[1, 1, 4, 1, 4, 4, 1, 4]]}
content = {
    "images": [{"id": 1, "file_name": "a.jpg", "width": 8, "height": 8}],
    "categories": [{"id": 0, "name": "cat", "supercategory": ""}, {"id": 1, "name": "dog", "supercategory": ""}],
    "annotations": [square | {"id": 1, "category_id": 0}, square | {"id": 2, "category_id": 1}],
}
(root / "annotations" / "instances_train.json").write_text(json.dumps(content))
dataset = Dataset.import_from(str(root), "coco_instances")
names = [label.name for label in dataset.categories()[AnnotationType.label]]
labels = {a.id: None if a.label is None else names[a.label] for item in dataset for a in item.annotations}
print("categories read:", ", ".join(names))
print(f"object of category 0 has the label {labels[1]}; object of category 1 has the label {labels[2]}")
assert names == ["cat", "dog"] and labels == {1: None, 2: "dog"}, "datumaro reads category 0 otherwise now"
EOF
"$folder/venv/bin/python" "$folder/try.py" "$folder"
