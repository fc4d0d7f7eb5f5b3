"""The command `ldvc`: wiring only; each command's work is done by the module of its subject.

Heavy libraries are imported inside the commands, so that `ldvc --help` answers at once. User errors end with one line
on stderr and exit code 2; a batch of which some pictures failed ends with exit code 1.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ldvc import __version__
from ldvc.app.labels import check_labels, parse_labels
from ldvc.app.labels import render as render_labels
from ldvc.app.segment import (
    DEFAULT_MODEL,
    SEGMENT_EXAMPLES,
    DebugOption,
    DeviceOption,
    MethodOption,
    ModelOption,
    SettingOption,
    segment_command,
)
from ldvc.loading import default_names, load, one_line, read_settings
from ldvc.masks.parts import written_aside
from ldvc.places import how_to_install


if TYPE_CHECKING:  # these imports take seconds
    from torch import Tensor


# Of click, or of typer's own copy of it, whichever this typer uses.
UsageError = next(kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException")
USER_ERRORS = (ValueError, TypeError, OSError, RuntimeError, MemoryError, ImportError)
EXTRAS = {"pycocotools": "cli", "gradio": "demo", "rasterio": "geo", "ray": "ray", "openvino": "openvino"}
EXTRAS |= dict.fromkeys(("torch", "transformers", "safetensors", "huggingface_hub"), "torch")
EXTRAS |= dict.fromkeys(("onnxruntime", "tokenizers"), "runtime")  # every other package comes with `train`


class OneLineErrors(TyperGroup):
    """A group of commands that ends every user error with one line; `--debug` shows where it came from."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = "ldvc",
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        """Run, and leave with the exit code.

        Raises:
            SystemExit: At the end, unless called with `standalone_mode=False`.
        """
        args = list(sys.argv[1:] if args is None else args)
        if not standalone_mode:
            return super().main(args, prog_name, standalone_mode=False, **extra)
        try:
            code = super().main(args, prog_name, standalone_mode=False, **extra)
        except typer.Abort:
            code = 130
        except (UsageError, *USER_ERRORS) as error:
            if "--debug" in args[1:]:
                raise
            code = report_error(error)
        raise SystemExit(code if isinstance(code, int) else 0)


def report_error(error: Exception) -> int:
    """Write an error as one line and return the exit code."""
    if isinstance(error, OSError) and error.errno == errno.EPIPE:  # `ldvc ... | head`
        sys.stdout = sys.stderr  # so that nothing tries to flush the closed pipe at the end
        return 1
    if isinstance(error, UsageError):
        context = getattr(error, "ctx", None)
        text = f"{error.format_message().rstrip('.')}. See '{context.command_path if context else 'ldvc'} --help'."
    elif isinstance(error, ModuleNotFoundError) and error.name:
        text = explain_missing(error.name.partition(".")[0])
    elif isinstance(error, MemoryError):
        text = "out of memory; use fewer labels, smaller pictures or --window."
    else:
        text = str(error)
    typer.echo(f"ldvc: {one_line(text)}", err=True)
    return 2


def explain_missing(package: str) -> str:
    """Say how to get a package."""
    return (
        f"this needs the package {package!r}, which is not installed: {how_to_install(EXTRAS.get(package, 'train'))}"
    )


app = typer.Typer(
    name="ldvc",
    cls=OneLineErrors,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "token_normalize_func": lambda name: name.replace("_", "-"),  # train.py's way of writing options works too
    },
)
labels_app = typer.Typer(rich_markup_mode=None, help="Look at label lists.")
app.add_typer(labels_app, name="labels")


@app.callback(invoke_without_command=True)
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and leave.")] = False,
) -> None:
    """LDVC: segment anything you can name."""
    if version:
        typer.echo(f"ldvc {__version__}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("segment", epilog=SEGMENT_EXAMPLES)(segment_command)


# ---- ldvc labels check

LABELS_EXAMPLES = """\b
Examples:
  ldvc labels check "cat, kitten, cat"
  ldvc labels check classes.txt --model outputs/voc2012_inductive --json
  ldvc labels check                        the checkpoint's own vocabulary

\b
Errors (segmentation refuses the list): empty, repeated or over-long names,
control characters. Warnings: near-identical embeddings, negations ("without",
"no"), which CLIP reads past, names that the
tokenizer splits into more than 3 pieces a word or reads as bytes, invisible
characters. Two labels are near-identical when their distance (1 - cosine) is
under a quarter of the list's median distance; lists of fewer than 8 labels are
measured together with 8 everyday words.
Exit code: 0, 1 if there are errors, 2 for bad arguments."""


@labels_app.command("check", epilog=LABELS_EXAMPLES)
def labels_check_command(
    labels: Annotated[
        str | None, typer.Argument(metavar="LABELS", help="Class names, or a .txt file with one class per line.")
    ] = None,
    model: ModelOption = DEFAULT_MODEL,
    max_cosine: Annotated[
        float | None, typer.Option(min=-1, max=1, help="Labels above it are near-identical; by default see below.")
    ] = None,
    pairs: Annotated[int, typer.Option(min=1, help="Pairs in the similarity table.")] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    debug: DebugOption = False,
) -> int:
    """Find what is wrong with a label list; needs the text tower only, no picture."""
    from ldvc.model.inference_ldvc import encode_classes

    entries = None if labels is None else parse_labels(labels)
    loaded, processor = load(model, "cpu")
    if entries is None:
        entries = [(name, [name]) for name in default_names(loaded)]

    def encode(classes: dict[str, list[str]]) -> Tensor:
        embeds = encode_classes(loaded, processor, classes, show_progress=sys.stderr.isatty())[1]
        return embeds / embeds.norm(dim=-1, keepdim=True)  # CLIPSeg's are of any length

    has_text_tower = getattr(loaded, "baked_vocabulary", None) is None
    report = check_labels(entries, processor, encode if has_text_tower else None, max_cosine, pairs)
    if as_json:
        typer.echo(json.dumps({"model": model, **report.to_dict()}, indent=2, ensure_ascii=False))
    else:
        typer.echo(render_labels(report, model))
        if not has_text_tower:
            typer.echo("\nembeddings were not compared: this checkpoint has a baked vocabulary and no text tower.")
    return 1 if report.count("error") else 0


# ---- ldvc bench

BENCH_EXAMPLES = """\b
Examples:
  ldvc bench
  ldvc bench --model outputs/voc2012_inductive --classes 1,20,150 --sizes 512 --json bench.json

\b
Times are milliseconds per call. "tower" is the model's own bare vision tower on
the same pixels; "x tower" are ratios to it, within each repeat. "whole" adds
pre-processing of 640 x 480 pictures and label maps at that size."""


@app.command("bench", epilog=BENCH_EXAMPLES)
def bench_command(
    model: ModelOption = DEFAULT_MODEL,
    classes: Annotated[str, typer.Option(help="Class counts.")] = "1,20,100",
    sizes: Annotated[str | None, typer.Option(help="Sides in pixels; by default the checkpoint's own.")] = None,
    batches: Annotated[str, typer.Option(help="Pictures per call.")] = "1,4",
    repeats: Annotated[int, typer.Option(min=1, help="Timed calls per row.")] = 20,
    method: MethodOption = None,
    setting: SettingOption = None,
    device: DeviceOption = "auto",
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the numbers to this file too.")] = None,
    debug: DebugOption = False,
) -> None:
    """Time a model on this machine by class count, image size and batch."""
    counts, batch_sizes = parse_numbers("--classes", classes), parse_numbers("--batches", batches)
    sides = None if sizes is None else parse_numbers("--sizes", sizes)
    from tqdm import tqdm

    from ldvc.app import bench

    loaded, processor = load(model, device, **read_settings(method, setting))
    sides = sides or [own_side(processor)]
    cases = bench.all_cases(counts, sides, batch_sizes)
    rows = list(tqdm(bench.run_bench(loaded, processor, cases, repeats), total=len(cases), disable=None))
    facts = bench.describe_machine(loaded) | {"model": model, "repeats": repeats}
    typer.echo(
        f"{bench.render_rows(rows)}\n\nms per call; {', '.join(f'{key} {value}' for key, value in facts.items())}"
    )
    if json_file is not None:
        content = facts | {"rows": [bench.row_to_dict(row) for row in rows]}
        with written_aside(json_file) as file:
            file.write((json.dumps(content, indent=2) + "\n").encode())


def own_side(processor: Any) -> int:
    """Side in pixels of the checkpoint's own input."""
    size = processor.image_processor.size
    return size.get("height") or size.get("shortest_edge")


def parse_numbers(option: str, text: str) -> list[int]:
    """Read "1,20,100".

    Raises:
        ValueError: If a part is no whole number of at least 1.
    """
    numbers = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if min(numbers) < 1:
        raise ValueError(f"{option} is {text!r}; give whole numbers of at least 1, such as 1,20,100.")
    return numbers


# ---- ldvc doctor, ldvc demo

DOCTOR_EXAMPLES = """\b
Examples:
  ldvc doctor
  ldvc doctor --model outputs/voc2012_inductive
  ldvc doctor --bench --model openai/clip-vit-base-patch16

\b
--bench times PyTorch, ONNX Runtime and OpenVINO, in float32 and bf16, where
they are installed; ldvc segment --runtime auto then takes the fastest one.
Exit code: 0, 1 if something does not work."""


@app.command("doctor", epilog=DOCTOR_EXAMPLES)
def doctor_command(
    model: Annotated[
        str | None, typer.Option("--model", "-m", help="Checkpoint of the self-test; by default the embedded one.")
    ] = None,
    bench: Annotated[
        bool, typer.Option("--bench", help="Measure what runs the model fastest on this CPU, and remember it.")
    ] = False,
    method: MethodOption = None,
    setting: SettingOption = None,
    debug: DebugOption = False,
) -> int:
    """Print versions, devices and settings, and run a self-test of a few seconds; needs no network."""
    settings = read_bench_settings(bench, method, setting)
    if bench:
        from ldvc.app.bench_runtimes import measure_runtimes, render_runtimes

        typer.echo(render_runtimes(measure_runtimes(model or DEFAULT_MODEL, settings)))
        return 0
    from ldvc.app import doctor

    sections = doctor.examine(model)
    typer.echo(doctor.render(sections))
    return 1 if doctor.has_failed(sections) else 0


def read_bench_settings(bench: bool, method: str | None, setting: list[str] | None) -> dict[str, Any]:
    """Settings of the model that --bench measures.

    Raises:
        ValueError: If there are some without --bench.
    """
    if (method is not None or setting) and not bench:
        raise ValueError("--method and --setting are of --bench; the self-test takes none.")
    return read_settings(method, setting)


DEMO_EXAMPLES = """\b
Examples:
  ldvc demo
  ldvc demo outputs/voc2012_inductive --port 8080"""


@app.command("demo", epilog=DEMO_EXAMPLES)
def demo_command(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="Folder or Hub id.", show_default="the embedded checkpoint")
    ] = DEFAULT_MODEL,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 opens the page to the network.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    method: MethodOption = None,
    setting: SettingOption = None,
    debug: DebugOption = False,
) -> None:
    """Open a web page: a picture, your labels, the mask."""
    from ldvc.app.page import launch

    launch(model, host=host, port=port, **read_settings(method, setting))
