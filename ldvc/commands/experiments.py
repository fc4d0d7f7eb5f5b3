"""`ldvc experiments`, `ldvc report` and `ldvc publish`."""

import sys
from collections.abc import Sequence
from pathlib import Path

from ldvc.commands import end_in_one_line, make_parser
from ldvc.places import ROOT


EXPERIMENTS = """\
Run a list of recipes over seeds, and print the table.

    ldvc experiments recipes/ablations/picturebook.yaml
    ldvc experiments recipes/ablations/picturebook.yaml --only ldvc class_query --seeds 3 4
    ldvc experiments recipes/ablations/picturebook.yaml --dry_run         what would run, with its command
    ldvc experiments recipes/ablations/picturebook.yaml --max_steps 2 --num_eval_images 4        smoke run

Every row and seed is a process of its own (`accelerate launch train.py ...`) with a log under outputs/, so that a
crash ends one run and not the list; failures are named at the end, with exit code 1. All rows run at the first seed,
then at the next. A result that is there already, with the same settings and the same CLIP, is not made again, and a
run that was stopped goes on from its last state (`save_every`) if settings, CLIP and commit are still the same: an
interrupted list continues by the same command. A result with other settings is reported and kept; `--replace` makes it
anew. After a change in how things are scored, `--rescore` scores the checkpoints of finished runs again, and trains
nothing. In a copied folder without .git, name the commit in the environment variable LDVC_COMMIT.

Further keys of a recipe are handed to every run. Such results are kept under outputs/, out of the ledger results/,
which `ldvc report` renders into README, cards and docs.
"""

REPORT = """\
Render the result tables of README, cards and docs from the files in results/, and the cards from their template.

    ldvc report            write the tables between the markers of each document, and model_cards/
    ldvc report --figures  also draw decoder_swap.png, few_seen.png and speed.png of assets/
    ldvc report --check    fail if a document does not show what results/ holds, or names a score outside a table

A document names a table by a pair of comments, `<!-- table: NAME -->` and `<!-- end -->`; what stands between them is
never written by hand.
"""

PUBLISH = """\
Build a folder for the Hub from a checkpoint, and push it.

    ldvc publish outputs/voc2012_inductive --output hub/ldvc-vit-base-patch16-voc2012-inductive
    ldvc publish outputs/voc2012_inductive --output FOLDER --push_to_hub your-name/ldvc-voc2012
    ldvc publish outputs/voc2012_inductive --output FOLDER --handler --space hub/segment-by-name

The folder has the weights, the code that they need (remote code), processor and tokenizer, recipe, audit and results
of the run, a model card as README.md, the licence, and the SHA-256 of every file: in files.json, where files that a
user's machine executes are marked, and in SHA256SUMS, for `sha256sum --check SHA256SUMS` after a download. A digest of
the other code files stands in the configuration's, so that no file of another version can slip in among them.

Scores stand in the card's front matter (`model-index`). The Hub also reads them from .eval_results/*.yaml, where they
name a dataset that is registered there as a benchmark; none of ours is so far, so no such file is written.

--handler adds handler.py, which Inference Endpoints call: a picture and labels in, masks out. --space builds the
folder of a Space, too: the built folder as its model/, a page, pinned requirements and a card; upload it with
`hf upload your-name/NAME FOLDER --repo-type space`. Both run the code of the published folder (trust_remote_code).

A checkpoint without its audit, without results, or whose audit belongs to another run is refused.
"""


def experiments(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc experiments`; returns the exit code."""
    parser = make_parser("experiments", EXPERIMENTS, allow_abbrev=False)
    parser.add_argument("list", help="YAML list of experiments, such as recipes/ablations/picturebook.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", help="instead of the list's")
    parser.add_argument("--only", nargs="+", default=[], metavar="ROW", help="names of rows")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time (a large GPU or many cores)")
    parser.add_argument("--results", type=Path, help="folder for result files, instead of the ledger")
    parser.add_argument("--launch", help="arguments of accelerate launch; by default one process in full precision")
    parser.add_argument("--replace", action="store_true", help="make results with other settings anew")
    parser.add_argument("--rescore", action="store_true", help="score finished runs again; trains nothing")
    parser.add_argument("--dry_run", action="store_true", help="run nothing")
    arguments, extra = parser.parse_known_args(argv)  # what is not known here goes to every run
    if arguments.jobs < 1:
        parser.error(f"--jobs is {arguments.jobs}; use 1 or more.")

    def work() -> int:
        from ldvc.experiments.run import run, stop_on_signals

        with stop_on_signals():
            return run(arguments, extra)

    return end_in_one_line("experiments", work, goes_on=True)


def report(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc report`; returns the exit code."""
    parser = make_parser("report", REPORT)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a document is out of date")
    parser.add_argument("--figures", action="store_true", help="draw the figures anew")
    arguments = parser.parse_args(argv)

    def work() -> int:
        if not (ROOT / "benchmarks").is_dir():
            raise ValueError("it renders the documents of a checkout, and this is none; run it in one.")
        sys.path.append(str(ROOT))  # benchmarks/, which is not installed, knows its own tables
        from ldvc.experiments.report import write_documents

        return write_documents(arguments.check, arguments.figures)

    return end_in_one_line("report", work)


def publish(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc publish`; returns the exit code."""
    parser = make_parser("publish", PUBLISH)
    parser.add_argument("checkpoint", type=Path, help="output folder of a training run")
    parser.add_argument("--output", type=Path, required=True, help="folder to make; its name is the card's title")
    parser.add_argument("--results", type=Path, help="result file, if it is not in the checkpoint's folder")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it is there")
    parser.add_argument(
        "--push_to_hub", metavar="ID", help="upload to this repository, such as your-name/ldvc-voc2012"
    )
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--handler", action="store_true", help="add handler.py for Inference Endpoints")
    parser.add_argument("--space", type=Path, metavar="FOLDER", help="also build the folder of a Space there")
    arguments = parser.parse_args(argv)

    def work() -> None:
        from ldvc.experiments.publish import build_folder, build_space, check_output, push

        if arguments.space is not None:
            check_output(arguments.space, arguments.overwrite)  # before the longer work
        options = (arguments.results, arguments.overwrite, arguments.handler)
        folder = build_folder(arguments.checkpoint, arguments.output, *options)
        sys.stdout.write(f"built {folder}\n")
        if arguments.space is not None:
            sys.stdout.write(f"built {build_space(folder, arguments.space, arguments.overwrite)}\n")
        if arguments.push_to_hub:
            sys.stdout.write(f"pushed to {push(folder, arguments.push_to_hub, arguments.private)}\n")

    return end_in_one_line("publish", work)
