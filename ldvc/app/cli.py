"""The command `ldvc`: wiring only; each command's work is done by the module of its subject.

Heavy libraries are imported inside the commands, so that `ldvc --help` answers at once. User errors end with one line
on stderr and exit code 2; a batch of which some pictures failed ends with exit code 1.
"""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from ldvc import __version__
from ldvc.app.engine import Alone, Crew, Engine, open_crew
from ldvc.app.labels import as_classes, check_labels, parse_labels
from ldvc.app.labels import render as render_labels
from ldvc.data.rows import find_rows
from ldvc.loading import EMBEDDED_CHECKPOINT, default_names, load, one_line, read_settings
from ldvc.masks.coco import FIRST_CATEGORY_ID
from ldvc.masks.files import MAX_PIXELS, Found, find_pictures, parse_value_range
from ldvc.masks.formats import WRITERS, Existing, Format, OutputFolder
from ldvc.masks.geo import RasterWriter
from ldvc.masks.parts import written_aside
from ldvc.masks.rasters import RasterPicture, RasterSettings, as_rasters, parse_bands
from ldvc.places import how_to_install
from ldvc.runtime.programs import Precision, Runtime
from ldvc.shares import Share, join_processes


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

ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Folder or Hub id of LDVC, a CLIP or a CLIPSeg.", show_default="the embedded checkpoint"
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DEFAULT_MODEL = str(EMBEDDED_CHECKPOINT)


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


# ---- ldvc segment

SEGMENT_EXAMPLES = """\b
Examples:
  ldvc segment photo.jpg --labels "cat, sofa|couch, grass"
  ldvc segment photos --recursive --labels classes.txt --format png --format overlay --output masks
  ldvc segment "photos/*.jpg" --labels "road, car" --threshold "0.3, car=0.5" --format coco-rle
  ldvc segment aerial.tif --labels "field, wood, water" --window 512 --format npz --scores
  ldvc segment aerial.tif --labels "field, wood, water" --window 512 --short-side 0 --format geotiff
  ldvc segment photos --labels classes.txt --format label-studio --image-url "/data/local-files/?d=photos/"
  ldvc segment photo.jpg --labels "person, helmet" --not "wall, floor" --model openai/clip-vit-base-patch16
  ldvc segment photo.jpg --labels voc2012 --background stuff --model CIDAS/clipseg-rd64-refined
  ldvc segment photos --labels classes.txt --runtime openvino --precision bf16
  ldvc segment --dataset data/voc2012 --split validation --id-column image_id --batch-size 8
  accelerate launch --multi_gpu --num_processes 4 -m ldvc segment photos --skip-existing
  ldvc segment photos --labels classes.txt --engine ray --actors 4 --skip-existing

\b
Labels: commas part classes, bars part synonyms. A value that ends in .txt is a
file with one class per line; coco_stuff, voc2012 and other names of
vocabularies stand for their classes, stuff for a list of surroundings. This
holds for --not and --background too: what --not names competes with the labels
and comes back as "other"; the words of --background are one class together,
less those that are labels by themselves.
Names of results: a picture found in a folder keeps its path below it, any other
its file name, without the suffix; where two would be the same, both keep it.
Of a dataset, results are named by the rows' numbers or by --id-column.
names.json holds the name and colour of every id. Pixels follow the upright
picture (EXIF orientation applied).
Exit code: 0, 1 if some pictures failed, 2 for bad arguments."""

DATASET_DEFAULTS = {"--split": "validation", "--dataset-config": None, "--image-column": "image", "--id-column": None}

ImagesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="IMAGE", help="Files, folders or glob patterns.", show_default=False)
]
LabelsOption = Annotated[
    str | None, typer.Option("--labels", "-l", help="Class names; by default the checkpoint's own.")
]
VocabularyOption = Annotated[Path | None, typer.Option(help="Folder of a saved LDVCVocabulary, in place of --labels.")]
OutputOption = Annotated[Path, typer.Option("--output", "-o", help="Folder for the results.")]
DEFAULT_FORMATS = [Format.PNG, Format.OVERLAY]
FormatsOption = Annotated[list[Format], typer.Option("--format", "-f", help="Repeatable.")]
RecursiveOption = Annotated[bool, typer.Option("--recursive", "-r", help="Search folders below folders too.")]
DatasetOption = Annotated[
    str | None, typer.Option(help="Folder or Hub id of a dataset of the library `datasets`, in place of IMAGE.")
]
SplitOption = Annotated[
    str | None, typer.Option(help="Split of the dataset.", show_default=DATASET_DEFAULTS["--split"])
]
ConfigOption = Annotated[str | None, typer.Option(help="Configuration of a dataset that has several.")]
ImageColumnOption = Annotated[
    str | None,
    typer.Option(help="Column of the dataset's pictures.", show_default=DATASET_DEFAULTS["--image-column"]),
]
IdColumnOption = Annotated[
    str | None, typer.Option(help="Column of names for the results; by default, rows are counted from 0.")
]
ThresholdOption = Annotated[
    str | None, typer.Option(help='Probability below which a pixel is "other": "0.3", or by class "0.3, car=0.5".')
]
SeenOffsetOption = Annotated[
    float | None,
    typer.Option(
        min=0, max=0.99, help="Lower the probability of classes that trained with masks, by 0.1 for instance."
    ),
]
NotOption = Annotated[
    str | None, typer.Option("--not", help='Names that compete with the labels and come back as "other".')
]
BackgroundOption = Annotated[
    str | None, typer.Option(help='Words that are one class together, "background"; stuff is a ready list.')
]
MethodOption = Annotated[str | None, typer.Option(help="How a CLIP segments without training.")]
SettingOption = Annotated[
    list[str] | None, typer.Option("--setting", help="NAME=VALUE, a setting of the method; repeatable.")
]
OtherOption = Annotated[str | None, typer.Option(help='Name of "other".')]
CategoryOption = Annotated[
    int, typer.Option(min=0, help="COCO's category id of the first class; 0 makes them the ids of the label maps.")
]
UrlOption = Annotated[
    str | None,
    typer.Option(help='Put before file names in label-studio files: "/data/local-files/?d=photos/", "s3://mine/".'),
]
BandsOption = Annotated[
    str | None, typer.Option(help="Bands of TIFF files as red, green and blue, counted from 1: 4,3,2; or one band.")
]
ScoresOption = Annotated[bool, typer.Option("--scores", help="Keep all probabilities in the npz.")]
ShortSideOption = Annotated[
    int | None, typer.Option(min=0, help="Resize to this shorter side in pixels first; 0 keeps the size.")
]
WindowOption = Annotated[
    int | None, typer.Option(min=0, help="Slide a window of so many pixels; 0 or nothing takes the picture whole.")
]
StrideOption = Annotated[int | None, typer.Option(min=1, help="Pixels from window to window; by default 5/6 of it.")]
BatchOption = Annotated[
    int | None,
    typer.Option(min=1, help="Pictures, or windows, per call of the model; by default 1 picture, or 4 windows."),
]
ValueRangeOption = Annotated[
    str | None,
    typer.Option(
        help='Values that are black and white, "0,4095", in pictures of more than 8 bits.', metavar="LOW,HIGH"
    ),
]
RuntimeOption = Annotated[
    Runtime, typer.Option(help="What runs the model; auto takes what ldvc doctor --bench found, or PyTorch.")
]
PrecisionOption = Annotated[Precision, typer.Option(help="Of matrix products; bf16 where the processor has it.")]
MaxPixelsOption = Annotated[int, typer.Option(min=1, help="Refuse larger pictures, which may be decompression bombs.")]
EngineOption = Annotated[
    Engine | None, typer.Option(help="Hand the pictures to processes of Ray, here or where RAY_ADDRESS says.")
]
ActorsOption = Annotated[
    int | None, typer.Option(min=1, help="Processes of --engine; by default one per GPU, or one.")
]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace results that are there.")]
SkipOption = Annotated[bool, typer.Option("--skip-existing", help="Make only what is missing or damaged: resume.")]


@app.command("segment", epilog=SEGMENT_EXAMPLES)
def segment_command(
    images: ImagesArgument = None,
    labels: LabelsOption = None,
    model: ModelOption = DEFAULT_MODEL,
    vocabulary: VocabularyOption = None,
    negative: NotOption = None,
    background: BackgroundOption = None,
    method: MethodOption = None,
    setting: SettingOption = None,
    output: OutputOption = Path("ldvc-masks"),
    formats: FormatsOption = DEFAULT_FORMATS,
    recursive: RecursiveOption = False,
    dataset: DatasetOption = None,
    split: SplitOption = None,
    dataset_config: ConfigOption = None,
    image_column: ImageColumnOption = None,
    id_column: IdColumnOption = None,
    threshold: ThresholdOption = None,
    other: OtherOption = None,
    seen_score_offset: SeenOffsetOption = None,
    scores: ScoresOption = False,
    first_category_id: CategoryOption = FIRST_CATEGORY_ID,
    image_url: UrlOption = None,
    bands: BandsOption = None,
    value_range: ValueRangeOption = None,
    short_side: ShortSideOption = None,
    window: WindowOption = None,
    stride: StrideOption = None,
    batch_size: BatchOption = None,
    device: DeviceOption = "auto",
    runtime: RuntimeOption = Runtime.AUTO,
    precision: PrecisionOption = Precision.FLOAT32,
    max_pixels: MaxPixelsOption = MAX_PIXELS,
    engine: EngineOption = None,
    actors: ActorsOption = None,
    overwrite: OverwriteOption = False,
    skip_existing: SkipOption = False,
    debug: DebugOption = False,
) -> int:
    """Label every pixel of pictures with the classes that you name.

    Without --window and --short-side, a picture goes through the model whole, at the checkpoint's own size.
    """
    check_options(labels, vocabulary, formats, scores, overwrite, skip_existing)
    classes, rivals, words = map(read_labels, (labels, negative, background))
    rows, load_settings = [split, dataset_config, image_column, id_column], read_settings(method, setting)
    found = find_source(images, recursive, output, dataset, rows)
    levels, facts = read_rasters(found, formats, bands, value_range)
    facts |= describe_rows(found, dataset, rows) | describe_files(scores, image_url)
    from ldvc.app import batch

    share, device, choice = choose_runtime(model, device, runtime, precision, load_settings)
    options = (model, device, classes, vocabulary, batch.make_settings(short_side, window, stride), threshold, other)
    options += (*what_is_kept(formats, scores), batch_size, seen_score_offset, rivals)
    words = words and [word for own in words.values() for word in own]
    make_segmenter = partial(batch.Segmenter, *options, words, load_settings, levels, *choice[:2])
    with open_crew(make_segmenter, engine, actors, batch_size, share) as crew:
        place = (output, formats, facts, first_category_id, what_to_replace(overwrite, skip_existing))
        return segment_found(crew, found, place, share, max_pixels, debug, f"Runtime: {choice}")


def choose_runtime(
    model: str, device: str, runtime: Runtime, precision: Precision, load_settings: dict[str, Any]
) -> tuple[Share, str, Any]:
    """This process's share of the work, what it computes on, and with; see `choose`."""
    from ldvc.app import runtimes

    share = join_processes()
    device = share.device if device == "auto" and share.device else device
    return share, device, runtimes.choose(model, device, runtime, precision, load_settings)


def read_labels(text: str | None) -> dict[str, list[str]] | None:
    """Read an option of names; `None` where it is not given."""
    return None if text is None else as_classes(parse_labels(text))


def what_to_replace(overwrite: bool, skip_existing: bool) -> Existing:
    """What happens to results that are there."""
    return Existing.OVERWRITE if overwrite else Existing.SKIP if skip_existing else Existing.REFUSE


def segment_found(
    crew: Alone | Crew,
    found: Found,
    place: tuple[Path, Sequence[Format], dict[str, Any], int, Existing],
    share: Share,
    max_pixels: int,
    debug: bool,
    note: str,
) -> int:
    """Check the output folder, segment what this process is to do, and report it; returns the exit code.

    Args:
        crew: Whoever does it.
        found: The pictures.
        place: The output folder, kinds of results, what names.json says beside the model's, COCO's first category id,
            and what to replace.
        share: Of this process.
        max_pixels: Refuse larger pictures.
        debug: Raise the first error.
        note: Said when all is checked.
    """
    output, formats, facts, first_category_id, existing = place
    description, *rest = crew.describe()
    folder = OutputFolder(output, formats, description | facts, *rest, first_category_id)
    todo = set(folder.start({picture.name: picture.path for picture in found.pictures}, existing, share))
    pictures = [picture for picture in found.pictures if picture.name in todo]
    if share.is_main:
        typer.echo(note)
    failures = crew.segment(pictures, folder, max_pixels, debug)
    return finish_batch(found, len(pictures), failures, folder, share, crew.close())


def what_is_kept(formats: Sequence[Format], scores: bool) -> tuple[bool, bool]:
    """Whether the scores of all classes are needed, and whether those of the best."""
    writers = [WRITERS[kind] for kind in formats]
    return scores or any(kind.needs_scores for kind in writers), any(kind.needs_best_scores for kind in writers)


def read_rasters(
    found: Found, formats: Sequence[Format], bands: str | None, value_range: str | None
) -> tuple[tuple[float, float] | None, dict[str, Any]]:
    """Let rasterio read TIFF files where bands or places matter; returns the range, and what names.json says of it.

    Raises:
        ValueError: If bands or range make no sense, or there is no TIFF file for the bands.
    """
    settings = RasterSettings(parse_bands(bands), parse_value_range(value_range))
    if not (bands or any(issubclass(WRITERS[kind], RasterWriter) for kind in formats)):
        return settings.value_range, {}
    found.pictures = as_rasters(found.pictures, settings)
    if any(isinstance(picture, RasterPicture) for picture in found.pictures):
        facts = {"rasters": {"bands": settings.bands, "value_range": settings.value_range}}
        return settings.value_range, facts
    if bands:
        raise ValueError("--bands is of TIFF files, and there is none.")
    return settings.value_range, {}


def describe_files(scores: bool, image_url: str | None) -> dict[str, Any]:
    """What options of single kinds of results change in their files."""
    return {"scores": scores} | ({"image_url": image_url} if image_url else {})


def describe_rows(found: Found, dataset: str | None, values: Sequence[str | None]) -> dict[str, list[Any]]:
    """What numbers of rows refer to, where results are named by these, which every split has.

    Args:
        found: The rows.
        dataset: As `--dataset`.
        values: Of the options in `DATASET_DEFAULTS`.
    """
    split, dataset_config, _, id_column = values
    if dataset is None or id_column is not None:
        return {}
    place = str(Path(dataset).resolve()) if Path(dataset).exists() else dataset
    return {"rows": [place, split or DATASET_DEFAULTS["--split"], dataset_config, len(found.pictures)]}


def find_source(
    images: Sequence[str] | None, recursive: bool, output: Path, dataset: str | None, values: Sequence[str | None]
) -> Found:
    """Find the pictures of files and folders, or of a dataset.

    Args:
        images: See `find_pictures`.
        recursive: See `find_pictures`.
        output: See `find_pictures`.
        dataset: See `find_rows`.
        values: Of the options in `DATASET_DEFAULTS`; `None` is the default.

    Raises:
        ValueError: If there is no source, or there are two, or options of a dataset come without one.
    """
    given = [option for option, value in zip(DATASET_DEFAULTS, values, strict=True) if value is not None]
    if images and dataset is not None:
        raise ValueError(f"--dataset takes the place of {images[0]!r}; give one of them.")
    if dataset is not None:
        values = (value or own for value, own in zip(values, DATASET_DEFAULTS.values(), strict=True))
        return find_rows(dataset, *values)
    if not images:
        raise ValueError(
            "no picture to segment: name files, folders or patterns, or a --dataset. See 'ldvc segment --help'."
        )
    if given:
        raise ValueError(f"{given[0]} goes with --dataset; give both.")
    return find_pictures(images, recursive, output)


def check_options(
    labels: str | None,
    vocabulary: Path | None,
    formats: Sequence[Format],
    scores: bool,
    overwrite: bool,
    skip_existing: bool,
) -> None:
    """Check options that exclude each other.

    Raises:
        ValueError: If two do.
    """
    if labels is not None and vocabulary is not None:
        raise ValueError("--labels and --vocabulary both name the classes; give one of them.")
    if scores and Format.NPZ not in formats:
        raise ValueError("--scores are kept in npz files; add --format npz.")
    if overwrite and skip_existing:
        raise ValueError("--overwrite and --skip-existing exclude each other; give one of them.")


def finish_batch(
    found: Found,
    num_tried: int,
    failures: list[tuple[str, str]],
    folder: OutputFolder,
    share: Share,
    journals: Sequence[Path] = (),
) -> int:
    """Wait for all processes, write what is one for all, say what was done and what failed; returns the exit code.

    Only the main process has another than 0: a launcher that sees one ends the others, who may still be at work.
    """
    everywhere = share.gather((num_tried, failures, [*journals, *folder.close()]))
    share.leave()
    if not share.is_main:
        return 0
    folder.finish([journal for _, _, journals in everywhere for journal in journals])
    places = {str(picture.path): place for place, picture in enumerate(found.pictures)}
    failures = sorted((failure for _, some, _ in everywhere for failure in some), key=lambda pair: places[pair[0]])
    num_tried = sum(tried for tried, _, _ in everywhere)
    skipped = len(found.pictures) - num_tried
    text = f"{num_tried - len(failures)} of {len(found.pictures)} pictures segmented into {folder.folder}"
    text += f" ({', '.join(folder.formats)})"
    typer.echo(text + (f", {skipped} were there already" if skipped else ""))
    if found.left_out:
        typer.echo(found.describe_left_out(), err=True)
    failures = [*found.failures, *failures]
    if failures:
        typer.echo(f"{len(failures)} failed:", err=True)
        for name, reason in failures:
            typer.echo(f"  {name}: {reason}", err=True)
    return 1 if failures else 0


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
