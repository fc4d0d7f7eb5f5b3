"""What the load script measures; a short load on the page. Longer: `python -m tests.load page`."""

import load
import pytest


def samples(memory, num=100):
    """Memory after each of so many units of work, which it may depend on."""
    return [(done, float(memory(done))) for done in range(num + 1)]


def figures(memory, **others):
    return {"errors": [], "left": [], **load.summarise(samples(memory)), **others}


def test_memory_that_settles_during_the_warm_up_is_steady():
    found = figures(lambda done: 500 + min(10 * done, 300))
    assert (found["mb_at_warm_up"], found["mb_at_end"], found["mb_per_100"]) == (800, 800, 0)
    assert load.is_steady(found)


def test_memory_that_grows_with_the_work_is_not_steady():
    found = figures(lambda done: 500 + 2 * done)
    assert found["mb_per_100"] == 200
    assert found["mb_peak"] == 700
    assert not load.is_steady(found)


def test_single_peaks_are_not_growth():
    assert load.is_steady(figures(lambda done: 500 + 200 * (done % 10 == 0)))


@pytest.mark.parametrize(
    "others", [{"errors": ["a"]}, {"left": ["upload.png"]}, {"disk_mb_at_warm_up": 1, "disk_mb_at_end": 99}]
)
def test_errors_files_left_behind_and_a_disk_that_fills_fail_a_run(others):
    assert not load.is_steady(figures(lambda done: 500, **others))


def test_a_request_is_given_out_once_and_counted_with_its_error():
    tally = load.Tally(2)
    assert [tally.take() for _ in range(4)] == [True, True, False, False]
    tally.count(None)
    tally.count(ValueError("no"))
    assert (tally.done, tally.errors) == (2, ["ValueError: no"])


def test_files_in_every_folder_count_as_disk(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "file").write_bytes(bytes(load.MB))
    assert load.files_below(tmp_path) == {"a/b/file": 1.0}


@pytest.mark.slow
def test_users_of_the_page_meet_no_error_and_leave_no_file():
    pytest.importorskip("gradio", reason="the web page needs gradio, extra `demo`")
    found = load.load_page(num_requests=30, num_users=3)
    assert (found["requests"], found["errors"], found["left"]) == (30, [], [])


@pytest.mark.slow
def test_the_bulk_command_refuses_damaged_pictures_and_leaves_nothing_half_done():
    pytest.importorskip("pycocotools", reason="COCO RLE needs pycocotools, extra `cli`")
    found = load.load_segment(num_pictures=20)
    assert (found["refused"], found["errors"], found["left"]) == (1, [], [])
