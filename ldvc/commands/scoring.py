"""`ldvc evaluate` and `ldvc forgetting`."""

import argparse
import itertools
from collections.abc import Sequence

from ldvc.commands import end_in_one_line, make_parser
from ldvc.data.vocabularies import SEEN_SCORE_OFFSETS, SETTINGS, VOCABULARIES


EVALUATE = """\
Score a checkpoint under the generalised zero-shot protocol, on one or several processes with the same numbers.

    ldvc evaluate CHECKPOINT --dataset FOLDER_OR_HUB_ID --vocabulary voc2012 --reduce_labels
    accelerate launch --num_processes 4 -m ldvc evaluate CHECKPOINT --dataset ... --output results.json
    ldvc evaluate CLIP_FOLDER --training_free --dataset ...       the floor: CLIP without training
    ldvc evaluate COCO_CHECKPOINT --setting cross_dataset --vocabulary pascal_context --dataset ...

    ldvc evaluate CLIP_FOLDER --method naclip --protocol voc21 --dataset ...       as training-free CLIPs are scored

All classes compete in one arg-max; unlabelled pixels do not count. The table is given without and with 0.1 subtracted
from the probability of seen classes, as the literature does. `--protocol` scores any checkpoint or CLIP by the
published protocol of a benchmark instead, with its class names, sizes and thresholds: see docs/training_free.md.

A checkpoint is scored under a setting (default: inductive) only if protocol.json, the audit of its training, agrees:
same weights, classes and split, no mask of an unseen class. `--allow_protocol_mismatch` scores it all the same and
says in the result what does not fit. A checkpoint without a whole audit is scored and marked "unaudited". What the
audit covers, and what it cannot know (docs/audit.md): nothing but protocol.json changed by hand makes it say
"matches" of weights that another protocol trained.

The label maps are read before anything is scored. Classes that no labelled pixel shows are named under the table; a
group without any, seen or unseen, has no score.

With `--predictions FOLDER` the label maps stay on disk, and an evaluation that was stopped goes on from them.
"""

FORGETTING = """\
What fine-tuning cost: a model before and after, on the labels that trained it, on others, and on absent ones.

    ldvc forgetting BEFORE AFTER --dataset FOLDER_OR_HUB_ID --class_names "[cat, dog]" --unseen_classes "[dog]"
    ldvc forgetting BEFORE AFTER --dataset OWN --old_dataset OLD --old_vocabulary voc2012 --output report.json
    ldvc forgetting CLIP_FOLDER AFTER --training_free_before --dataset FOLDER        against CLIP without training

Three groups of labels, by what AFTER was trained on:

- **seen**: its masks trained AFTER. mIoU.
- **unseen**: named, without masks. mIoU, and once more over those of them whose masks trained BEFORE.
- **absent**: neither trained nor in the picture. The share of labelled pixels that such names take from the right
  ones, and that of the pixels which they claim at a probability of 0.5 when asked for alone: on objects of trained
  classes (the complaint that after fine-tuning any prompt finds the trained object) and elsewhere. Lower is better.

Differences come with 95 % intervals over images, both checkpoints on the same resampled images. Seen scores are not
lowered (offset 0). Under `accelerate launch` every process takes its share of the images.
"""

# What has no effect with or without `--protocol`, and defaults without.
NOT_WITH_PROTOCOL = ("vocabulary", "class_names", "unseen_classes", "seen_share", "setting")
NOT_WITH_PROTOCOL += (
    "allow_protocol_mismatch",
    "reduce_labels",
    "offsets",
    "permute_unseen_names",
    "floor",
    "predictions",
)
ONLY_WITH_PROTOCOL = ("protocol_of", "settings", "names", "smoothing", "softmax_scale", "threshold", "area_threshold")
WITHOUT_PROTOCOL = {"short_side": 512, "window": 512, "image_stats": "imagenet", "method": "value"}

# Further datasets of `ldvc forgetting`, by the prefix of their options, which are those of --dataset by default.
OTHER_DATASETS = ("old_", "absent_")
HOW_TO_LOAD = ("dataset_config", "dataset_revision", "split", "image_column", "label_column")


def evaluate(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc evaluate`; returns the exit code."""
    arguments = read_evaluate(argv)

    def work() -> None:
        import picturebook  # noqa: F401 - registers the embedded world
        from ldvc.processes import leave_processes

        if arguments.protocol:
            from ldvc.scoring.dense_benchmarks import run
        else:
            from ldvc.scoring.evaluate import run

        run(arguments)
        leave_processes()

    return end_in_one_line("evaluate", work, goes_on=bool(arguments.predictions))


def read_evaluate(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the arguments of `ldvc evaluate`; none that has no effect is accepted."""
    parser = evaluate_parser()
    arguments = parser.parse_args(argv)
    if (arguments.checkpoint is None) == (arguments.model is None):
        parser.error("name one checkpoint or CLIP: as the first argument, or by --model.")
    arguments.checkpoint = arguments.checkpoint or arguments.model
    del arguments.model
    for name in NOT_WITH_PROTOCOL if arguments.protocol else ONLY_WITH_PROTOCOL:
        if getattr(arguments, name) != parser.get_default(name):
            rule = "is decided by --protocol" if arguments.protocol else "belongs to --protocol"
            parser.error(f"--{name} {rule}; leave it out.")
    if arguments.seen_share != 1 and arguments.setting not in ("inductive", "transductive"):
        parser.error(f"--seen_share is of a split that holds classes out, which {arguments.setting} does not.")
    if arguments.offsets and (arguments.training_free or arguments.setting == "cross_dataset"):
        parser.error("--offsets lower seen classes, which a CLIP without training and cross_dataset do not have.")
    if not arguments.protocol:
        if arguments.method and not arguments.training_free:
            parser.error("--method is of a CLIP without training; add --training_free, or leave it out.")
        for name, value in WITHOUT_PROTOCOL.items():
            if getattr(arguments, name) is None:
                setattr(arguments, name, value)
    return arguments


def add_dataset_options(parser: argparse.ArgumentParser) -> None:
    """Add how a dataset is read, as `load_stated_split` takes it."""
    parser.add_argument("--dataset_config", help="configuration of a dataset that has several")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--dataset_revision", help="commit, branch or tag of a Hub dataset")
    parser.add_argument("--image_column", default="image")
    parser.add_argument("--label_column", default="label")


def evaluate_parser() -> argparse.ArgumentParser:
    """Arguments of `ldvc evaluate`."""
    parser = make_parser("evaluate", EVALUATE)
    parser.add_argument("checkpoint", nargs="?", help="folder or Hub id of an LDVC checkpoint, or of a CLIP")
    parser.add_argument("--model", help="the same, in place of the first argument")
    parser.add_argument("--dataset", required=True, help="'picturebook', a folder, or a Hub id")
    add_dataset_options(parser)
    parser.add_argument("--num_images", type=int, help="only the first so many images")
    lists = f"one of {', '.join(VOCABULARIES)}; default: the list in the dataset's folder, or voc2012"
    parser.add_argument("--vocabulary", help=lists)
    parser.add_argument("--class_names", help='in place of --vocabulary, in the order of the ids: "[cat, dog]"')
    parser.add_argument("--unseen_classes", help="those of them whose masks did not train")
    parser.add_argument("--seen_share", type=float, default=1.0, help="of the seen classes, so many trained")
    parser.add_argument("--setting", default="inductive", choices=SETTINGS, help="protocol of the scores")
    parser.add_argument("--allow_protocol_mismatch", action="store_true", help="score and mark instead of refusing")
    parser.add_argument("--reduce_labels", action="store_true", help="label maps count from 1, 0 is background (VOC)")
    parser.add_argument("--short_side", type=int, help="pixels; 0 keeps the size; default: 512, or the protocol's")
    parser.add_argument(
        "--window", type=int, help="pixels; 0 takes the whole picture; default: 512, or the protocol's"
    )
    parser.add_argument("--stride", type=int, help="pixels; default: 426 of a window of 512, and so of others")
    parser.add_argument("--window_batch_size", type=int, default=4)
    offsets = f"taken off seen scores; default: {' '.join(map(str, SEEN_SCORE_OFFSETS))}, and the checkpoint's own"
    parser.add_argument("--offsets", type=float, nargs="+", help=offsets)
    parser.add_argument("--prompt_templates", nargs="+", help="averaged, or 'ensemble15'; without text prompts")
    parser.add_argument("--permute_unseen_names", action="store_true", help="control: every unseen name is wrong")
    parser.add_argument("--training_free", action="store_true", help="score a CLIP without training")
    parser.add_argument("--image_stats", help="pixel statistics of a CLIP; default: imagenet, with --protocol its own")
    parser.add_argument("--method", help="of a CLIP: naclip, sclip, ...; default: value, with --protocol naclip")
    parser.add_argument("--protocol", help="voc20, voc21, context59, context60, coco_object, coco_stuff, ...")
    parser.add_argument("--protocol_of", help="sclip, naclip or clearclip; default: as the method's authors")
    parser.add_argument("--settings", nargs="+", metavar="NAME=VALUE", help="of the method: residual=1 ...")
    parser.add_argument("--names", help="usual, plain, or a file with one class a line, synonyms between commas")
    parser.add_argument("--smoothing", help="none, pamr, propagation or propagation_as_shipped")
    parser.add_argument("--softmax_scale", type=float, help="factor on cosines; default: the protocol's")
    parser.add_argument("--threshold", type=float, help="less probable pixels become class 0")
    parser.add_argument("--area_threshold", type=float, help="classes of a smaller share of the foreground go")
    parser.add_argument("--floor", help="result of --training_free on the same images, for the failure signatures")
    parser.add_argument("--output", help="JSON file for the result")
    parser.add_argument("--predictions", help="folder to keep label maps in; a stopped run goes on from what is there")
    return parser


def forgetting(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc forgetting`; returns the exit code."""
    arguments = forgetting_parser().parse_args(argv)
    for prefix, key in itertools.product(OTHER_DATASETS, HOW_TO_LOAD):
        if getattr(arguments, prefix + key) is None:
            setattr(arguments, prefix + key, getattr(arguments, key))

    def work() -> None:
        import picturebook  # noqa: F401 - registers the embedded world
        from ldvc.processes import leave_processes
        from ldvc.scoring.forgetting import run

        run(arguments)
        leave_processes()

    return end_in_one_line("forgetting", work)


def forgetting_parser() -> argparse.ArgumentParser:
    """Arguments of `ldvc forgetting`."""
    parser = make_parser("forgetting", FORGETTING)
    parser.add_argument("before", help="LDVC checkpoint that fine-tuning started from, or CLIP with the flag below")
    parser.add_argument("after", help="fine-tuned LDVC checkpoint")
    parser.add_argument("--training_free_before", action="store_true", help="BEFORE is a CLIP, taken without training")
    parser.add_argument("--image_stats", default="imagenet", help="pixel statistics of such a CLIP")
    parser.add_argument("--dataset", required=True, help="labelled pictures of the fine-tuned classes")
    parser.add_argument("--class_names", help="its names, in id order; default: classes.txt, or AFTER's")
    parser.add_argument("--unseen_classes", help="those of them that no mask trained, checked against AFTER")
    parser.add_argument("--vocabulary", help="a known class list such as voc2012, in place of --class_names")
    parser.add_argument("--old_dataset", help="labelled pictures of the classes that BEFORE knew")
    parser.add_argument("--old_class_names", help="their names, in id order; default: classes.txt, or BEFORE's")
    parser.add_argument("--old_vocabulary", help="a known class list such as voc2012, in place of --old_class_names")
    parser.add_argument("--absent_names", help="further names of things that no picture of either dataset shows")
    parser.add_argument("--absent_dataset", help="pictures that show nothing of all these names")
    add_dataset_options(parser)
    for prefix, key in itertools.product(OTHER_DATASETS, HOW_TO_LOAD):
        parser.add_argument(f"--{prefix}{key}", help=f"of --{prefix}dataset; default: --{key}")
    parser.add_argument("--num_images", type=int, help="only the first so many of each dataset")
    parser.add_argument("--reduce_labels", action="store_true", help="--dataset's ids count from 1, 0 is background")
    parser.add_argument("--old_reduce_labels", action="store_true", help="so do --old_dataset's")
    parser.add_argument("--short_side", type=int, default=512, help="pixels; 0 keeps the size")
    parser.add_argument("--window", type=int, default=512, help="pixels; 0 takes the whole picture at once")
    parser.add_argument("--stride", type=int, help="pixels; default: 426 of a window of 512, and so of others")
    parser.add_argument("--window_batch_size", type=int, default=4)
    parser.add_argument("--output", help="JSON file for the report; a .md file beside it gets the tables")
    return parser
