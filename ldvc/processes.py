"""This process among those that `accelerate launch` started."""

import os
from datetime import timedelta

from accelerate import PartialState
from accelerate.utils import parse_flag_from_env


__all__ = ["LONGEST_WAIT", "check_joined", "leave_processes", "process_state"]


LONGEST_WAIT = timedelta(days=7)  # of the first process to finish for the last; by default, minutes end a run


def process_state() -> PartialState:
    """Join the other processes, on the CPU too: by itself, `PartialState` does not heed ACCELERATE_USE_CPU.

    Raises:
        ValueError: If processes were started together that do not know of each other.
    """
    state = PartialState(cpu=parse_flag_from_env("ACCELERATE_USE_CPU"), timeout=LONGEST_WAIT)
    check_joined(state.num_processes)
    return state


def leave_processes() -> None:
    """Part from the other processes; one that ends without it may abort while its threads still listen to them."""
    PartialState().destroy_process_group()


def check_joined(num_processes: int) -> None:
    """Refuse processes that were started together but would each do all the work and write the same files.

    Args:
        num_processes: As many as this process knows of.

    Raises:
        ValueError: If more were started.
    """
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started > num_processes:
        raise ValueError(
            f"{started} processes were started, but this one knows of {num_processes}: without GPUs, put "
            "ACCELERATE_USE_CPU=true before `accelerate launch`, so that they join."
        )
