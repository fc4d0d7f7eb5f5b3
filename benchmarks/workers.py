"""Processes that segment pictures side by side, each with a model of its own, for the throughput of several."""

from contextlib import AbstractContextManager, suppress
from multiprocessing import get_context
from multiprocessing.connection import Connection

import torch

from benchmarks.models import build_model, make_class_embeds, make_pixels
from benchmarks.timing import Settings


NUM_CLASSES = 20


@torch.inference_mode()
def work(connection: Connection, settings: Settings, side: int, threads: int) -> None:
    """Build a model, say so, then segment as many pictures as every message asks for, until it asks for none."""
    torch.set_num_threads(threads)
    model = build_model(settings)
    pixels, embeds = make_pixels(settings, side), make_class_embeds(model, NUM_CLASSES)
    connection.send(0)
    while count := connection.recv():
        for _ in range(count):
            model(pixel_values=pixels, class_embeds=embeds)
        connection.send(count)


class Workers(AbstractContextManager):
    """Some processes that share the CPU's threads evenly and wait for work.

    Args:
        count: Processes.
        settings: Of their models.
        side: Of their pictures, in pixels.
        threads: Of all of them together; each has at least one.

    Attributes:
        threads: Of one process.
    """

    def __init__(self, count: int, settings: Settings, side: int, threads: int):
        context = get_context("spawn")  # a fork would copy PyTorch's threads in whatever state they are
        self.threads = max(1, threads // count)
        self._connections, self._processes = [], []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=work, args=(theirs, settings, side, self.threads), daemon=True)
            process.start()
            theirs.close()
            self._connections.append(ours)
            self._processes.append(process)
        self._exchange()

    def run(self, num_pictures: int) -> int:
        """Segment so many pictures, shared out evenly.

        Returns:
            Pictures done.
        """
        return self._exchange(-(-num_pictures // len(self._connections)))

    def _exchange(self, pictures_each: int | None = None) -> int:
        """Ask every process for so many pictures, or for nothing, and wait for the answers of all.

        Returns:
            The sum of the answers.

        Raises:
            RuntimeError: If a process has ended.
        """
        try:
            if pictures_each is not None:
                for connection in self._connections:
                    connection.send(pictures_each)
            return sum(connection.recv() for connection in self._connections)
        except (EOFError, OSError) as error:
            raise RuntimeError("a process that segments pictures ended before its work was done.") from error

    def __exit__(self, *error: object) -> None:
        for connection, process in zip(self._connections, self._processes, strict=True):
            with suppress(OSError):  # it may have ended
                connection.send(0)
            process.join(timeout=10)
            process.kill()
            connection.close()
