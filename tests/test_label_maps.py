"""The one reader of label maps, what the checker says of each kind of file, and its remedies, each carried out."""

import io
import itertools
import json
import pickle
import shlex
import struct
import zlib

import numpy as np
import pytest
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image

from ldvc.commands import data as commands
from ldvc.commands.data import check as main
from ldvc.data import mend
from ldvc.data.findings import SAMPLE_PROBLEMS
from ldvc.data.label_maps import (
    LABEL_PROBLEMS,
    LabelMapError,
    PaletteLedger,
    decode_label,
    palette_of,
    to_label_map,
    voc_colours,
)
from ldvc.data.samples import JointAugmentation, StreamingTrainingSet, load_split, read_sample


NAMES = "[cat, dog, sofa, grass]"
COLOURS = np.array([[220, 20, 60], [0, 200, 0], [30, 60, 255], [250, 240, 10]], np.uint8)


def ids_of(index):
    """Two classes in squares, an unlabelled strip; nothing that a lossy format would keep by chance."""
    first, second = [(0, 2), (1, 3), (2, 3)][index % 3]
    ids = np.full((24, 32), 255, np.uint8)
    ids[:16, :16], ids[:16, 16:] = first, second
    return ids


def write_folder(root, write, number=3, picture=None):
    """A plain folder with both splits; `write(ids, path without ending)` writes a label map."""
    rng = np.random.default_rng(0)
    for split in ("train", "validation"):
        for part in ("images", "masks"):
            (root / split / part).mkdir(parents=True)
        for index in range(number):
            pixels = rng.integers(0, 256, (24, 32, 3), dtype=np.uint8)
            path = root / split / "images" / str(index)
            Image.fromarray(pixels).save(f"{path}.png") if picture is None else picture(pixels, path)
            write(ids_of(index), root / split / "masks" / str(index))
    (root / "classes.txt").write_text("cat\ndog\nsofa\ngrass\n")
    return root


def save(ending, convert=Image.fromarray, **options):
    return lambda ids, path: convert(ids).save(f"{path}.{ending}", **options)


def optimised(ids):
    """A grey label map as optipng, oxipng and pngquant store it: a palette of the used greys."""
    used, index = np.unique(ids, return_inverse=True)
    label = Image.fromarray(index.reshape(ids.shape).astype(np.uint8))
    label.putpalette(np.repeat(used, 3).astype(np.uint8).tobytes())
    return label


def adaptive(ids):
    """A coloured label map through a palette of its own."""
    colours = np.vstack([COLOURS, np.zeros((252, 3), np.uint8)])[ids]
    return Image.fromarray(colours).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)


def grey_rgb(ids):
    return Image.fromarray(np.dstack([ids] * 3))


def with_alpha(ids):
    return Image.merge("LA", (Image.fromarray(ids), Image.new("L", ids.shape[::-1], 255)))


def coloured(ids):
    return Image.fromarray(np.vstack([COLOURS, np.zeros((252, 3), np.uint8)])[ids])


def check(folder, *options, tmp_path):
    code = main([str(folder), "--json", str(tmp_path / "check.json"), *options])
    return code, json.loads((tmp_path / "check.json").read_text())["findings"]


def png_of_few_bits(ids, bits):
    """Grey PNG with 2 or 4 bits for a pixel, which Pillow does not write."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    per_byte = 8 // bits
    padded = np.pad(ids, ((0, 0), (0, -ids.shape[1] % per_byte))).reshape(len(ids), -1, per_byte).astype(int)
    rows = (padded << np.arange(8 - bits, -1, -bits)).sum(-1).astype(np.uint8)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", ids.shape[1], ids.shape[0], bits, 0, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


# ---- what is read


@pytest.mark.parametrize(("bits", "largest"), [(2, 3), (4, 15)])
def test_grey_png_of_few_bits_holds_the_ids_that_were_stored(bits, largest):
    ids = np.arange(20).reshape(4, 5) % (largest + 1)
    np.testing.assert_array_equal(to_label_map(Image.open(io.BytesIO(png_of_few_bits(ids, bits)))), ids)


@pytest.mark.parametrize("bits", [2, 4])
def test_training_and_check_read_few_bits_alike(tmp_path, bits):
    def write(ids, path):
        path.with_suffix(".png").write_bytes(png_of_few_bits(np.minimum(ids, 3), bits))

    folder = write_folder(tmp_path / "own", write)
    np.testing.assert_array_equal(read_sample(load_split(str(folder), "train"), 1)[1], np.minimum(ids_of(1), 3))
    assert check(folder, tmp_path=tmp_path)[0] == 0


@pytest.mark.parametrize(
    ("maximum", "head"), [(20, b"P5 4 1 20\n\0\1\2\x14"), (300, None), (255, b"P5 4 1 255\n\0\1\2\x14")]
)
def test_pgm_with_a_maximum_of_its_own_holds_the_ids_that_were_stored(maximum, head):
    content = head or b"P5 4 1 300\n\0\0\0\1\0\2\0\x14"
    assert to_label_map(Image.open(io.BytesIO(content))).tolist() == [[0, 1, 2, 20]]


@pytest.mark.parametrize("shown", [[0], [7], [0, 7], [0, 7, 255], [56, 255]])
def test_the_greys_of_vocs_palette_mean_nothing(shown):
    label = Image.fromarray(np.array([shown], np.uint8))
    label.putpalette([value for colour in voc_colours(range(256)).values() for value in colour])
    assert to_label_map(label).tolist() == [shown]


def test_a_class_that_is_shown_in_grey_among_colours_is_a_class_like_others():
    label = Image.new("P", (2, 2), 0)
    label.putpalette([120, 120, 120, 180, 120, 120, 6, 230, 230])  # ADE20K: the first class, wall, is grey
    assert to_label_map(label).max() == 0


def test_a_palette_whose_greys_are_their_own_index_is_read():
    label = Image.fromarray(ids_of(0)).convert("P")
    assert label.mode == "P"
    np.testing.assert_array_equal(to_label_map(label), ids_of(0))


# ---- what is refused, by training and by check alike


def read_all(folder):
    split = load_split(str(folder), "train")
    return [read_sample(split, row) for row in range(len(split))]


CASES = {
    "optimised PNG": (save("png", optimised), "palette of greys"),
    "GIF of greys": (save("gif"), "palette of greys"),
    "JPEG": (save("jpg", quality=75), "label map as JPEG"),
    "coloured JPEG": (save("jpg", coloured), "label map as JPEG"),
    "AVIF": (save("avif"), "label map in a lossy format"),
    "JPEG 2000": (save("jp2"), "label map in a lossy format"),
    "JPEG in TIFF": (save("tif", compression="jpeg"), "label map in a lossy format"),
    "lossy WebP": (save("webp", grey_rgb), "label map in a lossy format"),
    "lossy WebP with alpha": (
        save("webp", lambda ids: Image.merge("LA", (Image.fromarray(ids), Image.fromarray(ids))).convert("RGBA")),
        "label map in a lossy format",
    ),
    "lossless WebP": (save("webp", grey_rgb, lossless=True), "grey label map in RGB"),
    "grey RGB PNG": (save("png", grey_rgb), "grey label map in RGB"),
    "grey RGB TIFF": (save("tif", grey_rgb), "grey label map in RGB"),
    "grey RGB BMP": (save("bmp", grey_rgb), "grey label map in RGB"),
    "grey RGB PPM": (save("ppm", grey_rgb), "grey label map in RGB"),
    "grey RGBA PNG": (save("png", lambda ids: grey_rgb(ids).convert("RGBA")), "grey label map in RGB"),
    "LA PNG": (save("png", with_alpha), "label map with alpha"),
    "LA TIFF": (save("tif", with_alpha), "label map with alpha"),
    "float TIFF": (save("tif", lambda ids: Image.fromarray(ids.astype(np.float32))), "label map of floats"),
    "coloured PNG": (save("png", coloured), "coloured label map"),
    "coloured TIFF": (save("tif", coloured), "coloured label map"),
    "coloured lossless WebP": (save("webp", coloured, lossless=True), "coloured label map"),
    "two pages in TIFF": (
        lambda ids, path: Image.fromarray(ids).save(
            f"{path}.tif", save_all=True, append_images=[Image.fromarray(ids)]
        ),
        "label map of several pages",
    ),
    "two frames in PNG": (
        lambda ids, path: Image.fromarray(ids).save(
            f"{path}.png", save_all=True, append_images=[Image.fromarray(ids * 0)]
        ),
        "label map of several pages",
    ),
    "adaptive palettes": (save("png", adaptive), "palette of its own"),
    "adaptive palettes in GIF": (save("gif", adaptive), "palette of its own"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_file_that_is_no_label_map_is_refused_wherever_it_is_read(tmp_path, case):
    write, kind = CASES[case]
    folder = write_folder(tmp_path / "own", write)
    code, findings = check(folder, tmp_path=tmp_path)
    errors = [finding for finding in findings if finding["severity"] == "error"]
    assert code == 2
    assert f"train: {LABEL_PROBLEMS[kind].text}: " in errors[0]["text"]
    with pytest.raises(ValueError, match=r"^(Sample 0|Dataset '.*', split 'train'): .*label map[^\n]*$"):
        read_all(folder)


CARRIED_OUT = [
    (case, mend_name)
    for case, (_, kind) in CASES.items()
    for mend_name in LABEL_PROBLEMS[kind].mends
    if not (mend_name == "indices" and "adaptive" in case)
]


@pytest.mark.parametrize("container", ["folder", pytest.param("parquet", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("case", "mend_name"), CARRIED_OUT)
def test_every_remedy_for_label_maps_gives_an_accepted_dataset_with_the_same_ids(
    tmp_path, capsys, case, mend_name, container
):
    folder = write_folder(tmp_path / "own", CASES[case][0])
    options = ["--class_names", NAMES]
    if container == "parquet":
        for split in ("train", "validation"):
            load_split(str(folder), split, compare_palettes=False).to_parquet(tmp_path / "set" / f"{split}.parquet")
        folder = tmp_path / "set"
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    _, findings = check(folder, *options, tmp_path=tmp_path)
    (printed,) = [
        part
        for part in findings[0]["remedy"].split("; ")
        if part.startswith("ldvc check ") and f"--mend {mend_name} " in part
    ]
    words = shlex.split(printed.split(" (")[0].replace(" NEW", f" {tmp_path}/new"))[2:]
    if mend_name == "colours":
        table = {i: colour.tolist() for i, colour in enumerate(COLOURS)} | {255: [0, 0, 0]}
        words += ["--colours", str(table)]
    assert main(words) == 0
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}  # nothing is destroyed
    code, findings = check(tmp_path / "new", *options, tmp_path=tmp_path)
    assert (code, [f["text"] for f in findings if f["severity"] == "error"]) == (
        0 if mend_name != "indices" else code,
        [],
    )
    mended = load_split(f"{tmp_path}/new", "train")
    for row in range(3):
        expected = ids_of(row) if mend_name != "indices" else np.unique(ids_of(row), return_inverse=True)[1]
        np.testing.assert_array_equal(read_sample(mended, row)[1], expected.reshape(24, 32))


def test_the_indices_of_contradicting_palettes_are_kept_as_ids(tmp_path):
    folder = write_folder(tmp_path / "own", save("png", adaptive))
    assert main([str(folder), "--mend", "indices", "--output", f"{tmp_path}/new"]) == 0
    stored = np.asarray(Image.open(folder / "train" / "masks" / "1.png"))
    np.testing.assert_array_equal(read_sample(load_split(f"{tmp_path}/new", "train"), 1)[1], stored)


def test_no_lossy_file_gets_a_remedy_that_keeps_its_damage():
    for kind in ("label map as JPEG", "label map in a lossy format"):
        assert not LABEL_PROBLEMS[kind].mends
        assert "export them again as PNG" in LABEL_PROBLEMS[kind].advice


def test_the_command_knows_every_mend_and_every_finding_names_a_known_one():
    named = {name for *_, mends in SAMPLE_PROBLEMS.values() for name in mends} | {"white_is_1"}
    assert set(commands.MENDS) == set(mend.MENDS) == named


def test_an_error_about_a_label_map_survives_the_way_from_a_data_worker():
    error = pickle.loads(pickle.dumps(LabelMapError("label map as JPEG", "JPEG")))
    assert (error.kind, error.detail) == ("label map as JPEG", "JPEG")
    assert str(error).startswith("JPEG: it is one of the label maps stored as JPEG, whose compression changes ids")


# ---- palettes over files


def ledger_of(*files):
    ledger, conflicts = PaletteLedger(), []
    for name, (palette, used) in enumerate(files):
        conflicts.append(ledger.add(bytes(palette), used, f"file {name}"))
    return conflicts[-1]


RED, GREEN, BLACK = (200, 0, 0), (0, 200, 0), (0, 0, 0)


@pytest.mark.parametrize(
    ("files", "conflict"),
    [
        (
            (((*RED, *GREEN), [0, 1]), ((*GREEN, *RED), [0, 1])),
            "file 1 shows id 0 as (0, 200, 0), file 0 shows id 0 as",
        ),
        (
            (((*BLACK, *RED), [1]), ((*BLACK, *BLACK, *RED), [2])),
            "file 1 shows id 2 as (200, 0, 0), file 0 shows id 1",
        ),
        ((((*BLACK, *RED), [0, 1]), ((*BLACK, *RED, *GREEN), [0, 1, 2])), ""),
        ((((*BLACK, *RED, *BLACK), [0]), ((*BLACK, *RED, *BLACK, *GREEN), [2])), ""),  # unused entries are black
    ],
)
def test_palettes_contradict_each_other_where_a_colour_or_an_id_changes(files, conflict):
    assert ledger_of(*files).startswith(conflict)
    assert bool(ledger_of(*files)) == bool(conflict)


def test_what_is_remembered_of_wild_palettes_is_bounded():
    ledger = PaletteLedger()
    for value in range(255):
        ledger.add(bytes((value, 0, 1, 0, value, 2)), [0, 1], str(value))
    assert (len(ledger._first), len(ledger._used)) == (2, 1)


def test_palettes_are_compared_across_splits(tmp_path):
    folder = write_folder(tmp_path / "own", save("png", adaptive), number=1)
    label = Image.fromarray(ids_of(0) // 255)
    label.putpalette([*COLOURS[1], *COLOURS[2]])
    label.save(folder / "validation" / "masks" / "0.png")
    code, findings = check(folder, tmp_path=tmp_path)
    assert code == 2
    assert findings[0]["text"].startswith("validation: label maps whose palettes contradict")
    assert findings[0]["examples"][0].startswith("row 0 (0.png): shows id ")


def test_palettes_of_a_stream_are_compared_as_it_is_read(tmp_path):
    folder = write_folder(tmp_path / "own", save("png", adaptive))
    stream = load_split(str(folder), "train", streaming=True)
    augmentation = JointAugmentation(image_scale=(32, 24), crop_size=(16, 16))
    crops = iter(StreamingTrainingSet(stream, augmentation, num_classes=4))
    with pytest.raises(ValueError, match=r"^Streamed sample \d: .* shows id \d as .*palettes contradict"):
        list(itertools.islice(crops, 4))


def test_one_palette_for_all_files_is_taken_whatever_it_shows(tmp_path):
    def with_palette(ids):
        label = Image.fromarray(ids)
        label.putpalette([value * 7 % 256 for value in range(768)])
        return label

    folder = write_folder(tmp_path / "own", save("png", with_palette))
    assert check(folder, tmp_path=tmp_path)[0] == 0
    assert palette_of(load_split(str(folder), "train")[0]["label"])[:3] == bytes((0, 7, 14))


# ---- pictures


def rgba_tiff(pixels, path):
    Image.fromarray(np.dstack([pixels, np.full(pixels.shape[:2], 60, np.uint8)])).save(f"{path}.tif")


def twelve_bits(bits):
    def write(pixels, path):
        values = pixels[..., 0].astype(np.uint16) * (2 ** (bits - 8))
        values[0, 0] = 2**bits - 1
        Image.fromarray(values).save(f"{path}.png")

    return write


def turned(ending, orientation):
    def write(pixels, path):
        exif = Image.Exif()
        exif[0x0112] = orientation
        Image.fromarray(pixels).save(f"{path}.{ending}", exif=exif, lossless=True)

    return write


PICTURES = {
    "RGBA TIFF": (rgba_tiff, "half-transparent image", "first_bands", lambda pixels: pixels),
    "10 bits": (twelve_bits(10), "16-bit picture of unknown range", "from_10_bits", None),
    "12 bits": (twelve_bits(12), "16-bit picture of unknown range", "from_12_bits", None),
    "PNG turned by 180": (turned("png", 3), "turned by EXIF", "stored_pixels", lambda pixels: pixels),
    "WebP mirrored": (turned("webp", 2), "turned by EXIF", "stored_pixels", lambda pixels: pixels),
    "TIFF upside down": (turned("tif", 4), "turned by EXIF", "stored_pixels", lambda pixels: pixels),
}


@pytest.mark.parametrize("case", PICTURES)
def test_pictures_that_are_read_otherwise_than_meant_are_counted_and_the_remedy_mends_them(tmp_path, case):
    picture, kind, name, expected = PICTURES[case]
    folder = write_folder(tmp_path / "own", save("png"), picture=picture)
    code, findings = check(folder, tmp_path=tmp_path)
    found = next(finding for finding in findings if finding["text"] == f"train: {SAMPLE_PROBLEMS[kind][1]}: 3")
    is_refused = "16-bit" in kind  # by training too, as everywhere
    assert (code, found["severity"]) == ((2, "error") if is_refused else (0, "warning"))
    assert f"ldvc check {folder} --mend {name} --output NEW" in found["remedy"]
    assert main([str(folder), "--mend", name, "--output", f"{tmp_path}/new"]) == 0
    code, findings = check(tmp_path / "new", tmp_path=tmp_path)
    assert (code, [finding["text"] for finding in findings if finding["severity"] != "note"]) == (0, [])
    pixels = np.random.default_rng(0).integers(0, 256, (24, 32, 3), dtype=np.uint8)
    image, ids = read_sample(load_split(f"{tmp_path}/new", "train"), 0)
    np.testing.assert_array_equal(ids, ids_of(0))
    if expected is not None:
        np.testing.assert_array_equal(np.asarray(image), expected(pixels))
    else:
        assert np.abs(np.asarray(image)[1:, :, 0].astype(int) - pixels[1:, :, 0]).max() <= 1  # one step of rounding


def test_a_square_picture_that_exif_turns_by_90_degrees_is_counted(tmp_path):
    folder = write_folder(
        tmp_path / "own", save("png"), picture=lambda pixels, path: turned("png", 6)(pixels[:, :24], path)
    )
    for mask in folder.rglob("masks/*.png"):
        Image.open(mask).crop((0, 0, 24, 24)).save(mask)
    _, findings = check(folder, tmp_path=tmp_path)
    assert findings[0]["examples"][0] == "row 0 (0.png): orientation 6"


@pytest.mark.parametrize("alpha", [0, 255])
def test_a_cut_out_with_hard_borders_is_no_fourth_band(tmp_path, alpha):
    def write(pixels, path):
        band = np.full(pixels.shape[:2], 255, np.uint8)
        band[:3] = alpha
        Image.fromarray(np.dstack([pixels, band])).save(f"{path}.png")

    _, findings = check(write_folder(tmp_path / "own", save("png"), picture=write), tmp_path=tmp_path)
    assert [finding for finding in findings if finding["severity"] == "warning"] == []


# ---- black and white


def write_black_and_white(root, whites):
    def write(ids, path):
        white = whites[int(path.name) % len(whites)]
        Image.fromarray(np.where(ids == 255, 0, white).astype(np.uint8)).save(f"{path}.png")

    folder = write_folder(root, write)
    (folder / "classes.txt").write_text("object\n")
    return folder


def test_white_that_is_1_here_and_255_there_is_an_error_whose_remedy_is_accepted(tmp_path):
    folder = write_black_and_white(tmp_path / "own", (1, 255))
    code, findings = check(folder, "--reduce_labels", tmp_path=tmp_path)
    assert code == 2
    assert findings[0]["text"] == "train: white is 1 in 2 label maps and 255, which means no label, in 1 others"
    assert "--mend white_is_1 --output NEW" in findings[0]["remedy"]
    assert main([str(folder), "--mend", "white_is_1", "--output", f"{tmp_path}/new"]) == 0
    assert check(tmp_path / "new", "--reduce_labels", "--strict", tmp_path=tmp_path)[0] == 0
    for row in range(3):
        expected = (ids_of(row) != 255).astype(int)
        np.testing.assert_array_equal(read_sample(load_split(f"{tmp_path}/new", "train"), row)[1], expected)


def test_the_remedy_for_a_single_class_in_black_and_white_is_not_warned_of_again(tmp_path):
    folder = write_black_and_white(tmp_path / "own", (255,))
    code, findings = check(folder, "--strict", tmp_path=tmp_path)
    assert (code, findings[0]["text"][:40]) == (1, "train: label maps hold only 0 and 255, a")
    assert "nothing is to do if 0 is the object" in findings[0]["remedy"]
    assert main([str(folder), "--mend", "white_is_1", "--output", f"{tmp_path}/new"]) == 0
    assert check(tmp_path / "new", "--reduce_labels", "--strict", tmp_path=tmp_path)[0] == 0


# ---- mending


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mend", "indices"], "--mend writes a new dataset: name its folder with --output"),
        (
            ["--mend", "indices", "--output", "{own}"],
            "exists: name a new folder with --output; nothing is overwritten",
        ),
        (
            ["--mend", "white_is_1", "--output", "{new}"],
            "Row 0 (0) of train cannot be written anew: it holds 255, and",
        ),
        (["--mend", "colours", "--output", "{new}"], "--colours is None: with --mend colours, write every id"),
        (["--mend", "colours", "--colours", "{0: [1, 2]}", "--output", "{new}"], "write every id with its red, green"),
        (
            ["--mend", "colours", "--colours", "{0: [0, 0, 0]}", "--output", "{new}"],
            "--colours gives no id to: add it",
        ),
        (["--mend", "from_12_bits", "--output", "{new}", "--split", "none"], "has no split 'none'"),
    ],
)
def test_what_cannot_be_mended_is_one_line(tmp_path, capsys, options, message):
    folder = write_folder(tmp_path / "own", save("png"), number=2)
    options = [word.replace("{own}", str(folder)).replace("{new}", f"{tmp_path}/new") for word in options]
    assert main([str(folder), *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


def test_floats_between_whole_numbers_and_wide_values_are_not_mended_away(tmp_path, capsys):
    folder = write_folder(
        tmp_path / "own", save("tif", lambda ids: Image.fromarray(ids.astype(np.float32) / 255)), number=1
    )
    assert main([str(folder), "--mend", "whole_numbers", "--output", f"{tmp_path}/new"]) == 2
    assert "are not all whole numbers from 0 to 65535" in capsys.readouterr().err
    image = Image.fromarray(np.array([[5000]], np.uint16))
    with pytest.raises(ValueError, match="its largest value is 5000, more than 12 bits hold"):
        mend.IMAGE_MENDS["from_12_bits"](image)


def test_pictures_of_one_name_in_two_folders_are_both_kept(tmp_path):
    folder = write_folder(tmp_path / "own", save("png", grey_rgb), number=1)
    for part in ("images", "masks"):
        (folder / "train" / part / "b").mkdir()
        Image.open(folder / "train" / part / "0.png").save(folder / "train" / part / "b" / "0.png")
    assert main([str(folder), "--mend", "first_channel", "--output", f"{tmp_path}/new"]) == 0
    assert len(load_split(f"{tmp_path}/new", "train")) == 2


def test_label_maps_keep_their_feature_where_they_are_written(tmp_path):
    folder = write_folder(tmp_path / "own", save("png"), number=1)
    load_split(str(folder), "train").to_parquet(tmp_path / "set" / "train.parquet")
    assert Dataset.from_parquet(f"{tmp_path}/set/train.parquet").features == Features(
        {"image": ImageFeature(), "label": ImageFeature()}
    )


def test_a_label_map_that_exif_data_turn_is_turned_as_its_picture_is(tmp_path):
    turned("png", 3)(ids_of(0), tmp_path / "label")
    label = decode_label(Image.open(tmp_path / "label.png"))
    np.testing.assert_array_equal(to_label_map(label), ids_of(0)[::-1, ::-1])
