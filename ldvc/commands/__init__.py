"""The subcommands of `ldvc` that are more than pictures: what they take and how they end; the work lies in its room.

Nothing heavy is imported before the arguments are read, so that `--help` answers at once.
"""

import argparse
import sys
from collections.abc import Callable


USER_ERRORS = (ValueError, TypeError, OSError)


def make_parser(command: str, text: str, **options: bool) -> argparse.ArgumentParser:
    """Make a parser that shows a text as it stands."""
    return argparse.ArgumentParser(
        prog=f"ldvc {command}", description=text, formatter_class=argparse.RawDescriptionHelpFormatter, **options
    )


def end_in_one_line(
    command: str,
    work: Callable[[], int | None],
    errors: tuple[type[Exception], ...] = USER_ERRORS,
    goes_on: bool = False,
) -> int:
    """Do a command's work; what the user can mend ends with one line.

    Args:
        command: Its name.
        work: Gives the exit code; `None` is 0.
        errors: Of the user.
        goes_on: What was done before a stop is not done again by the same command.

    Returns:
        The exit code: 2 after a user error, 130 after Ctrl-C.
    """
    try:
        return work() or 0
    except errors as error:
        sys.stderr.write(f"ldvc {command}: {error}\n")
        return 2
    except KeyboardInterrupt:
        hint = "goes on from here" if goes_on else "starts anew"
        sys.stderr.write(f"ldvc {command}: stopped; the same command {hint}.\n")
        return 130
