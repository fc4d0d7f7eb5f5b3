"""Load on the web page and on the bulk command, with an eye on their memory and on what they leave on disk.

    python -m tests.load page --requests 600 --users 4
    python -m tests.load segment --pictures 400

Each runs in a process of its own on this machine and is given pictures of many sizes, some of them damaged. The first
40 % of the work is warm-up: libraries load, sessions fill up to the page's limit, the allocator finds its size. From
there on, resident memory must not grow by more than `MAX_GROWTH_MB`. Prints one JSON object; the exit code is 1 when
memory grew, a request went wrong, or files were left behind. A run takes minutes; needs Linux.
"""

import argparse
import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
from PIL import Image


ROOT = Path(__file__).resolve().parents[1]
WARM_UP = 0.4  # share of the work
MAX_GROWTH_MB = 64.0  # from the first to the last quarter after the warm-up; single pictures move more than that
POLL_SECONDS = 0.1
TIMEOUT = 120  # seconds for one answer
KEPT_SECONDS = 20  # that the page keeps files here, so that a run of minutes sees them go
PAGE = f"""
import sys
from ldvc.app import page
page.KEPT_SECONDS, page.SWEEP_SECONDS = {KEPT_SECONDS}, 2
page.launch(port=int(sys.argv[1]))
"""
COMMAND = "import sys; sys.argv[0] = 'ldvc'; from ldvc.__main__ import main; main()"
SIDES = (48, 200, 333, 512, 640, 900, 1500, 2400)  # pixels
NAMES = ("balloon", "cat", "grass", "sky", "sand|beach", "bird", "wood", "house", "cup", "fish", "moon", "road")
MB = 2**20


# ---- measuring


@dataclass
class Watch:
    """Resident memory of a process, as often as the work moves on.

    Attributes:
        process: Who is watched.
        done: Returns the units of work done so far.
        samples: (done, MB) pairs.
    """

    process: psutil.Process
    done: Callable[[], int]
    samples: list[tuple[int, float]] = field(default_factory=list)

    @contextmanager
    def running(self) -> Iterator[None]:
        """Take samples until the block ends."""
        stop = threading.Event()

        def poll() -> None:
            while not stop.wait(POLL_SECONDS):
                try:
                    self.samples.append((self.done(), self.process.memory_info().rss / MB))
                except psutil.NoSuchProcess:
                    return

        thread = threading.Thread(target=poll)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()


def summarise(samples: list[tuple[int, float]]) -> dict[str, float]:
    """Figures of a run's memory.

    Args:
        samples: (units of work done, MB) pairs in the order of time.

    Returns:
        `mb_at_warm_up` and `mb_at_end`, means over the first and the last quarter of the work after the warm-up;
        `mb_per_100`, the slope of a line through all of it; `mb_peak`.
    """
    work, memory = np.array(samples, dtype=float).T
    first, last = WARM_UP * work[-1], work[-1]
    quarter = (last - first) / 4
    is_warm = work >= first
    slope = np.polyfit(work[is_warm], memory[is_warm], 1)[0]
    figures = {
        "mb_at_warm_up": memory[is_warm & (work <= first + quarter)].mean(),
        "mb_at_end": memory[work >= last - quarter].mean(),
        "mb_per_100": 100 * slope,
        "mb_peak": memory.max(),
    }
    return {name: round(float(value), 1) for name, value in figures.items()}


def files_below(folder: Path) -> dict[str, float]:
    """Names and sizes in MB of all files in a folder and its folders."""
    sizes = {}
    for parent, _, names in os.walk(folder):
        for path in (Path(parent, name) for name in names):
            with suppress(FileNotFoundError):  # deleted just now
                sizes[str(path.relative_to(folder))] = path.stat().st_size / MB
    return sizes


# ---- pictures


def draw_noise(rng: random.Random, width: int, height: int) -> Image.Image:
    """Coarse noise of a random seed: no two pictures are the same, and none takes long to make."""
    cells = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    return Image.fromarray(cells).resize((width, height))


def picture_file(rng: random.Random) -> tuple[str, bytes, bool]:
    """Make a file for an upload: name, content, and whether it is good."""
    kind, stream = rng.choice(("png", "jpeg", "webp")), io.BytesIO()
    draw_noise(rng, rng.choice(SIDES), rng.choice(SIDES)).save(stream, kind)
    content, harm = stream.getvalue(), rng.randrange(24)
    if harm == 0:
        content = b"this is text"
    elif harm == 1:
        content = content[: len(content) // 2]
    elif harm == 2:
        stream = io.BytesIO()
        Image.new("1", (9000, 9000)).save(stream, "png")  # more than the page takes
        content = stream.getvalue()
    return f"photo.{kind}", content, harm > 2


def label_text(rng: random.Random) -> str:
    """Up to ten names, one of them new to the process, so that whatever is kept by name would show."""
    return ", ".join([*rng.sample(NAMES, rng.randrange(1, 10)), f"thing {rng.randrange(10**9)}"])


# ---- the web page


class Page:
    """The page's interface as the browser uses it: an event goes into the queue, its answer comes as a stream."""

    def __init__(self, url: str):
        self.url = url
        with self.client() as client:
            config = client.get("/config").json()
        names = {block["id"]: block["props"].get("elem_id") for block in config["components"]}
        self.events = {
            (names.get(target), event): (dependency["id"], [names.get(block) for block in dependency["inputs"]])
            for dependency in config["dependencies"]
            for target, event in dependency["targets"]
        }

    def client(self) -> httpx.Client:
        """A connection that heeds no proxy."""
        return httpx.Client(base_url=self.url, timeout=TIMEOUT, trust_env=False)


class Visitor:
    """One browser tab: a session with a picture, names and a result."""

    def __init__(self, page: Page, client: httpx.Client, rng: random.Random):
        self.page, self.client, self.rng = page, client, rng
        self.session = f"{rng.randrange(2**64):x}"
        self.values: dict[str | None, Any] = {"labels": label_text(rng), "threshold": 0, "classes": []}

    def upload(self, name: str, content: bytes) -> None:
        """Hand a file over, as dropping it into the box does."""
        answer = self.client.post("/gradio_api/upload", files={"files": (name, content)})
        answer.raise_for_status()
        self.values["picture"] = {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def ask(self, target: str, event: str, event_data: Any = None) -> list:
        """Send an event and wait for its answer.

        Returns:
            The new values of the event's outputs, the visit itself left out by the page.

        Raises:
            RuntimeError: If the page reports an error.
        """
        number, inputs = self.page.events[target, event]
        data = [self.values.get(name) for name in inputs]
        body = {"data": data, "fn_index": number, "session_hash": self.session, "event_data": event_data}
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": self.session}) as stream:
            for line in stream.iter_lines():
                message = json.loads(line[6:]) if line.startswith("data: ") else {}
                if message.get("msg") == "process_completed":
                    if not message["success"]:
                        raise RuntimeError(f"{target}.{event}: {message['output']}")
                    return message["output"]["data"]
        raise RuntimeError(f"{target}.{event}: the answer broke off")

    def fetch(self, value: dict[str, Any]) -> None:
        """Load a file that an answer names, as the browser does to show it."""
        self.client.get(f"/gradio_api/file={value['path']}").raise_for_status()

    def actions(self) -> Iterator[Callable[[], None]]:
        """Yield what this visitor does: a picture, then five of the other controls."""
        yield self.give_picture
        for _ in range(5):
            yield self.rng.choice(
                (self.change_names, self.move_threshold, self.hide, self.click, self.point, self.save)
            )

    def give_picture(self) -> None:
        """Upload a file and see it segmented, or refused in words."""
        name, content, is_good = picture_file(self.rng)
        self.upload(name, content)
        self.must_say("classes on" if is_good else "problem", self.ask("picture", "input"))

    def change_names(self) -> None:
        """Segment with other names, now and then with bad ones."""
        is_good = self.rng.random() < 0.9
        self.values["labels"] = label_text(self.rng) if is_good else "cat, cat"
        self.must_say("classes on" if is_good else "problem", self.ask("run", "click"))
        self.values["labels"] = label_text(self.rng)

    def move_threshold(self) -> None:
        """Drag the slider."""
        self.values["threshold"] = round(self.rng.random(), 2)
        self.must_say("classes on", self.ask("threshold", "input"))

    def must_say(self, text: str, answer: list) -> None:
        """Check the status line of an answer, and load its picture.

        Raises:
            RuntimeError: If it says something else.
        """
        status, overlay = answer[1:3]
        if text not in str(status):
            raise RuntimeError(f"{text!r} is not in the status {status!r}")
        if isinstance(overlay, dict) and "path" in overlay:
            self.fetch(overlay)

    def hide(self) -> None:
        """Switch all classes off."""
        self.fetch(self.ask("classes", "input")[1])

    def click(self) -> None:
        """Ask why a pixel got its class."""
        self.fetch(self.ask("result", "select", {"index": [self.rng.randrange(600), 9], "value": None})[-1])

    def point(self) -> None:
        """Ask the same by numbers, perhaps outside the picture."""
        self.values |= {"row": self.rng.randrange(600), "column": 9}
        self.ask("explain", "click")

    def save(self) -> None:
        """Download the masks."""
        self.fetch(self.ask("download", "click")[1])


@dataclass
class Tally:
    """What all users did together.

    Attributes:
        wanted: Requests to make.
        taken: Requests that a user began.
        done: Requests that were answered, well or not.
        errors: What went wrong.
    """

    wanted: int
    taken: int = 0
    done: int = 0
    errors: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take(self) -> bool:
        """Begin one more request, if there is one left."""
        with self.lock:
            self.taken += self.taken < self.wanted + 1
            return self.taken <= self.wanted

    def count(self, error: Exception | None) -> None:
        """End a request."""
        with self.lock:
            self.done += 1
            if error is not None:
                self.errors.append(f"{type(error).__name__}: {error}"[:300])


def visit_until_done(page: Page, tally: Tally, seed: int) -> None:
    """One user after the other, each in a session of its own that is never closed."""
    rng = random.Random(seed)
    with page.client() as client:
        while True:
            for action in Visitor(page, client, rng).actions():
                if not tally.take():
                    return
                error = None
                try:
                    action()
                except (httpx.HTTPError, RuntimeError, LookupError, TypeError, ValueError) as problem:
                    error = problem
                tally.count(error)


def child_environment(folder: Path) -> dict[str, str]:
    """Environment of the process under load: its temporary files are counted, and nothing is asked of the Hub."""
    return {**os.environ, "TMPDIR": str(folder), "HF_HUB_OFFLINE": "1"}


def free_port() -> int:
    """A port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def load_page(num_requests: int, num_users: int) -> dict[str, Any]:
    """Serve the page and let users at it.

    Args:
        num_requests: Of all users together.
        num_users: At the same time.
    """
    tally, disk = Tally(num_requests), []
    with tempfile.TemporaryDirectory() as temporary:
        folder, port = Path(temporary), free_port()
        server = subprocess.Popen(
            [sys.executable, "-c", PAGE, str(port)],
            cwd=ROOT,
            env=child_environment(folder),
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            if "LDVC is at" not in (said := server.stdout.readline()):
                raise RuntimeError(f"the page did not start: {said!r}")
            page, watch = Page(f"http://127.0.0.1:{port}"), Watch(psutil.Process(server.pid), lambda: tally.done)
            users = [threading.Thread(target=visit_until_done, args=(page, tally, seed)) for seed in range(num_users)]
            with watch.running():
                for user in users:
                    user.start()
                while any(user.is_alive() for user in users):
                    disk.append((tally.done, sum(files_below(folder).values())))
                    time.sleep(1)
        finally:
            server.send_signal(signal.SIGTERM)
            try:
                server.wait(timeout=60)
            except subprocess.TimeoutExpired:
                server.kill()
                raise
        left = sorted(files_below(folder))
    figures = {"requests": tally.done, "users": num_users, "kept_seconds": KEPT_SECONDS}
    disk_figures = {f"disk_{name}": value for name, value in summarise(disk).items()}
    return figures | {"errors": tally.errors} | summarise(watch.samples) | disk_figures | {"left": left}


# ---- the bulk command


def load_segment(num_pictures: int) -> dict[str, Any]:
    """Segment a folder of pictures of many sizes, every twentieth damaged, in all formats.

    Args:
        num_pictures: How many.
    """
    rng, formats = random.Random(0), [word for kind in ("png", "overlay", "coco-rle", "npz") for word in ("-f", kind)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        pictures, masks = folder / "pictures", folder / "masks"
        pictures.mkdir()
        for index in range(num_pictures):
            width, height = SIDES[index % len(SIDES)], SIDES[3 * index % len(SIDES)]
            draw_noise(rng, width, height).save(pictures / f"{index:05}.jpg")
            if index % 20 == 7:
                (pictures / f"{index:05}.jpg").write_bytes(b"this is text")
        arguments = ["segment", str(pictures), "-l", "cat, balloon|hot air balloon, grass, sky", "-o", str(masks)]
        with (folder / "said.txt").open("w+") as said:
            command = subprocess.Popen(
                [sys.executable, "-c", COMMAND, *arguments, *formats],
                cwd=ROOT,
                env=child_environment(folder),
                stdout=said,
                stderr=said,
            )
            watch = Watch(psutil.Process(command.pid), lambda: len(list(masks.glob("*.npz"))))
            with watch.running():
                code = command.wait()
            said.seek(0)
            text = said.read()
        bad, done = len(range(7, num_pictures, 20)), len(list(masks.glob("*.npz")))
        left = [path.name for path in folder.rglob("*.part")]
    is_good = (done, code) == (num_pictures - bad, 1 if bad else 0)
    errors = [] if is_good else [f"{done} done, exit code {code}: {text[-1000:]}"]
    return {"pictures": num_pictures, "refused": bad, "errors": errors, "left": left} | summarise(watch.samples)


# ---- running


def is_steady(figures: dict[str, Any]) -> bool:
    """Whether a run passes."""
    grown = [figures.get(f"{kind}_at_end", 0) - figures.get(f"{kind}_at_warm_up", 0) for kind in ("mb", "disk_mb")]
    return all(growth <= MAX_GROWTH_MB for growth in grown) and not figures["errors"] and not figures["left"]


def main() -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    page = commands.add_parser("page", help="the web page")
    page.add_argument("--requests", type=int, default=600)
    page.add_argument("--users", type=int, default=4)
    commands.add_parser("segment", help="ldvc segment").add_argument("--pictures", type=int, default=400)
    arguments = parser.parse_args()
    if arguments.what == "page":
        figures = load_page(arguments.requests, arguments.users)
    else:
        figures = load_segment(arguments.pictures)
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
    return 0 if is_steady(figures) else 1


if __name__ == "__main__":
    sys.exit(main())
