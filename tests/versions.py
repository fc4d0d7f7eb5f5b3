"""Does a published folder do the same under every release of Transformers? `python -m tests.versions`.

    python -m tests.versions                      every release of the list, and docs/versions.md
    python -m tests.versions 5.4.0 newest         some of them; exit code 1 where one differs without a reason
    python -m tests.versions --tests 5.4.0        the fast tests of model, processor and pipeline under it as well
    python -m tests.versions --all-tests 5.12.1   the whole fast suite under it, and docs/versions.md

A folder is published from the embedded checkpoint, once; `tests/probe.py` then uses it in a process that cannot import
LDVC, under this environment and with each release in front of it: the library alone, and of what it requires only what
does not fit as it is installed. These are kept in outputs/versions/.
"""

import argparse
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

from ldvc.experiments.publish import build_folder
from ldvc.places import EMBEDDED_CHECKPOINT, ROOT


RELEASES = ("5.4.0", "5.6.0", "5.12.1", "5.16.1", "5.18.0", "5.20.2", "5.22.2", "5.23.0", "5.24.0")
REFUSED = ("4.57.6", "5.0.0", "5.3.0")
PAGE = ROOT / "docs" / "versions.md"
KEPT = ROOT / "outputs" / "versions"
MARKER = re.compile(r"(<!-- releases -->\n).*?(<!-- end -->)", re.DOTALL)
RECORD = ROOT / "results" / "versions.json"
SENTENCE = "LDVC needs Transformers 5.4 or newer and below 6, and this is {}: pip install 'transformers>=5.4,<6'."
FACTS = {  # of tests/probe.py -> head of its column
    "auto_classes": "Auto classes",
    "auto_image_processor": "AutoImageProcessor",
    "processor": "processor",
    "logits": "logits",
    "label_map": "label map",
    "stock_pipeline": "stock pipeline",
    "zero_shot_pipeline": "own pipeline",
    "training_step": "loss, training step",
    "trainer": "Trainer",
    "save_and_reload": "save, reload",
}
# A difference that is the library's -> what it says there, and why.
EXPLAINED = {"AutoImageProcessor requires the Torchvision library": "needs torchvision"}
FAST_TESTS = (
    "configuration_ldvc",
    "modeling_ldvc",
    "processing_ldvc",
    "pipeline",
    "remote_code",
    "conformance",
    "versions",
)


def find_distribution(name: str, folder: Path) -> Distribution | None:
    """What is installed in a folder of `pip install --target`."""
    return next((found for found in distributions(path=[str(folder)]) if found.name.lower() == name), None)


def install(folder: Path, *packages: str) -> None:
    """Put packages into a folder, and nothing that they require."""
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-compile", "--target", str(folder)]
    subprocess.run([*command, *packages], check=True, stdout=sys.stderr)


def make_environment(release: str) -> Path | None:
    """A folder with a release and what of its requirements does not fit; `None` for the one that is installed.

    Args:
        release: A version, or "newest".
    """
    if release == version("transformers"):
        return None
    folder = KEPT / release
    if release == "newest":
        shutil.rmtree(folder, ignore_errors=True)  # of an earlier day
    if (folder / ".done").is_file():
        return folder
    install(folder, "transformers<6" if release == "newest" else f"transformers=={release}")
    for line in find_distribution("transformers", folder).requires or []:
        wanted = Requirement(line)
        if wanted.marker is None and not fits(wanted):
            install(folder, str(wanted))
    (folder / ".done").touch()
    return folder


def fits(wanted: Requirement) -> bool:
    """Whether a requirement is met by what is installed here."""
    try:
        return wanted.specifier.contains(version(wanted.name))
    except PackageNotFoundError:
        return wanted.name == "typer-slim"  # the same modules as typer


def environment_of(folder: Path | None, work: Path, *more: str) -> dict[str, str]:
    """Variables of a process that sees a release first."""
    front = [str(folder)] if folder is not None else []
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([*front, *more]),
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(work / "hf"),
        "HF_MODULES_CACHE": str(work / "modules"),
        "OMP_NUM_THREADS": "1",
    }


def publish_folder(work: Path) -> Path:
    """The embedded checkpoint as `ldvc publish` makes it."""
    results = ROOT / "results" / "picturebook" / "ldvc_seed0.json"
    return build_folder(EMBEDDED_CHECKPOINT, work / "picturebook", results)


def probe(folder: Path, release: str) -> dict[str, Any]:
    """What a published folder does under a release; `{"refused": the last line}` where nothing runs."""
    packages = make_environment(release)
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary)
        command = [sys.executable, str(ROOT / "tests" / "probe.py"), str(folder)]
        command += [str(ROOT / "assets" / "demo_page.jpg"), str(work / "found.json")]
        environment = environment_of(packages, work) | {"PYTHONSAFEPATH": "1"}
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=600)
        if done.returncode:
            return {"release": release, "refused": done.stderr.strip().splitlines()[-1]}
        found = json.loads((work / "found.json").read_text())
    for name in ("huggingface_hub", "tokenizers"):
        own = find_distribution(name, packages) if packages is not None else None
        found[name] = own.version if own is not None else version(name)
    return found


def run_tests(release: str, whole: bool) -> str:
    """The fast tests under a release: "2400 passed, 3 skipped", and names of those that failed."""
    names = [] if whole else [str(ROOT / "tests" / f"test_{name}.py") for name in FAST_TESTS]
    with tempfile.TemporaryDirectory() as temporary:
        environment = environment_of(make_environment(release), Path(temporary), str(ROOT))
        command = [sys.executable, "-m", "pytest", "--quiet", "--numprocesses", "2", *names]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    counts = re.search(r"^=*\s*(\d+ .*?) in [\d.]+s", done.stdout, re.MULTILINE)
    failed = re.findall(r"^(?:FAILED|ERROR) \S+::(\S+)", done.stdout, re.MULTILINE)
    said = re.sub(r", \d+ warnings?", "", counts[1]) if counts else done.stdout[-300:] + done.stderr[-300:]
    return ": ".join([said, *([", ".join(failed)] if failed else [])])


def compare(found: dict[str, Any], expected: dict[str, Any]) -> dict[str, str]:
    """Of each fact "equal", the reason why it is not, or what came in its place."""
    cells = {}
    for name in FACTS:
        value = found.get(name, found.get("refused", "missing"))
        reason = next((short for long, short in EXPLAINED.items() if long in value), None)
        cells[name] = "equal" if value == expected[name] else reason or f"**differs**: {value}"
    return cells


def differs(found: dict[str, Any], expected: dict[str, Any]) -> bool:
    """Whether anything is not as it should be."""
    if found["release"] in REFUSED:
        return SENTENCE.format(found["release"]) not in str(found.get("auto_classes", found.get("refused")))
    return any(cell.startswith("**") for cell in compare(found, expected).values()) or bool(found["future_warnings"])


def render(record: dict[str, Any]) -> str:
    """The table of docs/versions.md, and under it what the refused releases said."""
    expected = record["found"][record["pinned"]]
    tests = record["tests"]
    heads = ["Transformers", "huggingface_hub", "tokenizers", *FACTS.values(), *(["fast tests"] if tests else [])]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for release, found in record["found"].items():
        if release in REFUSED:
            continue
        cells = compare(found, expected) if release != record["pinned"] else dict.fromkeys(FACTS, "the reference")
        row = [release, found["huggingface_hub"], found["tokenizers"], *cells.values()]
        lines.append("| " + " | ".join([*row, *([tests.get(release, "not run")] if tests else [])]) + " |")
    said = [f"    {found['auto_classes']}" for name, found in record["found"].items() if name in REFUSED]
    place = f"Python {record['python']}, PyTorch {record['torch']}, {record['machine']}."
    return "\n".join([*lines, "", place, "", *said])


def write_record(record: dict[str, Any]) -> None:
    """Keep what was found, oldest release first, and render the page from it."""
    by_age = sorted(record["found"], key=lambda release: [int(part) for part in release.split(".")])
    record["found"] = {release: record["found"][release] for release in by_age}
    text = json.dumps(record, indent=1).replace(f"{RECORD.resolve().parents[1]}/", "")  # no path of this machine
    RECORD.write_text(text + "\n")
    PAGE.write_text(render_page(PAGE.read_text(), record))


def render_page(page: str, record: dict[str, Any]) -> str:
    """docs/versions.md with this record between its markers."""
    return MARKER.sub(lambda match: f"{match[1]}{render(record)}\n{match[2]}", page)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("releases", nargs="*", help='versions, or "newest"')
    parser.add_argument("--tests", action="store_true", help="run the fast tests that matter, too")
    parser.add_argument("--all-tests", action="store_true", help="run the whole fast suite, too, and keep its counts")
    parser.add_argument("--keep", action="store_true", help="write named releases into docs/versions.md, too")
    arguments = parser.parse_args(argv)
    import torch

    pinned = version("transformers")
    record = json.loads(RECORD.read_text()) if RECORD.is_file() else {"found": {}, "tests": {}}
    record |= {"pinned": pinned, "python": sys.version.split()[0], "torch": torch.__version__.partition("+")[0]}
    record["machine"] = platform.machine()
    keeps, is_bad = not arguments.releases or arguments.keep or arguments.all_tests, False
    with tempfile.TemporaryDirectory() as temporary:
        folder = publish_folder(Path(temporary))
        expected = probe(folder, pinned)
        for release in arguments.releases or [*RELEASES, *REFUSED]:
            found = expected if release == pinned else probe(folder, release)
            is_wrong = differs(found, expected)
            sys.stdout.write(f"{found['release']}: {'differs' if is_wrong else 'as it should be'}\n")
            sys.stdout.flush()
            if is_wrong:
                sys.stdout.write(json.dumps(found, indent=1) + "\n")
            record["found"] |= {found["release"]: found, pinned: expected}
            if arguments.tests or arguments.all_tests:
                counts = run_tests(release, arguments.all_tests)
                sys.stdout.write(f"{found['release']}: {counts}\n")
                is_wrong |= "failed" in counts or "error" in counts
                if arguments.all_tests:
                    record["tests"][found["release"]] = counts
            is_bad |= is_wrong
            if keeps:
                write_record(record)
    return 1 if is_bad else 0


if __name__ == "__main__":
    sys.exit(main())
