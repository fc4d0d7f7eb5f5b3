"""`ldvc train`, which is `accelerate launch train.py` on one process, and `ldvc calibrate`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ldvc.commands import USER_ERRORS, end_in_one_line, make_parser


TRAIN = r"""Train LDVC: one recipe in, one folder out.

    accelerate launch train.py                                        the embedded world, minutes on two CPU cores
    accelerate launch train.py recipes/voc2012_inductive.yaml --dataset FOLDER --output_dir outputs/voc
    accelerate launch train.py recipes/voc2012_inductive.yaml --dataset FOLDER --max_steps 2 --cpu true   (smoke run)
    accelerate launch train.py recipes/voc2012_transductive.yaml --dataset FOLDER      both halves, one after the other
    accelerate launch train.py RECIPE --start_from CHECKPOINT --dataset FOLDER ...     go on from an LDVC checkpoint

Every key of the recipe can be overridden; `--resume_from_checkpoint latest` continues a stopped run, with the data,
CLIP and start that it began with. The recipe decides: what `accelerate launch` says against it is refused.
Two CPU processes (plain `--cpu --num_processes 2` silently starts one):
    ACCELERATE_USE_CPU=true accelerate launch --multi_gpu --num_processes 2 --num_machines 1 --mixed_precision no \
        --dynamo_backend no train.py ...

The folder gets the checkpoint (loads with AutoModel and AutoProcessor), recipe.yaml, protocol.json, results.json,
log.jsonl, curves.png, predictions.png and states/ to resume from.
"""


def train(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc train`; returns the exit code: 2 after a user error, which is one line of the log."""
    argv = sys.argv[1:] if argv is None else list(argv)
    from ldvc.training.recipe import describe_keys, read_recipe

    if argv and argv[0] in ("-h", "--help"):
        sys.stdout.write(f"{TRAIN}\n{describe_keys()}")
        return 0
    from huggingface_hub.errors import StrictDataclassError
    from transformers.utils import logging

    from ldvc.data.provenance import code_version
    from ldvc.training.run import run_recipe

    code_version()  # as it is now, not when the results are written
    try:
        run_recipe(read_recipe(argv))
    except (*USER_ERRORS, RuntimeError, FloatingPointError, StrictDataclassError) as error:
        logging.get_logger("ldvc.train").error("train: %s", error)
        return 2
    return 0


CALIBRATE = """\
Choose how much to take off the probabilities of seen classes, without a mask of an unseen one.

    ldvc calibrate recipes/picturebook_inductive.yaml --output outputs/calibration
    ldvc calibrate RECIPE --dataset FOLDER --checkpoint outputs/voc --output outputs/calibration

A part of the seen classes is held out in turn, and a model trained without it by the recipe, whose keys can be
overridden; the number that is best for the parts held out, on training pictures left out of these trainings, is
printed and written to calibration.json, and with --checkpoint into that checkpoint as `seen_score_offset`.
"""


def calibrate(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc calibrate`; returns the exit code."""
    parser = make_parser("calibrate", CALIBRATE, allow_abbrev=False)
    parser.add_argument("recipe", help="YAML file of an inductive run")
    parser.add_argument("--output", type=Path, required=True, help="folder for the trainings and calibration.json")
    parser.add_argument("--parts", type=int, default=4, help="of the seen classes, each held out once (default 4)")
    parser.add_argument("--num_images", type=int, default=250, help="training pictures to score on (default 250)")
    parser.add_argument("--checkpoint", type=Path, help="folder that gets the number")
    arguments, keys = parser.parse_known_args(argv)  # the others are keys of the recipe

    def work() -> None:
        from ldvc.training.calibration import calibrate as choose
        from ldvc.training.calibration import check_checkpoint, set_offset
        from ldvc.training.recipe import read_recipe

        recipe = read_recipe([arguments.recipe, *keys])
        if arguments.checkpoint:
            check_checkpoint(arguments.checkpoint, recipe.get_vocabulary())  # before the trainings
        offset = choose(recipe, arguments.parts, arguments.num_images, arguments.output)
        sys.stdout.write(f"seen_score_offset: {offset}\n")
        if arguments.checkpoint:
            set_offset(arguments.checkpoint, offset)

    return end_in_one_line("calibrate", work)
