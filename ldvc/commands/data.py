"""`ldvc prepare` and `ldvc check`."""

from collections.abc import Sequence
from pathlib import Path

from ldvc.commands import end_in_one_line, make_parser


MENDS = ("first_channel", "shown_greys", "indices", "whole_numbers", "white_is_1", "colours", "first_bands")
MENDS += ("stored_pixels", "from_10_bits", "from_12_bits", "from_14_bits")  # those of ldvc/data/mend.py
ARCHIVES = ("voc2012", "coco_stuff", "pascal_context")

PREPARE = """\
Turn the official archive of a benchmark into a dataset that `train.py` and `ldvc evaluate` take.

    ldvc prepare voc2012|coco_stuff|pascal_context --source FOLDER --output FOLDER [--push_to_hub ID]

Writes Parquet shards with the columns `image_id`, `image` and `label`, `classes.json` with the class names and counts,
and a dataset card. Image files are embedded byte for byte, and so are label files whose ids are kept; label maps with
other ids are written anew as grey PNG. Every file is decoded and checked first, and the first unfit one is named.

Shards are collected in a hidden folder beside the output, which appears under its name only when all are written; an
interrupted run started again goes on after the last complete shard; `ldvc/data/converters.py` says what archives hold.
"""

CHECK = """\
Read a dataset before training and say what is wrong with it, all at once and by name.

    ldvc check FOLDER --class_names "[cat, dog, sofa]" --unseen_classes "[sofa]"
    ldvc check HUB_ID --class_names "[cat, dog]" --label_column mask --streaming --num_images 500
    ldvc check data/voc2012 --vocabulary voc2012 --reduce_labels --json check.json

DATASET is what `train.py --dataset` takes: a plain folder of images/ and masks/, Parquet, save_to_disk or a Hub id.
A folder's own classes.txt or classes.json serves when neither --class_names nor --vocabulary is given.

    ldvc check FOLDER --mend shown_greys --output NEW

writes the dataset anew as a plain folder, mended as a finding says; nothing is overwritten.

Exit code: 0 fit for training; 1 warnings, with --strict; 2 errors, each of which would stop or spoil a training run.
"""


def prepare(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc prepare`; returns the exit code."""
    parser = make_parser("prepare", PREPARE)
    parser.add_argument("dataset", choices=ARCHIVES, help="what the source holds")
    parser.add_argument("--source", type=Path, required=True, help="folder of the unpacked archive")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an output of an earlier run")
    parser.add_argument(
        "--push_to_hub",
        metavar="ID",
        help="then upload to this dataset repository; private, as images keep their terms",
    )
    arguments = parser.parse_args(argv)

    def work() -> None:
        from ldvc.data.prepare import prepare as convert

        convert(arguments)

    return end_in_one_line("prepare", work)


def check(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc check`; returns the exit code."""
    parser = make_parser("check", CHECK)
    parser.add_argument("dataset", help="a folder, a Hub id, or 'picturebook'")
    parser.add_argument("--class_names", help='names in the order of the ids: "[cat, dog]"')
    parser.add_argument("--unseen_classes", help="those of them whose masks must not train")
    parser.add_argument("--vocabulary", help="a known class list, such as voc2012")
    parser.add_argument("--reduce_labels", action="store_true", help="label maps count from 1, 0 is background")
    parser.add_argument("--split", nargs="+", default=["train", "validation"], help="the first one trains")
    parser.add_argument("--dataset_config", help="configuration of a dataset that has several")
    parser.add_argument("--dataset_revision", help="commit, branch or tag of a Hub dataset")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--label_column", default="label")
    parser.add_argument("--streaming", action="store_true", help="read a Hub dataset without downloading all of it")
    parser.add_argument("--num_images", type=int, help="only the first so many of each split")
    parser.add_argument("--patch_size", type=int, default=16, help="pixels; that of the CLIP to train")
    parser.add_argument("--max_examples", type=int, default=5, help="samples named per problem; all are counted")
    parser.add_argument("--num_workers", type=int, default=2, help="threads")
    parser.add_argument("--strict", action="store_true", help="exit code 1 if there are warnings")
    parser.add_argument("--mend", choices=MENDS, help="write the dataset anew, as a finding says; see --output")
    parser.add_argument("--output", help="with --mend: the plain folder to make; nothing is overwritten")
    parser.add_argument("--colours", help='with --mend colours: "{0: [0, 0, 0], 1: [220, 20, 60]}"')
    parser.add_argument("--json", help="write everything to this file too")
    arguments = parser.parse_args(argv)

    def work() -> int:
        import picturebook  # noqa: F401 - registers the embedded world
        from ldvc.data.check import run

        return run(arguments)

    return end_in_one_line("check", work)
