"""`ldvc prepare` and `ldvc check`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ldvc.commands import end_in_one_line, make_parser


MENDS = ("first_channel", "shown_greys", "indices", "whole_numbers", "white_is_1", "colours", "first_bands")
MENDS += ("stored_pixels", "from_10_bits", "from_12_bits", "from_14_bits")  # those of ldvc/data/mend.py
ARCHIVES = ("voc2012", "coco_stuff", "pascal_context")
RASTERS = "geotiff"
EXPORTS = ("coco", "coco_panoptic", "label_studio", "cvat", "labelme")

PREPARE = """\
Turn the official archive of a benchmark into a dataset that `train.py` and `ldvc evaluate` take.

    ldvc prepare voc2012|coco_stuff|pascal_context --source FOLDER --output FOLDER [--push_to_hub ID]

Writes Parquet shards with the columns `image_id`, `image` and `label`, `classes.json` with the class names and counts,
and a dataset card. Image files are embedded byte for byte, and so are label files whose ids are kept; label maps with
other ids are written anew as grey PNG. Every file is decoded and checked first, and the first unfit one is named.

Shards are collected in a hidden folder beside the output, which appears under its name only when all are written; an
interrupted run started again goes on after the last complete shard; `ldvc/data/converters.py` says what archives hold.

    ldvc prepare coco|coco_panoptic|label_studio|cvat|labelme --source EXPORT --images FOLDER --output FOLDER

Turns what an annotation tool exported into images/, masks/ and classes.json, which training takes as it lies. Where
objects overlap, the smaller one is on top (in CVAT, z_order decides first); pixels that nothing covers get 255, no
label. A picture that cannot be used is named, and the others go on; exit code 1. --images is by default the export's
own folder.

    ldvc prepare geotiff --source FOLDER --output FOLDER [--bands 4,3,2] [--value_range 0,3000] [--tile 1024]

Cuts pairs of images/a.tif and masks/a.tif, which must lie on each other, into tiles; pixels without data get 255.
"""

CHECK = """\
Read a dataset before training and say what is wrong with it, all at once and by name.

    ldvc check FOLDER --class_names "[cat, dog, sofa]" --unseen_classes "[sofa]"
    ldvc check HUB_ID --class_names "[cat, dog]" --label_column mask --streaming --num_images 500
    ldvc check data/voc2012 --vocabulary voc2012 --reduce_labels --json check.json
    ldvc check masks FOLDER      are the label maps of ldvc segment still those that it wrote? See --help there

DATASET is what `train.py --dataset` takes: a plain folder of images/ and masks/, Parquet, save_to_disk or a Hub id.
A folder's own classes.txt or classes.json serves when neither --class_names nor --vocabulary is given.

    ldvc check FOLDER --mend shown_greys --output NEW

writes the dataset anew as a plain folder, mended as a finding says; nothing is overwritten.

Exit code: 0 fit for training; 1 warnings, with --strict; 2 errors, each of which would stop or spoil a training run.
"""

CHECK_MASKS = """\
Compare the label maps of a folder that `ldvc segment` wrote with its names.json, and with each other.

    ldvc check masks FOLDER [--json FILE]

Finds palettes that an optimiser has permuted, ids turned into colours or grey levels, ids without a name, damaged
files, and PNG and grey files of one picture that differ. Nothing is changed.

Exit code: 0 all agree; 2 at least one does not. A dataset whose folder is called masks is checked as ./masks.
"""


def prepare(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc prepare`; returns the exit code."""
    parser = make_parser("prepare", PREPARE)
    parser.add_argument("dataset", choices=(*ARCHIVES, *EXPORTS, RASTERS), help="what the source holds")
    parser.add_argument("--source", type=Path, required=True, help="folder of the unpacked archive, or the export")
    parser.add_argument("--bands", help="geotiff: bands as red, green and blue, counted from 1: 4,3,2; or one")
    parser.add_argument("--value_range", help="geotiff: values of black and white, where they are not bytes: 0,3000")
    parser.add_argument("--tile", type=int, default=1024, help="geotiff: side of a tile in pixels")
    parser.add_argument("--images", type=Path, help="folder of an export's pictures")
    parser.add_argument("--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an output of an earlier run")
    parser.add_argument(
        "--push_to_hub",
        metavar="ID",
        help="then upload to this dataset repository; private, as images keep their terms",
    )
    arguments = parser.parse_args(argv)

    def work() -> int | None:
        if arguments.dataset in EXPORTS:
            from ldvc.data.exports import convert as convert_export

            return convert_export(arguments)
        if arguments.dataset == RASTERS:
            from ldvc.data.raster_pairs import convert_pairs

            return convert_pairs(arguments)
        from ldvc.data.prepare import prepare as convert

        return convert(arguments)

    return end_in_one_line("prepare", work, goes_on=True)


def check_masks(argv: Sequence[str]) -> int:
    """Run `ldvc check masks`; returns the exit code."""
    parser = make_parser("check masks", CHECK_MASKS)
    parser.add_argument("folder", help="what --output of ldvc segment named")
    parser.add_argument("--json", help="write what is wrong to this file too")
    arguments = parser.parse_args(argv)

    def work() -> int:
        from ldvc.masks.check import run

        return run(arguments)

    return end_in_one_line("check masks", work)


def check(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc check`; returns the exit code."""
    argv = list(sys.argv[1:] if argv is None else argv)
    if len(argv) > 1 and argv[0] == "masks" and (argv[1] in ("-h", "--help") or not argv[1].startswith("-")):
        return check_masks(argv[1:])
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
