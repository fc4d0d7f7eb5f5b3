"""The command `ldvc`, also `python -m ldvc`: every subcommand of every room.

Those of pictures and labels are in ldvc/app/cli.py; the others, in ldvc/commands/, read their arguments themselves.
"""

import importlib
import os

import typer

from ldvc.app.cli import app


# Subcommand -> where it is, and its line in `ldvc --help`.
COMMANDS = {
    "evaluate": ("scoring", "Score a checkpoint on a dataset under the zero-shot protocol."),
    "prepare": ("data", "Turn a benchmark's official archive into a dataset."),
    "check": ("data", "Say what is wrong with a dataset before it trains."),
    "train": ("training", "Train on one process; its --help says how to launch several."),
    "calibrate": ("training", "Choose the offset of seen classes without masks of unseen ones."),
    "publish": ("experiments", "Build a folder for the Hub from a checkpoint, and push it."),
    "export": ("export", "Write a program that runs without this code."),
    "explain": ("export", "Say and draw why a pixel got its class."),
    "experiments": ("experiments", "Run a list of recipes over seeds, and print the table."),
    "report": ("experiments", "Render the tables of README, docs and cards from the results."),
    "forgetting": ("scoring", "Measure what fine-tuning cost."),
}
PASS_ON = {"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []}


def add_command(name: str, module: str, text: str) -> None:
    """Add a subcommand that reads its arguments itself."""

    def run(context: typer.Context) -> int:
        return getattr(importlib.import_module(f"ldvc.commands.{module}"), name)(context.args)

    app.command(name, help=text, context_settings=PASS_ON, add_help_option=False)(run)


for _name, (_module, _text) in COMMANDS.items():
    add_command(_name, _module, _text)


def main() -> None:
    """Run the command line."""
    # Threads of PyTorch that spin while they wait cost several times the work's CPU time on a machine that is busy.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    app()


if __name__ == "__main__":
    main()
