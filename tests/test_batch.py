"""Bulk segmentation: batches, loading ahead, datasets, several processes, and going on after a stop."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import types
import weakref
from pathlib import Path, PurePath

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from ldvc.app import batch as batch_module
from ldvc.app.batch import Job, Segmenter, batches, in_threads, segment_pictures
from ldvc.data import rows as rows_module
from ldvc.data.rows import check_ids, find_rows
from ldvc.loading import load_checkpoint
from ldvc.masks import coco, parts
from ldvc.masks.coco import Journal, find_journals, remove_journals, write_coco
from ldvc.masks.files import Picture, find_pictures
from ldvc.masks.formats import Format, OutputFolder, describe_names
from ldvc.masks.parts import is_left_over, part_suffix, this_machine, written_aside
from ldvc.model.inference_ldvc import InferenceSettings, PreparedPicture, prepare_picture, segment, segment_batch
from ldvc.shares import Share, join_processes


ROOT = Path(__file__).resolve().parents[1]
FORMATS = [word for kind in ("png", "overlay", "coco-rle", "npz") for word in ("--format", kind)]
SIZES = [(40, 30), (30, 40), (40, 30), (24, 24), (30, 40), (40, 30), (70, 20)]  # (width, height)


@pytest.fixture(scope="module")
def loaded(checkpoint):
    return load_checkpoint(checkpoint, "cpu")


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Return a folder of seven pictures of four sizes."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for index, (width, height) in enumerate(SIZES):
        blocks = rng.integers(0, 256, (5, 5, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize((width, height), Image.Resampling.BICUBIC).save(folder / f"p{index}.png")
    return folder


@pytest.fixture
def broken_photos(photos, tmp_path):
    """Return a copy of the pictures, the third cut in half."""
    folder = shutil.copytree(photos, tmp_path / "broken")
    content = (folder / "p2.png").read_bytes()
    (folder / "p2.png").write_bytes(content[: len(content) // 2])
    return folder


@pytest.fixture
def calls(monkeypatch):
    """Return the shapes of the pixels that models are called with from now on."""
    from ldvc.model.modeling_ldvc import LDVCForSemanticSegmentation

    shapes, forward = [], LDVCForSemanticSegmentation.forward

    def note(self, *arguments, pixel_values=None, **options):
        shapes.append(tuple(pixel_values.shape))
        return forward(self, *arguments, pixel_values=pixel_values, **options)

    monkeypatch.setattr(LDVCForSemanticSegmentation, "forward", note)
    return shapes


def files_of(folder):
    """Every file and its content."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def label_maps(folder):
    return {path.stem: np.asarray(Image.open(path)).tolist() for path in sorted(folder.glob("p?.png"))}


# ---- several pictures in one call


@pytest.mark.parametrize("settings", [None, InferenceSettings(0, 16, 8), InferenceSettings(24, 0)], ids=str)
def test_pictures_in_one_call_get_the_results_of_each_alone(loaded, photos, settings):
    model, processor = loaded
    paths = sorted(photos.iterdir())
    prepared = [prepare_picture(processor, path, settings) for path in paths]
    together = segment_batch(model, processor, prepared, settings=settings, return_scores=True)
    for path, result in zip(paths, together, strict=True):
        alone = segment(model, processor, path, settings=settings, return_scores=True)
        torch.testing.assert_close(result.scores, alone.scores, rtol=0, atol=1e-5)  # sums in another order
        assert torch.equal(result.label_map, alone.label_map)


def test_one_call_serves_all_pictures_of_one_size(loaded, photos, calls):
    model, processor = loaded
    list(segment_batch(model, processor, [prepare_picture(processor, path) for path in photos.iterdir()]))
    assert calls == [(7, 3, 32, 32)]


def test_each_size_has_a_call_of_its_own(loaded, calls):
    model, processor = loaded
    pictures = [PreparedPicture((8, 8), torch.zeros(3, height, 32)) for height in (32, 24, 32)]
    assert len(list(segment_batch(model, processor, pictures))) == 3
    assert calls == [(2, 3, 32, 32), (1, 3, 24, 32)]


def test_windows_of_several_pictures_fill_a_call(loaded, photos, calls):
    model, processor = loaded
    settings = InferenceSettings(0, 24, 24, window_batch_size=5)
    paths = [photos / "p0.png", photos / "p1.png"]  # four windows each
    list(
        segment_batch(
            model, processor, [prepare_picture(processor, path, settings) for path in paths], settings=settings
        )
    )
    assert [shape[0] for shape in calls] == [5, 3]


def test_a_picture_whose_windows_fill_calls_is_read_as_ever(loaded, photos, calls):
    model, processor = loaded
    settings = InferenceSettings(0, 24, 24, window_batch_size=3)
    paths = [photos / "p0.png", photos / "p1.png"]
    list(
        segment_batch(
            model, processor, [prepare_picture(processor, path, settings) for path in paths], settings=settings
        )
    )
    assert [shape[0] for shape in calls] == [3, 1, 3, 1]


def test_the_classes_of_a_batch_are_checked_as_those_of_one_picture(loaded):
    model, processor = loaded
    pictures = [PreparedPicture((8, 8), torch.zeros(3, 32, 32))]
    with pytest.raises(ValueError, match="'cat' is a class of this call"):
        next(segment_batch(model, processor, pictures, ["cat"], threshold=0.5, other_label="cat"))


# ---- batches of the command


OTHER_SIZES = (["--window", "16", "--stride", "8"], ["--short-side", "24"])


@pytest.mark.parametrize(
    "options", [[], *(pytest.param(sizes, marks=pytest.mark.slow) for sizes in OTHER_SIZES)], ids=" ".join
)
def test_label_maps_are_the_same_for_every_batch_size(ldvc, checkpoint, photos, tmp_path, options):
    maps = []
    for batch_size in (1, 2, 3):
        out = tmp_path / str(batch_size)
        call = ["segment", photos, "-m", checkpoint, "-f", "png", "-o", out, "--batch-size", batch_size, *options]
        assert ldvc(*call).exit_code == 0
        maps.append(label_maps(out))
    assert len(maps[0]) == len(SIZES)
    assert maps[0] == maps[1] == maps[2]


@pytest.mark.slow
def test_the_batch_size_may_change_when_a_run_goes_on(ldvc, checkpoint, photos, tmp_path):
    call = ["segment", photos, "-m", checkpoint, "-f", "png", "-o", tmp_path / "out", "--window", "16"]
    assert ldvc(*call, "--batch-size", "2").exit_code == 0
    (tmp_path / "out" / "p3.png").unlink()
    result = ldvc(*call, "--batch-size", "5", "--skip-existing")
    assert (result.exit_code, "1 of 7" in result.stdout) == (0, True), result.output


def test_options_may_be_written_as_train_py_writes_them(ldvc, checkpoint, photos, tmp_path, calls):
    call = ["segment", photos / "p0.png", photos / "p1.png", "-m", checkpoint, "-o", tmp_path / "out"]
    assert ldvc(*call, "--batch_size", "2", "--max_pixels=1200").exit_code == 0
    assert calls == [(2, 3, 32, 32)]


def jobs_of(groups):
    return [
        Job(Picture(Path(f"{place}.png"), PurePath(str(place))), group=group) for place, group in enumerate(groups)
    ]


def groups_of(some):
    return ["".join(job.group for job in batch) for batch in some]


def test_a_batch_is_of_one_size_and_full_until_the_end():
    assert groups_of(batches(jobs_of("abababacb"), 3)) == ["aaa", "bbb", "a", "c", "b"]


def test_few_pictures_wait_for_others_of_their_size():
    taken = []
    jobs = (taken.append(job) or job for job in jobs_of("abcdefghijaklmnop"))
    first = next(batches(jobs, 2))
    assert (len(first), len(taken)) == (1, batch_module.MAX_GROUPS * 2)


def test_of_those_that_wait_the_fullest_batch_goes_first():
    assert groups_of(batches(jobs_of("aabbbcdddefghijk"), 4))[0] == "bbb"


def test_what_failed_before_passes_at_once():
    jobs = jobs_of("aaa")
    jobs[1].error = ValueError()
    assert [[job.picture.name.name for job in batch] for batch in batches(jobs, 2)] == [["1"], ["0", "2"]]


@pytest.mark.slow
def test_a_broken_picture_leaves_its_batch_whole(ldvc, checkpoint, broken_photos, tmp_path, calls):
    result = ldvc("segment", broken_photos, "-m", checkpoint, "-o", tmp_path / "out", "--batch-size", "3")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"1 failed:\n  {broken_photos / 'p2.png'}: ")
    assert "truncated or damaged" in result.stderr
    assert "6 of 7 pictures segmented" in result.stdout
    assert calls == [(3, 3, 32, 32)] * 2


def test_pictures_whose_batch_fails_are_segmented_one_by_one(checkpoint, photos, tmp_path, monkeypatch):
    segmenter = Segmenter(str(checkpoint), "cpu", None, None, None, batch_size=4)
    sizes, run = [], Segmenter.segment

    def fail(self, pictures):
        sizes.append(len(pictures))
        if len(pictures) > 1 or pictures[0].size == (24, 24):
            raise RuntimeError("out of\nmemory")
        return run(self, pictures)

    monkeypatch.setattr(Segmenter, "segment", fail)
    folder = OutputFolder(tmp_path / "out", [Format.PNG], segmenter.describe(), 3)
    pictures = find_pictures([str(photos)]).pictures
    folder.start({picture.name: picture.path for picture in pictures})
    failures = segment_pictures(pictures, segmenter, folder, 10_000)
    assert failures == [(str(photos / "p3.png"), "out of memory")]
    assert sizes == [4, 1, 1, 1, 1, 3, 1, 1, 1]
    assert len(label_maps(tmp_path / "out")) == 6


def test_a_batch_that_failed_holds_no_memory_when_its_pictures_are_tried_one_by_one(checkpoint, photos, monkeypatch):
    segmenter = Segmenter(str(checkpoint), "cpu", None, None, None, batch_size=2)
    large, is_gone = [], []

    def fail(pictures):
        tensor = torch.zeros(len(pictures))
        large.append(weakref.ref(tensor))
        raise RuntimeError(f"out of memory for {len(tensor)} pictures")

    def segment_or_fail(pictures):
        if len(pictures) > 1:
            fail(pictures)
        is_gone.append(large[0]() is None)
        return iter([None])

    monkeypatch.setattr(segmenter, "segment", segment_or_fail)
    jobs = [Job(Picture(path, PurePath(path.stem))) for path in sorted(photos.iterdir())[:2]]
    for job in jobs:
        segmenter.load(job, 10_000)
    assert [job.error for job in segmenter.run(jobs)] == [None, None]
    assert is_gone == [True, True]


# ---- loading ahead


def test_steps_in_threads_keep_the_order_and_their_errors():
    def step(job):
        time.sleep(0.02 * (job.group == "a"))
        if job.group == "b":
            raise ValueError("bad")

    done = list(in_threads(step, jobs_of("abc"), num_threads=3, num_ahead=3))
    assert [job.group for job in done] == ["a", "b", "c"]
    assert [str(job.error) for job in done] == ["None", "bad", "None"]


def test_a_picture_that_failed_is_not_worked_on_again():
    jobs, seen = jobs_of("ab"), []
    jobs[0].error = ValueError()
    list(in_threads(lambda job: seen.append(job.group), jobs, 1, 2))
    assert seen == ["b"]


def test_steps_run_beside_their_caller():
    main = threading.get_ident()
    threads = []
    list(in_threads(lambda job: threads.append(threading.get_ident()), jobs_of("ab"), 1, 2))
    assert len(threads) == 2
    assert main not in threads


def test_no_more_pictures_are_ahead_than_allowed():
    taken = []
    jobs = (taken.append(job) or job for job in jobs_of("a" * 20))
    done = in_threads(lambda job: None, jobs, num_threads=2, num_ahead=3)
    for number in range(1, 6):
        next(done)
        assert len(taken) == number + 2
    done.close()


def test_an_interrupted_run_takes_no_further_picture():
    seen, go_on = [], threading.Event()

    def step(job):
        seen.append(job.picture.name.name)
        assert job.picture.name.name == "0" or go_on.wait(5)

    done = in_threads(step, jobs_of("a" * 20), 1, 4)
    next(done)  # four were taken: one is done, and one has begun
    threading.Timer(0.1, go_on.set).start()
    done.close()
    assert set(seen) <= {"0", "1"}


def test_a_saved_picture_is_forgotten(checkpoint, photos, tmp_path, monkeypatch):
    segmenter = Segmenter(str(checkpoint), "cpu", None, None, None, batch_size=7)
    kept = []
    monkeypatch.setattr(batch_module, "Job", lambda picture: kept.append(Job(picture)) or kept[-1])
    folder = OutputFolder(tmp_path / "out", [Format.PNG], segmenter.describe(), 3)
    pictures = find_pictures([str(photos)]).pictures
    folder.start({picture.name: picture.path for picture in pictures})
    assert segment_pictures(pictures, segmenter, folder, 10_000) == []
    assert [(job.image, job.prepared, job.result) for job in kept] == [(None, None, None)] * 7


def test_the_limit_of_pixels_holds_in_every_thread_and_ends_with_the_run(ldvc, checkpoint, photos, tmp_path):
    limit = Image.MAX_IMAGE_PIXELS
    result = ldvc("segment", photos, "-m", checkpoint, "-o", tmp_path / "out", "-f", "png", "--max-pixels", "1200")
    assert result.stderr.count("more than 1,200 pixels") == 1
    assert "p6.png" in result.stderr
    assert limit == Image.MAX_IMAGE_PIXELS


def test_pixels_for_a_gpu_are_pinned_by_the_thread_that_loads_them(checkpoint, photos, monkeypatch):
    segmenter = Segmenter(str(checkpoint), "cpu", None, None, None)
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: pinned.append(tuple(self.shape)) or self)
    for kind in ("cpu", "cuda"):
        segmenter.way.model = types.SimpleNamespace(device=torch.device(kind))
        segmenter.load(Job(Picture(photos / "p0.png", PurePath("p0"))), 10_000)
        assert pinned == [(3, 32, 32)] * (kind == "cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("options", [[], ["--window", "16"]], ids=" ".join)
def test_a_gpu_gives_the_label_maps_of_the_cpu(ldvc, checkpoint, photos, tmp_path, options):
    for device in ("cpu", "cuda"):
        call = [
            "segment",
            photos,
            "-m",
            checkpoint,
            "-f",
            "png",
            "-o",
            tmp_path / device,
            "--batch-size",
            "3",
            *options,
        ]
        assert ldvc(*call, "--device", device).exit_code == 0
    ours, theirs = label_maps(tmp_path / "cpu"), label_maps(tmp_path / "cuda")
    same = [np.mean(np.array(ours[name]) == np.array(theirs[name])) for name in ours]
    assert min(same) > 0.99  # a pixel between two classes may fall either way


# ---- datasets


def make_dataset(photos, **columns):
    pictures = [{"bytes": path.read_bytes(), "path": None} for path in sorted(photos.iterdir())]
    features = datasets.Features({"image": datasets.Image(), **{name: datasets.Value("string") for name in columns}})
    return datasets.Dataset.from_dict({"image": pictures, **columns}, features=features)


@pytest.fixture
def dataset(photos, tmp_path):
    """Return a folder of Parquet with the pictures and their ids."""
    ids = [f"set/{index}" for index in range(len(SIZES))]
    make_dataset(photos, image_id=ids).to_parquet(tmp_path / "data" / "validation-00000-of-00001.parquet")
    return tmp_path / "data"


@pytest.mark.slow
def test_row_numbers_of_another_split_are_no_results_to_go_on_from(ldvc, checkpoint, photos, tmp_path):
    splits = {"train": make_dataset(photos), "validation": make_dataset(photos)}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "data")
    call = ["segment", "--dataset", tmp_path / "data", "-m", checkpoint, "-o", tmp_path / "out", "--skip-existing"]
    assert ldvc(*call, "--split", "train").exit_code == 0
    result = ldvc(*call, "--split", "validation")
    assert result.exit_code == 2
    assert "made with other settings (rows)" in " ".join(result.output.split())


def test_a_model_or_vocabulary_that_changed_under_its_name_has_another_description(checkpoint, tmp_path):
    def described(vocabulary=None):
        return Segmenter(str(tmp_path / "model"), "cpu", None, vocabulary, None).describe()["weights_sha256"]

    shutil.copytree(checkpoint, tmp_path / "model")
    model, processor = load_checkpoint(tmp_path / "model", "cpu")
    found = [described()]
    for number, synonyms in enumerate((["dog"], ["dog", "puppy"])):
        model.encode_vocabulary({"dog": synonyms}, processor).save(tmp_path / str(number))
        found.append(described(tmp_path / str(number)))
    model.decoder.layers[0].cross_attn.q_proj.weight.data += 1
    model.save_pretrained(tmp_path / "model")
    assert len({*found, described()}) == 4


@pytest.mark.slow
def test_a_dataset_gives_the_results_of_its_files(ldvc, checkpoint, photos, dataset, tmp_path):
    call = ["segment", "-m", checkpoint, *FORMATS]
    assert ldvc(*call, photos, "-o", tmp_path / "files").exit_code == 0
    result = ldvc(*call, "--dataset", dataset, "--id-column", "image_id", "-o", tmp_path / "rows")
    assert result.exit_code == 0, result.output
    files, rows = files_of(tmp_path / "files"), files_of(tmp_path / "rows")
    renamed = {name.replace("set/", "p"): content for name, content in rows.items()}
    assert renamed.keys() == files.keys()
    assert all(renamed[name] == files[name] for name in files if name != "coco.json")
    images = json.loads(rows["coco.json"])["images"]
    assert [image["file_name"] for image in images] == [f"{dataset}/validation/set/{index}" for index in range(7)]


@pytest.mark.parametrize("option", ["--split", "--dataset-config", "--image-column", "--id-column"])
def test_options_of_a_dataset_need_one(ldvc, option):
    result = ldvc("segment", "a.png", option, "x")
    assert (result.exit_code, result.stderr) == (2, f"ldvc: {option} goes with --dataset; give both.\n")


def test_rows_without_ids_are_counted_with_as_many_digits_as_the_last(photos, tmp_path):
    pictures = make_dataset(photos)
    datasets.concatenate_datasets([pictures, pictures]).save_to_disk(tmp_path / "saved")
    found = find_rows(str(tmp_path / "saved"), "train")
    names = [picture.name.as_posix() for picture in found.pictures]
    assert (names[0], names[13], len(names)) == ("00", "13", 14)
    assert found.pictures[13].path == tmp_path / "saved" / "train" / "13"


def test_a_row_is_read_when_its_turn_comes(photos, dataset, monkeypatch):
    opened = []
    monkeypatch.setattr(rows_module, "decode_picture", lambda source, limit: opened.append(source.read()))
    pictures = find_rows(str(dataset), "validation").pictures
    assert opened == []
    pictures[2].read(100)
    assert opened == [(photos / "p2.png").read_bytes()]


def test_rows_that_name_files_are_read_from_there(photos, tmp_path):
    for kind in ("images", "masks"):
        (tmp_path / "own" / kind).mkdir(parents=True)
        (tmp_path / "own" / kind / "x.png").write_bytes((photos / "p0.png").read_bytes())
    found = find_rows(str(tmp_path / "own"), "train")
    assert [picture.read(10_000).size for picture in found.pictures] == [(40, 30)]


def test_a_damaged_row_or_one_without_a_picture_stops_no_other(ldvc, checkpoint, photos, tmp_path):
    cells = [{"bytes": content, "path": None} for content in ((photos / "p0.png").read_bytes(), b"hello")]
    features = datasets.Features({"photo": datasets.Image()})
    datasets.Dataset.from_dict({"photo": [*cells, None]}, features=features).save_to_disk(tmp_path / "data")
    call = ["segment", "--dataset", tmp_path / "data", "--split", "train", "--image-column", "photo", "-m", checkpoint]
    result = ldvc(*call, "-o", tmp_path / "out", "-f", "png")
    assert (result.exit_code, "1 of 3 pictures" in result.stdout) == (1, True)
    lines = result.stderr.splitlines()
    assert lines[1].startswith(f"  {tmp_path}/data/train/1: no picture, or of a format")
    assert lines[2] == f"  {tmp_path}/data/train/2: row 2 holds no picture; leave the row out of the dataset."


BAD_SOURCES = [
    (["--split", "test"], ("split 'test'",)),
    (["--image-column", "photo"], ("no column 'photo'", "['image', 'image_id']", "--image-column")),
    (["--image-column", "image_id"], ("column 'image_id'", "holds no images but", "--image-column")),
    (["--id-column", "name"], ("no column 'name'", "--id-column")),
    (["a.png"], ("--dataset takes the place of 'a.png'", "give one of them")),
]


@pytest.mark.parametrize(("options", "mentions"), BAD_SOURCES, ids=[" ".join(o) for o, _ in BAD_SOURCES])
def test_a_source_that_cannot_be_used_is_one_line(ldvc, dataset, options, mentions):
    result = ldvc("segment", "--dataset", dataset, *options)
    message = result.stderr.splitlines()[-1]  # before it, the library may draw a progress bar
    assert (result.exit_code, message[:6]) == (2, "ldvc: "), result.output
    assert all(mention in message for mention in mentions), message


def test_a_saved_split_without_a_row_is_one_line(ldvc, photos, tmp_path):
    make_dataset(photos).select([]).save_to_disk(tmp_path / "data")
    result = ldvc("segment", "--dataset", tmp_path / "data", "--split", "train")
    assert (result.exit_code, "has a split without a row: write it again" in result.stderr) == (2, True)


def test_a_folder_that_is_no_dataset_is_one_line(ldvc, tmp_path):
    (tmp_path / "validation.json").write_text("hello")
    result = ldvc("segment", "--dataset", tmp_path)
    assert (result.exit_code, result.stderr.splitlines()[-1][:6]) == (2, "ldvc: ")
    assert "cannot be read (" in result.stderr
    assert "a file in it is damaged or no table of samples" in result.stderr


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", "", ".", None, "C:\\x", "..\\x", "a\nb"])
def test_ids_that_are_no_names_below_the_output_folder_are_refused(name):
    with pytest.raises(ValueError, match=r"row 1: image_id .* is no name for a file .* --id-column"):
        check_ids(["good", name], "image_id")


def test_ids_that_name_two_rows_are_refused():
    with pytest.raises(ValueError, match="rows 0 and 2 have one image_id, 'A'; choose another --id-column"):
        check_ids(["a", "b", "A"], "image_id")


def test_files_need_neither_datasets_nor_accelerate(ldvc, checkpoint, photos, tmp_path, monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    for module in ("datasets", "ldvc.processes"):  # Accelerate itself is loaded by Transformers where it is installed
        monkeypatch.setitem(sys.modules, module, None)
    assert ldvc("segment", photos, "-m", checkpoint, "-o", tmp_path / "out", "-f", "png").exit_code == 0


# ---- shares


def test_shares_make_up_the_whole():
    items = list(range(7))
    shares = [Share(index, 3).of(items) for index in range(3)]
    assert shares == [[0, 3, 6], [1, 4], [2, 5]]
    assert Share().of(items) == items


def test_a_process_alone_has_everything(monkeypatch):
    for value in (None, "1"):
        monkeypatch.delenv("WORLD_SIZE", raising=False)
        if value:
            monkeypatch.setenv("WORLD_SIZE", value)
        assert join_processes() == Share(0, 1, None)
    assert Share().gather("x") == ["x"]


def test_processes_that_do_not_know_of_each_other_are_refused(ldvc, checkpoint, photos, tmp_path, monkeypatch):
    from accelerate import PartialState

    PartialState._reset_state()
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = ldvc("segment", photos, "-m", checkpoint, "-o", tmp_path / "out")
    PartialState._reset_state()
    assert (result.exit_code, "2 processes were started, but this one knows of 1" in result.stderr) == (2, True)


@pytest.fixture
def told(monkeypatch):
    """Return what the main process tells the others, which is what they hear."""
    import accelerate.utils

    said = []

    def broadcast(objects):
        if said:
            objects[:] = said
        else:
            said.extend(objects)

    monkeypatch.setattr(accelerate.utils, "broadcast_object_list", broadcast)
    monkeypatch.setattr(Share, "leave", lambda self: None)
    return said


def test_the_main_process_goes_first_and_alone(told):
    done = []
    for index in range(2):
        Share(index, 2).main_first(lambda index=index: done.append(index))
    assert (done, told) == ([0], [True])


def test_where_the_main_process_fails_the_others_leave_without_a_word(told):
    def fail():
        raise ValueError("the reason")

    with pytest.raises(ValueError, match="the reason"):
        Share(0, 2).main_first(fail)
    with pytest.raises(SystemExit) as caught:
        Share(1, 2).main_first(fail)
    assert caught.value.code == 0


@pytest.mark.slow
def test_only_the_main_process_reports(ldvc, checkpoint, broken_photos, tmp_path, told, monkeypatch):
    import accelerate.utils

    from ldvc.app import cli

    call = ["segment", broken_photos, "-m", checkpoint, "-o", tmp_path / "out", "-f", "png", "-f", "coco-rle"]
    brought, others = [], []

    def run(index):
        monkeypatch.setattr(cli, "join_processes", lambda: Share(index, 2))
        return ldvc(*call)

    def gather(values):
        brought.extend(values)
        if len(brought) == 1:  # the main process waits for the other
            others.append(run(1))
        return brought

    monkeypatch.setattr(accelerate.utils, "gather_object", gather)
    result = run(0)
    # with another code than 0, a launcher would end the main process, which still writes
    assert (others[0].exit_code, others[0].output) == (0, "")
    assert [num_tried for num_tried, _, _ in brought] == [4, 3]
    assert (result.exit_code, "6 of 7 pictures segmented" in result.stdout) == (1, True)
    assert result.stderr.startswith(f"1 failed:\n  {broken_photos / 'p2.png'}: ")
    assert len(json.loads((tmp_path / "out" / "coco.json").read_text())["images"]) == 6


# ---- files that are being written


OTHER = f"{'0' * 8}-1"  # a process of another machine


def stopped_process():
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return f"{this_machine()}-{process.pid}"


def test_two_processes_never_write_to_one_part_file(tmp_path, monkeypatch):
    with written_aside(tmp_path / "a.png") as first:
        monkeypatch.setattr(os, "getpid", lambda: 1)
        with written_aside(tmp_path / "a.png") as second:
            assert first.name != second.name
            second.write(b"second")
        first.write(b"first")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.png", b"first")]


@pytest.mark.skipif(os.name != "posix", reason="elsewhere, the age decides")
def test_a_part_file_is_left_over_when_its_process_has_stopped(tmp_path):
    assert not is_left_over(tmp_path / f".a.png{part_suffix()}")
    assert is_left_over(tmp_path / f".a.png.{stopped_process()}.part")
    assert is_left_over(tmp_path / f".a.png.{this_machine()}-{10**18}.part")


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells")
def test_a_process_that_has_ended_does_not_run_though_its_number_is_kept():
    process = subprocess.Popen([sys.executable, "-c", ""], stdout=subprocess.PIPE)
    process.stdout.read()
    while parts.is_running(process.pid):
        time.sleep(0.01)
    os.kill(process.pid, 0)  # there still
    process.wait()


def test_a_process_of_another_user_runs(monkeypatch):
    def refuse(*_):
        raise PermissionError

    monkeypatch.setattr(os, "kill", refuse)
    assert parts.is_running(1)


def test_of_another_machine_the_age_of_a_part_file_decides(tmp_path):
    path = tmp_path / f".a.png.{OTHER}.part"
    path.write_text("")
    assert not is_left_over(path)
    os.utime(path, (0, time.time() - parts.LONGEST_SILENCE - 1))
    assert is_left_over(path)
    path.unlink()
    assert not is_left_over(path), "it has just taken its place"


def test_a_run_clears_away_what_stopped_ones_left_and_nothing_else(tmp_path):
    for name in (f"below/.a.png.{stopped_process()}.part", f".b.png.{OTHER}.part", ".of_someone.part", "c.part"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("half")
    OutputFolder(tmp_path, [Format.PNG], describe_names(["cat"]), 1).start({})
    assert sorted(files_of(tmp_path)) == [f".b.png.{OTHER}.part", ".of_someone.part", "c.part", "names.json"]


# ---- the journal of COCO records


def add_record(journal, name, file_name="x.png"):
    annotation = {"category_id": 0, "area": 1}
    journal.add(name, {"file_name": file_name, "width": 2, "height": 1}, [annotation, {**annotation, "area": 2}])


def test_the_file_is_what_json_would_write_at_once(tmp_path):
    journal = Journal(tmp_path)
    for name in ("b", "ä", "a"):
        add_record(journal, name)
    journal.close()
    write_coco(tmp_path, ["cat"], [journal.path])
    text = (tmp_path / "coco.json").read_text(encoding="utf-8")
    content = json.loads(text)
    assert text == json.dumps(content, ensure_ascii=False)
    assert [(image["id"], image["name"]) for image in content["images"]] == [(1, "a"), (2, "b"), (3, "ä")]
    assert [(x["id"], x["image_id"]) for x in content["annotations"]] == [
        (1, 1),
        (2, 1),
        (3, 2),
        (4, 2),
        (5, 3),
        (6, 3),
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["coco.json"]


def test_a_record_of_this_run_takes_the_place_of_an_old_one(tmp_path):
    for file_name in ("old.png", "new.png"):
        journal = Journal(tmp_path)
        add_record(journal, "a", file_name)
        journal.close()
        write_coco(tmp_path, ["cat"], [journal.path])
    (image,) = json.loads((tmp_path / "coco.json").read_text())["images"]
    assert image["file_name"] == "new.png"


def test_the_journal_of_a_running_process_is_read_and_left_to_it(tmp_path):
    journal = Journal(tmp_path)
    add_record(journal, "a")
    journal.close()
    foreign = tmp_path / f"coco.json.{OTHER}.part"
    foreign.write_text(journal.path.read_text().replace('"a"', '"b"') + '{"name": "c", "ima')
    write_coco(tmp_path, ["cat"], [journal.path])
    assert [image["name"] for image in json.loads((tmp_path / "coco.json").read_text())["images"]] == ["a", "b"]
    assert find_journals(tmp_path) == [foreign]


def test_a_run_that_ends_while_another_writes_loses_no_record(tmp_path, monkeypatch):
    journal = Journal(tmp_path)
    add_record(journal, "a")
    journal.close()
    foreign, write_records = tmp_path / f"coco.json.{OTHER}.part", coco.write_records
    foreign.write_text(journal.path.read_text().replace('"a"', '"b"'))

    def write_late(file, index, class_names, first_category_id):
        monkeypatch.setattr(coco, "write_records", write_records)
        foreign.write_text(foreign.read_text() + foreign.read_text().replace('"b"', '"c"'))
        write_coco(tmp_path, class_names, [foreign])  # the other run ends, and takes its journal away
        write_records(file, index, class_names, first_category_id)

    monkeypatch.setattr(coco, "write_records", write_late)
    write_coco(tmp_path, ["cat"], [journal.path])
    content = json.loads((tmp_path / "coco.json").read_text())
    assert [image["name"] for image in content["images"]] == ["a", "b", "c"]
    assert [path.name for path in tmp_path.iterdir()] == ["coco.json"]


def test_journals_of_stopped_runs_go_when_the_classes_change_and_those_of_running_ones_stay(tmp_path):
    names = [f"coco.json.{stopped_process()}.part", f"coco.json.{OTHER}.part", "coco.json.part"]
    for name in names:
        (tmp_path / name).write_text("")
    Journal(tmp_path).close()
    remove_journals(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [names[1]]


def test_threads_write_whole_lines(tmp_path):
    journal = Journal(tmp_path)
    jobs = jobs_of("a" * 200)
    list(in_threads(lambda job: add_record(journal, str(job.picture.name)), jobs, 8, 50))
    journal.close()
    assert len(list(coco.journal_records(journal.path))) == 200


def test_records_are_not_kept_in_memory(tmp_path):
    import tracemalloc

    journal = Journal(tmp_path)
    tracemalloc.start()
    annotation = {"segmentation": "x" * 20_000}
    for number in range(200):  # 4 MB
        journal.add(str(number), {}, [annotation])
    journal.close()
    write_coco(tmp_path, ["cat"], [journal.path])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (tmp_path / "coco.json").stat().st_size > 4_000_000
    assert peak < 1_000_000


# ---- several processes


def launch(arguments, num_processes=2):
    """Start the command under `accelerate launch`."""
    command = [
        *(sys.executable, "-m", "accelerate.commands.launch", "--main_process_port", "0"),
        *("--config_file", ROOT / "recipes" / "accelerate" / "two_cpu_processes.yaml"),
        *("--num_processes", num_processes, "-m", "ldvc", *arguments),
    ]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.Popen(
        [str(word) for word in command],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_two_processes_write_the_files_of_one(ldvc, checkpoint, broken_photos, dataset, tmp_path):
    for name, source in (("files", [broken_photos]), ("rows", ["--dataset", dataset])):
        call = ["segment", *source, "-m", checkpoint, "--device", "cpu", *FORMATS]
        one = ldvc(*call, "-o", tmp_path / name / "one")
        process = launch([*call, "-o", tmp_path / name / "two"])
        output, errors = process.communicate(timeout=120)
        assert output == one.stdout.replace("one", "two"), errors
        assert process.returncode == one.exit_code
        assert "".join(re.findall(r"^1 failed:\n.*\n", one.stderr)) in errors
        assert files_of(tmp_path / name / "one") == files_of(tmp_path / name / "two")
    assert len(files_of(tmp_path / "files" / "two")) == 6 * 3 + 2


@pytest.mark.slow
def test_two_processes_refuse_in_one_line(checkpoint, photos, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "p0.png").write_text("")
    process = launch(["segment", photos, "-m", checkpoint, "-o", tmp_path / "out"])
    errors = process.communicate(timeout=120)[1]
    assert process.returncode != 0
    assert len(re.findall(r"^ldvc: .*is there already", errors, re.MULTILINE)) == 1


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 3])
def test_a_killed_run_goes_on_with_another_number_of_processes(ldvc, checkpoint, tmp_path, num_processes):
    pictures, rng = tmp_path / "pictures", np.random.default_rng(0)
    pictures.mkdir()
    for index in range(40):
        Image.fromarray(rng.integers(0, 256, (300, 200 + index, 3), dtype=np.uint8)).save(pictures / f"{index:02}.png")
    call = ["segment", pictures, "-m", checkpoint, "--device", "cpu", *FORMATS]
    assert ldvc(*call, "-o", tmp_path / "whole").exit_code == 0
    process = launch([*call, "-o", tmp_path / "killed"])
    start = time.monotonic()
    while len(list((tmp_path / "killed").glob("*.npz"))) < 5 and time.monotonic() - start < 60:
        time.sleep(0.005)
    journals = find_journals(tmp_path / "killed")
    assert len(journals) == 2, "one of each process"
    for process_id in [process.pid, *(int(parts.OWNER.search(path.name)[2]) for path in journals)]:
        os.kill(process_id, signal.SIGKILL)
    process.communicate()
    while not all(map(is_left_over, journals)):  # the system takes a moment
        time.sleep(0.01)
    assert 5 <= len(list((tmp_path / "killed").glob("*.npz"))) < 40
    arguments = [*call, "-o", tmp_path / "killed", "--skip-existing"]
    if num_processes == 1:
        assert ldvc(*arguments).exit_code == 0
    else:
        process = launch(arguments, num_processes)
        errors = process.communicate(timeout=120)[1]
        assert process.returncode == 0, errors
    assert files_of(tmp_path / "killed") == files_of(tmp_path / "whole")
