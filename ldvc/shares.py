"""One process's share of a batch, among those that `accelerate launch` started; a process alone has all of it."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar


Item = TypeVar("Item")


@dataclass(frozen=True)
class Share:
    """Which share of the work this process has.

    Attributes:
        index: Of this process, from 0; the first is the main process.
        count: Processes.
        device: What this process is to compute on; `None` leaves it open.
    """

    index: int = 0
    count: int = 1
    device: str | None = None

    @property
    def is_main(self) -> bool:
        """Whether this is the process that checks, reports and writes what belongs to all."""
        return self.index == 0

    def of(self, items: Sequence[Item]) -> list[Item]:
        """Every n-th item, as one of n processes."""
        return list(items[self.index :: self.count])

    def main_first(self, work: Callable[[], Any]) -> None:
        """Do something in the main process only, the others waiting; if it fails there, they leave in silence.

        Raises:
            SystemExit: In the others, with code 0, so that the main process lives to say what is wrong.
        """
        if self.count == 1:
            work()
            return
        from accelerate.utils import broadcast_object_list

        is_done = [False]
        try:
            if self.is_main:
                work()
                is_done = [True]
        finally:
            broadcast_object_list(is_done)
        if not is_done[0]:
            self.leave()
            sys.exit(0)

    def gather(self, value: Item) -> list[Item]:
        """Wait for all processes, and give what each of them brings, in their order."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        return gather_object([value])

    def leave(self) -> None:
        """Part from the other processes, see `leave_processes`."""
        if self.count > 1:
            from ldvc.processes import leave_processes

            leave_processes()


def join_processes() -> Share:
    """Find this process's share; Accelerate is imported only where processes were started together."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Share()
    from ldvc.processes import process_state

    state = process_state()
    return Share(state.process_index, state.num_processes, str(state.device))
