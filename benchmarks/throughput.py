"""A folder of photographs through `ldvc segment`: decoding, model and writing side by side, or in turn.

    python -m benchmarks.throughput                 200 generated photographs, the embedded checkpoint
    python -m benchmarks.throughput --pictures 8 --runtime onnx --model outputs/voc2012_inductive

Both ways take turns in one process, and write the same files. Writes results/tools/throughput.json.
"""

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.processes import draw_photographs, same_pixels
from benchmarks.timing import describe_machine, ratio, spreads
from ldvc.app.batch import Job, Segmenter, segment_pictures
from ldvc.data.provenance import code_version, write_json
from ldvc.masks.files import MAX_PIXELS, find_pictures, pixel_limit
from ldvc.masks.formats import Format, OutputFolder
from ldvc.places import EMBEDDED_CHECKPOINT, ROOT


RESULT = ROOT / "results/tools/throughput.json"
FORMATS = (Format.PNG, Format.OVERLAY)


def open_folder(pictures: Path, segmenter: Segmenter, output: Path) -> tuple[list[Any], OutputFolder]:
    """The pictures of a folder, and an empty output folder for them."""
    shutil.rmtree(output, ignore_errors=True)
    found = find_pictures([str(pictures)]).pictures
    folder = OutputFolder(output, FORMATS, segmenter.describe(), len(segmenter.names))
    folder.start({picture.name: picture.path for picture in found})
    return found, folder


def side_by_side(pictures: Path, segmenter: Segmenter, output: Path) -> None:
    """As the command does it.

    Raises:
        RuntimeError: If a picture fails.
    """
    found, folder = open_folder(pictures, segmenter, output)
    if failures := segment_pictures(found, segmenter, folder, MAX_PIXELS, shows_progress=False):
        raise RuntimeError(f"{failures[0]}")
    folder.finish()


def one_after_the_other(pictures: Path, segmenter: Segmenter, output: Path) -> None:
    """Read, segment, write, and then the next picture."""
    found, folder = open_folder(pictures, segmenter, output)
    with pixel_limit(MAX_PIXELS):
        for picture in found:
            job = Job(picture)
            segmenter.load(job, MAX_PIXELS)
            (job.result,) = segmenter.segment([job.prepared])
            folder.save(picture, job.image, job.result)
    folder.finish()


def measure(model: str, runtime: str, precision: str, count: int, repeats: int) -> dict[str, Any]:
    """Both ways in turn.

    Raises:
        RuntimeError: If their files differ.
    """
    segmenter = Segmenter(model, "cpu", None, None, None, runtime=runtime, precision=precision)
    jobs = {"side by side": side_by_side, "one after the other": one_after_the_other}
    seconds: dict[str, list[float]] = {name: [] for name in jobs}
    with tempfile.TemporaryDirectory() as text:
        place = Path(text)
        draw_photographs(place / "photographs", count)
        for _ in range(repeats):
            for name, job in jobs.items():
                started = time.perf_counter()
                job(place / "photographs", segmenter, place / name)
                seconds[name].append(time.perf_counter() - started)
        if same_pixels(*(place / name for name in jobs)) != 1:
            raise RuntimeError("the two ways wrote different files")
    return {
        "ratio": ratio(seconds, "one after the other", "side by side"),
        "seconds": spreads(seconds),
        "pictures": count,
        "runtime": runtime,
        "precision": precision,
        "model": "embedded" if model == str(EMBEDDED_CHECKPOINT) else Path(model).name,
    }


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=200, help="photographs (default: 200)")
    parser.add_argument("--repeats", type=int, default=7, help="rounds (default: 7)")
    parser.add_argument("--model", default=str(EMBEDDED_CHECKPOINT), help="folder or Hub id")
    parser.add_argument("--runtime", default="torch", help="torch, onnx or openvino")
    parser.add_argument("--precision", default="float32", help="float32 or bf16")
    parser.add_argument("--output", type=Path, default=RESULT, help="file of the result")
    arguments = parser.parse_args()
    options = (arguments.model, arguments.runtime, arguments.precision, arguments.pictures, arguments.repeats)
    result = measure(*options) | {"machine": describe_machine(), "code": code_version()}
    write_json(result, arguments.output)
    sys.stdout.write(f"{result}\n")


if __name__ == "__main__":
    main()
