"""Who segments the pictures of `ldvc segment`: the process itself, or with `--engine ray` processes of Ray.

Those run on one machine or many, keep the model and write the files. The process of the command finds the pictures,
checks the output folder and hands out names of pictures. What a process that ended unexpectedly had before it goes,
picture by picture, to the others and to the one that Ray starts in its place.
"""

from __future__ import annotations

import os
import secrets
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from enum import StrEnum
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from ldvc.loading import one_line
from ldvc.masks.formats import OutputFolder
from ldvc.shares import Share


if TYPE_CHECKING:
    from ldvc.app.batch import Segmenter
    from ldvc.masks.files import Picture

__all__ = ["Alone", "Crew", "Engine", "Worker", "open_crew"]

PICTURES_PER_CALL = 16  # times the size of batches: few calls, and little to do again after a loss
ATTEMPTS = 3  # at a picture whose process ends
STORE_BYTES = 100 * 2**20  # of Ray's shared memory; pictures do not go through it
END_SECONDS = 60  # for actors to close their files
Description = tuple[dict[str, Any], int, list[str]]  # what `OutputFolder` takes of a model


class Engine(StrEnum):
    """What processes can be had from."""

    RAY = "ray"


class Alone:
    """This process, alone or with its share of the pictures.

    Args:
        make_segmenter: Loads the model.
        shows_progress: Draw a progress bar, if stderr is a terminal.
    """

    def __init__(self, make_segmenter: Callable[[], Segmenter], shows_progress: bool):
        self.segmenter, self.shows_progress = make_segmenter(), shows_progress

    def describe(self) -> Description:
        """Return the description of the model, the number of classes, and those that trained without masks."""
        return self.segmenter.describe(), len(self.segmenter.names), self.segmenter.unseen_names()

    def segment(
        self, pictures: Sequence[Picture], output: OutputFolder, max_pixels: int, debug: bool = False
    ) -> list[tuple[str, str]]:
        """Segment and save pictures; returns what failed, see `segment_pictures`."""
        from ldvc.app.batch import segment_pictures

        return segment_pictures(pictures, self.segmenter, output, max_pixels, debug, self.shows_progress)

    def close(self) -> list[Path]:
        """Return no file: the output folder of this process is closed by whoever started it."""
        return []


class Worker:
    """An actor: a model, loaded at the first call, and a part of the output folder.

    Args:
        make_segmenter: Loads the model.
        folder: Where relative paths begin.
    """

    def __init__(self, make_segmenter: Callable[[], Segmenter], folder: str):
        os.chdir(folder)
        self.make_segmenter = make_segmenter
        self.output: OutputFolder | None = None

    @cached_property
    def alone(self) -> Alone:
        """The model, and what it does."""
        return Alone(self.make_segmenter, shows_progress=False)

    def describe(self) -> Description:
        """See [`Alone`]."""
        return self.alone.describe()

    def segment(
        self, pictures: Sequence[Picture], output: OutputFolder, max_pixels: int, debug: bool
    ) -> list[tuple[str, str]]:
        """Segment and save pictures; returns what failed."""
        if self.output is None:
            output.join()
            self.output = output
        return self.alone.segment(pictures, self.output, max_pixels, debug)

    def close(self) -> list[Path]:
        """End this process's part; returns the files that `OutputFolder.finish` needs of it."""
        return [] if self.output is None else self.output.close()


class Crew:
    """The actors of a run.

    Args:
        ray: The module.
        hire: Starts a [`Worker`] and returns its handle. One that ended is replaced by this, not by Ray: what Ray
            would start it with can be gone with the process that died.
        num_actors: How many.
        batch_size: Of the model's calls.
    """

    def __init__(self, ray: Any, hire: Callable[[], Any], num_actors: int, batch_size: int):
        self.ray, self.hire, self.batch_size = ray, hire, batch_size
        self.actors = [hire() for _ in range(num_actors)]

    def describe(self) -> Description:
        """Return what the first actor says of its model; the others load theirs meanwhile."""
        return self.ray.get([actor.describe.remote() for actor in self.actors])[0]

    def segment(
        self, pictures: Sequence[Picture], output: OutputFolder, max_pixels: int, debug: bool = False
    ) -> list[tuple[str, str]]:
        """Segment and save pictures, with a progress bar if stderr is a terminal.

        Args:
            pictures: What to do.
            output: Started.
            max_pixels: Refuse larger ones.
            debug: Raise the first error.

        Returns:
            What failed, as (file, reason).

        Raises:
            RuntimeError: If every actor ended, and those in their place too.
        """
        losses: Counter[PurePath] = Counter()
        failures: list[tuple[str, str]] = []
        todo, idle, running = deque(self.chunks(pictures)), list(self.actors), {}
        with tqdm(total=len(pictures), unit="picture", disable=None) as bar:
            while todo or running:
                while todo and idle:
                    actor, chunk = idle.pop(0), todo.popleft()
                    running[actor.segment.remote(chunk, output, max_pixels, debug)] = actor, chunk
                if not running:
                    raise RuntimeError("every actor of Ray ended, and none could be started again; see above.")
                (done,), _ = self.ray.wait(list(running), num_returns=1)
                actor, chunk = running.pop(done)
                try:
                    answer = self.ray.get(done)
                except self.ray.exceptions.RayActorError as error:
                    again, given_up = after_a_loss(chunk, losses)
                    todo.extend([picture] for picture in again)
                    failures += [(str(picture.path), describe_loss(error)) for picture in given_up]
                    bar.update(len(given_up))
                    self.actors.remove(actor)
                    if chunk:  # no work for the next before it has its model; if it ends at that, there is no other
                        self.actors.append(self.hire())
                        running[self.actors[-1].describe.remote()] = self.actors[-1], []
                    continue
                idle.append(actor)
                if chunk:
                    failures += answer
                    bar.update(len(chunk))
        return failures

    def chunks(self, pictures: Sequence[Picture]) -> Iterator[Sequence[Picture]]:
        """Part pictures into calls: few, but enough that all actors end at about the same time."""
        count = min(PICTURES_PER_CALL * self.batch_size, len(pictures) // (4 * len(self.actors))) or 1
        for start in range(0, len(pictures), count):
            yield pictures[start : start + count]

    def close(self) -> list[Path]:
        """Let the actors close their files; returns those that `OutputFolder.finish` needs.

        An actor that does not answer leaves its files to the next run, or to `finish`, which finds them.
        """
        waiting = [actor.close.remote() for actor in self.actors]
        if not waiting:
            return []
        done, _ = self.ray.wait(waiting, num_returns=len(waiting), timeout=END_SECONDS)
        journals = []
        for answer in done:
            with suppress(self.ray.exceptions.RayActorError):
                journals += self.ray.get(answer)
        return journals

    def end(self) -> None:
        """End the actors, those of a cluster that runs on too."""
        for actor in self.actors:
            with suppress(Exception):
                self.ray.kill(actor)


def after_a_loss(pictures: Sequence[Picture], losses: Counter[PurePath]) -> tuple[list[Picture], list[Picture]]:
    """Part what a lost call had into pictures to try again, each alone, and those that were tried often enough.

    Args:
        pictures: Of the call.
        losses: Of pictures that were alone in a call; of several, nobody knows whose fault it was.
    """
    if len(pictures) != 1:
        return list(pictures), []
    losses[pictures[0].name] += 1
    is_over = losses[pictures[0].name] == ATTEMPTS
    return ([], list(pictures)) if is_over else (list(pictures), [])


def describe_loss(error: Exception) -> str:
    """Say why a picture is given up."""
    return f"{ATTEMPTS} processes ended while they worked on it, perhaps for want of memory ({one_line(error, 120)})"


@contextmanager
def open_crew(
    make_segmenter: Callable[[], Segmenter],
    engine: Engine | None = None,
    num_actors: int | None = None,
    batch_size: int | None = None,
    share: Share | None = None,
) -> Iterator[Alone | Crew]:
    """Load the model here, or in actors of an engine, which end with the block.

    Args:
        make_segmenter: Loads the model; goes to every actor.
        engine: `None` is this process.
        num_actors: How many; `None` is one per GPU of the cluster, or one.
        batch_size: Of the model's calls.
        share: Of this process, where there are several.

    Raises:
        RuntimeError: If Ray fails, or an actor ends before it has begun.
        ValueError: If there are fewer cores or GPUs than actors, or options exclude each other.
    """
    share = share or Share()
    if num_actors is not None and engine is None:
        raise ValueError("--actors goes with --engine; give both.")
    if engine is None:
        yield Alone(make_segmenter, share.is_main)
        return
    if share.count > 1:
        raise ValueError(f"--engine {engine} starts processes of its own; run it without accelerate launch.")
    set_environment()
    import ray

    with ExitStack() as stack:
        try:
            connect(ray, stack)
            share_of_each, num_actors = share_out(ray, num_actors)
            kind = ray.remote(**share_of_each)(Worker)
            crew = Crew(ray, lambda: kind.remote(make_segmenter, str(Path.cwd())), num_actors, batch_size or 1)
            stack.callback(crew.end)
            yield crew
        except ray.exceptions.RayTaskError as error:  # what a call of ours raised, with the traceback as its text
            raise error.cause from error
        except ray.exceptions.RayError as error:
            raise RuntimeError(f"Ray: {one_line(error)}") from error


def set_environment() -> None:
    """Say, before Ray is imported, what it reads from the environment alone."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or it reports to its makers
    if "RAY_ADDRESS" not in os.environ and "RAY_AUTH_MODE" not in os.environ:
        # without a token, anyone on the network may run code; Ray would keep its own in the user's home
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}


def connect(ray: Any, stack: ExitStack) -> None:
    """Join the cluster that RAY_ADDRESS names, or start one of this machine that leaves no file behind.

    Raises:
        RuntimeError: If that fails.
    """
    options: dict[str, Any] = {"logging_level": "WARNING"}
    if "RAY_ADDRESS" not in os.environ:
        place = "/tmp" if os.name == "posix" else None  # names of sockets may not be long
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", dir=place, ignore_cleanup_errors=True))
        options |= {"address": "local", "include_dashboard": False, "object_store_memory": STORE_BYTES}
        options |= {"_temp_dir": folder}
    try:
        ray.init(**options)
    except Exception as error:  # Ray raises the plainest kind where its processes do not come up in time
        raise RuntimeError(
            f"Ray does not start: {one_line(error, 160)}; see RAY_ADDRESS, or free the machine."
        ) from error
    stack.callback(ray.shutdown)


def share_out(ray: Any, num_actors: int | None) -> tuple[dict[str, int], int]:
    """Share the cores and the GPUs of the cluster; returns what each actor has, and how many there are.

    Raises:
        ValueError: If there are fewer cores or GPUs than actors.
    """
    found = ray.cluster_resources()
    num_gpus, num_cores = int(found.get("GPU", 0)), int(found.get("CPU", 1))
    num_actors = num_actors or num_gpus or 1
    if num_actors > (num_gpus or num_cores):
        kind = f"{num_gpus} GPUs" if num_gpus else f"{num_cores} cores"
        raise ValueError(f"--actors is {num_actors}, and Ray has {kind}; ask for no more than that.")
    return {"num_cpus": max(1, num_cores // num_actors), "num_gpus": 1 if num_gpus else 0}, num_actors
