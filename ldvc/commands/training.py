"""`ldvc train`, which is `accelerate launch train.py` on one process."""

import sys
from collections.abc import Sequence

from ldvc.commands import USER_ERRORS


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
