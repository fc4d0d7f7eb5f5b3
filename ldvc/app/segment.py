"""`ldvc segment`: its options, and how they become a run; the run itself is the work of `batch`."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ldvc.app.engine import Alone, Crew, Engine, open_crew
from ldvc.app.labels import as_classes, parse_labels
from ldvc.data.rows import find_rows
from ldvc.loading import EMBEDDED_CHECKPOINT, read_settings
from ldvc.masks.coco import FIRST_CATEGORY_ID
from ldvc.masks.files import MAX_PIXELS, Found, find_pictures, parse_value_range
from ldvc.masks.formats import WRITERS, Existing, Format, OutputFolder
from ldvc.masks.geo import RasterWriter
from ldvc.masks.rasters import RasterPicture, RasterSettings, as_rasters, parse_bands
from ldvc.runtime.programs import Precision, Runtime
from ldvc.shares import Share, join_processes


if TYPE_CHECKING:  # these imports take seconds
    from ldvc.app.runtimes import Choice


ModelOption = Annotated[
    str,
    typer.Option(
        "--model", "-m", help="Folder or Hub id of LDVC, a CLIP or a CLIPSeg.", show_default="the embedded checkpoint"
    ),
]
DeviceOption = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps, ...")]
DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
DEFAULT_MODEL = str(EMBEDDED_CHECKPOINT)


class Smoothing(StrEnum):
    """Of scores by the picture, see ldvc/segmenters/smoothing.py."""

    PAMR = "pamr"
    PROPAGATION = "propagation"
    BOTH = "pamr-propagation"


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
SmoothingOption = Annotated[
    Smoothing | None, typer.Option(help="Smooth scores by the picture: fewer fragments, more time; needs PyTorch.")
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
    smoothing: SmoothingOption = None,
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
    rows = [split, dataset_config, image_column, id_column]
    found = find_source(images, recursive, output, dataset, rows)
    levels, facts = read_rasters(found, formats, bands, value_range)
    facts |= describe_rows(found, dataset, rows) | describe_files(scores, image_url)
    share, options = join_processes(), read_settings(method, setting)
    words = words and [word for own in words.values() for word in own]
    asked = (classes, vocabulary, (short_side, window, stride), threshold, other, *what_is_kept(formats, scores))
    asked = (*asked, batch_size, seen_score_offset, rivals, words, options, levels)
    make_segmenter, choice = prepare_segmenter(model, device, asked, (runtime, precision), share, smoothing)
    with open_crew(make_segmenter, engine, actors, batch_size, share) as crew:
        place = (output, formats, facts, first_category_id, what_to_replace(overwrite, skip_existing))
        return segment_found(crew, found, place, share, max_pixels, debug, f"Runtime: {choice}")


def read_labels(text: str | None) -> dict[str, list[str]] | None:
    """Read an option of names; `None` where it is not given."""
    return None if text is None else as_classes(parse_labels(text))


def prepare_segmenter(
    model: str,
    device: str,
    asked: tuple[Any, ...],
    way: tuple[Runtime, Precision],
    share: Share,
    smoothing: Smoothing | None,
) -> tuple[partial, Choice]:
    """Choose what runs the model; the function that is returned loads it, here or in other processes.

    Args:
        model: Folder or Hub id.
        device: As `--device`.
        asked: Further arguments of `batch.Segmenter`, of which the third is short side, window and stride.
        way: As `--runtime` and `--precision`.
        share: Of the processes, which know their device.
        smoothing: As `--smoothing`, for which `auto` is PyTorch.
    """
    from ldvc.app import batch, runtimes  # after what can be refused at once

    classes, vocabulary, sizes, *others, options, levels = asked
    device = share.device if device == "auto" and share.device else device
    settings, (runtime, precision) = batch.make_settings(*sizes), way
    if smoothing is not None and runtime is Runtime.AUTO:
        runtime = Runtime.TORCH
    batch.check_smoothing(smoothing, settings, runtime)
    choice = runtimes.choose(model, device, runtime, precision, options, settings)
    arguments = (model, device, classes, vocabulary, settings, *others, options, levels)
    how = {"runtime": choice.runtime, "precision": choice.precision, "smoothing": smoothing}
    return partial(batch.Segmenter, *arguments, **how), choice


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
