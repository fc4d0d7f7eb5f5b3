"""Files that are being written: each under a name of its process's own, and in place when it is whole.

Several processes may write into one folder. What a stopped one has left can be told from what a running one writes.
"""

from __future__ import annotations

import hashlib
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


SUFFIX = ".part"
OWNER = re.compile(r"\.([0-9a-f]{8})-(\d+)\.part$")  # machine and process
LONGEST_SILENCE = 3600  # seconds without a write after which a process on another machine is taken for stopped


def this_machine() -> str:
    """Eight hexadecimal digits for this machine; containers that count processes on their own are machines."""
    name = socket.gethostname()
    with suppress(OSError):
        name += os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(name.encode()).hexdigest()[:8]


def part_suffix() -> str:
    """The end of the names of this process's part files."""
    return f".{this_machine()}-{os.getpid()}{SUFFIX}"


@contextmanager
def written_aside(path: Path) -> Iterator[IO[bytes]]:
    """Open a file beside `path` that takes its place when the block ends well, and is deleted when it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}{part_suffix()}")
    try:
        with part.open("wb") as file:
            yield file
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def is_left_over(part: Path) -> bool:
    """Whether the process that wrote a part file has stopped.

    Other machines' processes cannot be asked, and on Windows none can: there, an hour without a write decides.
    """
    owner = OWNER.search(part.name)
    if owner is None:
        return True
    if os.name == "posix" and owner[1] == this_machine():
        return not is_running(int(owner[2]))
    with suppress(FileNotFoundError):
        return time.time() - part.stat().st_mtime > LONGEST_SILENCE
    return False


def is_running(process_id: int) -> bool:
    """Whether a process of this machine runs; POSIX only."""
    try:
        os.kill(process_id, 0)  # a signal that does nothing
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    with suppress(OSError):  # on Linux; in containers, one that has ended may keep its number for ever
        return not re.match(r".*\) [ZX] ", Path(f"/proc/{process_id}/stat").read_text(), re.DOTALL)
    return True


def remove_left_over(folder: Path) -> None:
    """Delete what stopped processes left half-written in a folder and below it."""
    for part in folder.rglob(f".*{SUFFIX}"):
        if OWNER.search(part.name) and is_left_over(part):
            part.unlink(missing_ok=True)
