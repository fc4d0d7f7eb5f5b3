"""The web page: its handlers, and the whole of it in headless Chromium. No request leaves this machine."""

import io
import json
import os
import shutil
import signal
import socket
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image


pytest.importorskip("gradio", reason="the web page needs gradio, extra `demo`")

from ldvc.app import page as page_module
from ldvc.app.explain import draw_routing
from ldvc.app.page import Page, build_demo, check_port, launch, style_swatches
from ldvc.app.session import EXAMPLE_PICTURE, Segmenter, Visit
from picturebook import draw_scene


ROOT = Path(__file__).resolve().parents[1]
LABELS = "balloon, cat, grass, sky"
SECONDS = 30  # that a browser may take for a step, on a busy machine too


@pytest.fixture(scope="module")
def segmenter():
    return Segmenter()


@pytest.fixture(scope="module", autouse=True)
def own_folder(tmp_path_factory):
    """Where Gradio keeps files; `launch` names another, which is forgotten with this module."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(tmp_path_factory.mktemp("gradio")))
        yield


@pytest.fixture(scope="module")
def page(segmenter):
    return Page(segmenter)


@pytest.fixture
def upload(tmp_path, page, monkeypatch):
    """Return what the browser sends for a picture of 96 x 80 pixels, another page than the example."""
    monkeypatch.setattr(page.picture, "GRADIO_CACHE", str(tmp_path))  # where uploads are
    picture = draw_scene("test", 0, 3).image.resize((80, 96))
    picture.save(tmp_path / "upload.png")
    return {"path": str(tmp_path / "upload.png")}


# ---- handlers


def test_the_page_starts_with_an_example_that_is_segmented_and_explained(page):
    answer = page.first_visit.answer
    assert list(answer.classes) == ["balloon", "cat", "grass", "sky"]
    assert page.labels.value == LABELS
    assert all(component.value for component in (page.picture, page.overlay, page.top_classes, page.routing))
    assert page.shown.value == answer.names


@pytest.mark.slow
def test_a_model_that_does_not_know_the_example_starts_with_an_empty_page(segmenter, monkeypatch, upload):
    monkeypatch.setattr(segmenter, "start", lambda: (Visit(), "cat, dog"))
    page = Page(segmenter)
    monkeypatch.setattr(page.picture, "GRADIO_CACHE", str(Path(upload["path"]).parent))
    assert page.labels.value == "cat, dog"
    assert not any(component.value for component in (page.picture, page.overlay, page.shown, page.routing))
    assert list(page.on_picture(None, "cat, dog", 0.0, upload)[0].answer.classes) == ["cat", "dog"]


def test_a_new_picture_gives_a_new_answer_with_the_names_on_the_page(page, upload):
    visit, status, overlay, _, shown, row, column, best, _, routing, picture = page.on_picture(
        None, "cat, sky", 0.0, upload
    )
    assert "2 classes on 80 x 96 pixels" in status
    assert visit.scene.picture_size == (96, 80)
    assert overlay == page.segmenter.draw(visit.answer, page.segmenter.label_map(visit.answer, overlay.size[::-1]))
    assert [name for _, name in shown.choices] == ["cat", "sky"]
    assert (row, column) == (48, 40)
    explanation = page.segmenter.explain(visit.answer)
    assert best == dict(explanation.top_classes)
    assert routing == draw_routing(visit.scene.preview, explanation)
    assert picture == page_module.gr.skip()  # the box shows it already


def test_new_settings_use_the_kept_encoding_and_say_so(page, upload, monkeypatch):
    visit = page.on_picture(None, LABELS, 0.0, upload)[0]
    monkeypatch.setattr(page.segmenter.model, "get_image_features", None)
    changed, status, *_ = page.on_settings(visit, "bird, sky, wood", 0.0)
    assert list(changed.answer.classes) == ["bird", "sky", "wood"]
    assert "encoding of the picture kept" in status


def test_names_are_shown_as_text_and_never_as_markup(page):
    *_, note, _ = page.on_settings(None, "<img src=x>, <b>", 0.0)
    assert "<img" not in note
    with pytest.warns(UserWarning, match="&lt;b&gt;"):
        _, status, *_ = page.on_settings(None, "<b>, <b>", 0.0)
    assert "<b>" not in status


@pytest.mark.parametrize(("text", "message"), [("", "No class name is given"), ("cat, cat", "is given twice")])
def test_bad_names_show_a_message_and_change_nothing_else(page, text, message):
    with pytest.warns(UserWarning, match=message):
        visit, status, *others = page.on_settings(None, text, 0.0)
    assert visit is page.first_visit
    assert message in status
    assert others == [page_module.gr.skip()] * 8


def test_a_bad_file_shows_a_message_and_the_old_picture_comes_back(page, upload, tmp_path):
    visit = page.on_picture(None, LABELS, 0.0, upload)[0]
    (tmp_path / "bad.png").write_text("this is text")
    with pytest.warns(UserWarning, match="The file is no picture"):
        after, _, *others, picture = page.on_picture(visit, LABELS, 0.0, {"path": str(tmp_path / "bad.png")})
    assert after is visit
    assert others == [page_module.gr.skip()] * 8
    assert picture is visit.scene.preview


@pytest.mark.parametrize("kind", ["outside", "through a link", "no path"])
def test_a_file_that_nobody_uploaded_is_never_opened(page, upload, tmp_path_factory, monkeypatch, kind):
    outside = tmp_path_factory.mktemp("private") / "photo.png"
    shutil.copy(upload["path"], outside)
    link = Path(upload["path"]).with_name("link.png")
    link.symlink_to(outside)
    asked = {"outside": {"path": str(outside)}, "through a link": {"path": str(link)}, "no path": {}}[kind]
    monkeypatch.setattr(page.segmenter, "encode", None)
    with pytest.warns(UserWarning, match="The file was not uploaded to this page"):
        visit, *_ = page.on_picture(None, LABELS, 0.0, asked)
    assert visit is page.first_visit


def test_an_emptied_box_keeps_the_result_and_asks_for_a_picture(page, upload):
    visit = page.on_picture(None, LABELS, 0.0, upload)[0]
    emptied = page.on_picture(visit, LABELS, 0.0, None)[0]
    assert emptied == Visit(None, visit.answer)
    with pytest.warns(UserWarning, match="There is no picture yet"):
        page.on_settings(emptied, LABELS, 0.0)


def test_hidden_classes_stay_hidden_for_the_next_names(page):
    visit, overlay = page.on_shown(None, ["cat", "sky"])
    assert visit.answer.hidden == {"balloon", "grass"}
    assert overlay != page.show_result(page.first_visit)[1]
    visit, *_, shown, _, _, _, _, _ = page.on_settings(visit, "balloon, cat, wood", 0.0)
    assert shown.value == ["cat", "wood"]
    assert page.on_shown(visit, ["balloon", "cat", "wood"])[0].answer.hidden == {"grass"}


def test_a_click_explains_the_pixel_under_it(page):
    visit, _, row, column, *_ = page.on_click(None, SimpleNamespace(index=[100, 200]))
    assert visit.answer.point == (200, 100)
    assert (row, column) == (160, 80)  # the preview of 512 pixels is 640 wide


def test_numbers_explain_a_pixel_as_a_click_does(page):
    by_click = page.on_click(None, SimpleNamespace(index=[100, 200]))
    by_numbers = page.on_point(None, 160, 80)
    assert by_numbers == by_click
    with pytest.warns(UserWarning, match="There is no pixel at row 512"):
        page.on_point(None, 512, 0)


def test_a_visit_without_a_result_is_told_so(page):
    for call in (
        lambda: page.on_click(Visit(), SimpleNamespace(index=[0, 0])),
        lambda: page.on_point(Visit(), 0, 0),
        lambda: page.on_download(Visit(), SimpleNamespace(session_hash="a")),
    ):
        with pytest.warns(UserWarning, match="There is no result yet"):
            call()
    assert page.on_shown(Visit(), [])[0] == Visit()


@pytest.mark.slow
def test_downloads_of_two_visitors_are_two_files(page):
    paths = [
        Path(page.on_download(visit, SimpleNamespace(session_hash=name))[1])
        for name, visit in (("a", None), ("b", page.on_settings(None, "sky", 0.0)[0]), ("a", None))
    ]
    assert paths[0] == paths[2] != paths[1]
    with zipfile.ZipFile(paths[1]) as archive:
        assert json.loads(archive.read("names.json"))["names"] == {"0": "sky"}


def test_a_single_class_and_an_unrouted_decoder_are_said_in_words(page, monkeypatch):
    *_, note, _ = page.on_settings(None, "sky", 0.0)
    assert "one class only" in note
    monkeypatch.setattr(page_module, "draw_routing", lambda *_: (_ for _ in ()).throw(ValueError("nothing is routed")))
    *_, note, routing = page.on_settings(None, LABELS, 0.0)
    assert "nothing is routed" in note
    assert routing is None


def test_swatches_have_the_colours_of_the_overlay():
    red, green, blue = page_module.class_colors(["cat", "dog"])[1]
    assert f"label:nth-of-type(2) > span::before {{ background: rgb({red}, {green}, {blue}); }}" in style_swatches(
        ["cat", "dog"]
    )


# ---- limits


def test_a_program_gets_the_label_map_and_what_its_ids_mean(page, upload):
    place, names = page.on_api(upload, "cat, sky", 0.5, "grass")
    visit = page.on_picture(None, "cat, sky", 0.5, upload, "grass")[0]
    with Image.open(place["path"]) as image:
        assert image.mode == "L"
        assert np.array_equal(np.asarray(image), page.segmenter.label_map(visit.answer, (96, 80)))
    assert names["names"] == {"0": "cat", "1": "sky", "2": "other"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("cat, cat",), "is given twice"),
        (("cat", 2.0), "the threshold is 2.0; use 0 to 1"),
    ],
)
def test_what_is_wrong_with_a_programs_call_is_one_line(page, upload, arguments, message):
    with pytest.raises(page_module.gr.Error, match=message):
        page.on_api(upload, *arguments)
    with pytest.raises(page_module.gr.Error, match="was not uploaded to this page"):
        page.on_api({"path": str(EXAMPLE_PICTURE)}, "cat")


@pytest.mark.slow
def test_the_pages_own_api_answers_as_documented(segmenter, monkeypatch, tmp_path):
    monkeypatch.setattr(page_module, "build_demo", lambda _: Page(segmenter).blocks)
    monkeypatch.chdir(tmp_path)
    shutil.copy(EXAMPLE_PICTURE, "photo.jpg")
    script = (ROOT / "docs" / "serving.md").read_text().partition("## The page's API")[2]
    script, port = script.partition("```python\n")[2].partition("```")[0], free_port()
    blocks = launch("any", port=port, block=False)
    try:
        found = {}
        exec(script.replace("7860", str(port)), found)
        from gradio_client.exceptions import AppError

        with pytest.raises(AppError, match="is given twice"):
            found["client"].predict(found["handle_file"]("photo.jpg"), "cat, cat", api_name="/segment")
    finally:
        blocks.close()
    scene = segmenter.encode("photo.jpg")
    answer = segmenter.segment(Visit(scene), "cat, sofa|couch, grass", 0.3)
    assert np.array_equal(found["ids"], segmenter.label_map(answer, scene.picture_size))
    assert list(found["names"].values()) == answer.names


@pytest.mark.slow
def test_the_page_is_bounded_private_and_silent(segmenter, monkeypatch):
    options = {}
    monkeypatch.setattr(page_module, "keep_from_proxy", lambda _: None)
    monkeypatch.setattr(page_module, "build_demo", lambda _: Page(segmenter).blocks)
    monkeypatch.setattr(page_module.gr.Blocks, "launch", lambda self, **given: options.update(given))
    blocks = launch("any", port=free_port(), block=False)
    assert options["server_name"] == "127.0.0.1"
    assert options["share"] is False
    assert options["max_file_size"] == "40mb"
    assert blocks._queue.max_size == 32
    assert blocks.analytics_enabled is False
    runs_model = [fn for fn in blocks.fns.values() if fn.concurrency_id == "model"]
    assert len(runs_model) == 8
    assert all(fn.concurrency_limit == 1 for fn in runs_model)
    assert [fn.api_name for fn in runs_model if fn.api_visibility != "private"] == ["segment"]


@pytest.mark.slow
def test_a_page_for_the_whole_network_is_announced(segmenter, monkeypatch, caplog):
    monkeypatch.setattr(page_module, "keep_from_proxy", lambda _: None)
    monkeypatch.setattr(page_module, "build_demo", lambda _: Page(segmenter).blocks)
    monkeypatch.setattr(page_module.gr.Blocks, "launch", lambda self, **_: None)
    launch("any", host="0.0.0.0", port=free_port(), block=False)
    assert "everyone who reaches this machine" in caplog.text


@pytest.mark.slow
def test_a_page_that_opens_after_another_does_not_lie_in_its_folder(segmenter, monkeypatch, tmp_path):
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path / "given"))
    monkeypatch.setattr(page_module, "build_demo", lambda _: Page(segmenter).blocks)
    monkeypatch.setattr(page_module.gr.Blocks, "launch", lambda self, **_: None)
    ends = []
    monkeypatch.setattr(page_module, "keep_clean", lambda *arguments: ends.append(arguments))
    folders = []
    for _ in range(2):
        launch("any", port=free_port(), block=False)
        folders.append(Path(os.environ["GRADIO_TEMP_DIR"]))
    assert folders[0] != folders[1]
    assert {folder.parent for folder in folders} == {tmp_path / "given"}


def test_files_of_visitors_are_deleted_when_they_are_old_and_those_of_the_page_stay(tmp_path):
    old, young, own = (tmp_path / name / "a.png" for name in ("old", "young", "own"))
    for path in (old, young, own):
        path.parent.mkdir()
        path.write_bytes(b"")
    long_ago = time.time() - page_module.KEPT_SECONDS - 1
    for path in (old, own):
        os.utime(path, (long_ago, long_ago))
    page_module.delete_old(tmp_path, {own.parent, own})
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        *("old", "own", "own/a.png", "young", "young/a.png")
    ]
    os.utime(old.parent, (long_ago, long_ago))
    page_module.delete_old(tmp_path, {own.parent, own})
    assert not old.parent.exists()


def test_the_page_deletes_while_it_is_served_and_leaves_nothing_behind(tmp_path, monkeypatch):
    folder = page_module.TemporaryDirectory(dir=tmp_path)
    monkeypatch.setenv("GRADIO_TEMP_DIR", folder.name)
    upload = Path(folder.name, "upload.png")
    upload.write_bytes(b"")
    blocks, was_there = SimpleNamespace(is_running=True), []

    def pause(seconds):
        was_there.append(upload.exists())
        blocks.is_running = len(was_there) < 2
        monkeypatch.setattr(page_module, "KEPT_SECONDS", -1)

    monkeypatch.setattr(page_module, "time", SimpleNamespace(time=time.time, sleep=pause))
    page_module.keep_clean(blocks, folder, set(), "elsewhere")
    assert was_there == [True, False]
    assert os.environ["GRADIO_TEMP_DIR"] == "elsewhere"
    assert list(tmp_path.iterdir()) == []


def test_the_page_ends_where_the_system_asks_it_to_as_at_ctrl_c(monkeypatch):
    blocks = SimpleNamespace(is_running=True, close=lambda verbose: setattr(blocks, "is_running", False))
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(
        page_module, "time", SimpleNamespace(sleep=lambda seconds: os.kill(os.getpid(), signal.SIGTERM))
    )
    try:
        page_module.wait_for_end(blocks)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert not blocks.is_running


def test_what_the_user_keeps_from_a_proxy_stays_kept(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "lab.example")
    monkeypatch.setenv("no_proxy", "")
    page_module.keep_from_proxy("127.0.0.1")
    assert os.environ["NO_PROXY"] == os.environ["no_proxy"] == "lab.example,localhost,127.0.0.1"


def test_a_port_that_is_taken_or_none_is_refused_before_the_model_loads(monkeypatch):
    monkeypatch.setattr(page_module, "build_demo", None)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match=f"port {port} of 127.0.0.1 cannot be used .* another with --port"):
            launch(port=port)
    with pytest.raises(ValueError, match="port 70000 is no TCP port"):
        check_port("127.0.0.1", 70000)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ValueError, match="is no LDVC model"):
        build_demo(tmp_path)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


# ---- in a browser


class Browser:
    """A page in headless Chromium, seen through the ids of its components."""

    def __init__(self, driver, url, downloads):
        self.driver, self.url, self.downloads = driver, url, downloads

    def find(self, selector):
        return self.driver.find_element("css selector", selector)

    def wait_for(self, condition, what):
        from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                if result := condition():
                    return result
            except (NoSuchElementException, StaleElementReferenceException):
                pass  # the page is still being drawn
            time.sleep(0.05)
        raise AssertionError(f"waited {SECONDS} s for {what}; status: {self.find('#status').text!r}")

    @property
    def result(self):
        return self.find("#result img").get_attribute("src")

    def number(self, name):
        return int(self.find(f"#{name} input").get_attribute("value"))

    def type_labels(self, text):
        from selenium.webdriver.common.keys import Keys

        box = self.find("#labels textarea")
        box.clear()
        box.click()
        self.driver.execute_cdp_cmd("Input.insertText", {"text": text})  # at once, as pasted: a key each takes minutes
        box.send_keys(Keys.ENTER)

    def upload(self, path):
        self.find("#picture input[type=file]").send_keys(str(path))


@pytest.fixture(scope="module")
def server(segmenter):
    """Serve the page behind a proxy that does not answer, and remember where this process tried to connect to."""
    patch = pytest.MonkeyPatch()
    patch.setenv("NO_PROXY", "")
    patch.setenv("no_proxy", "")
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        patch.setenv(name, "http://192.0.2.1:9")  # an address that belongs to nobody
    reached, connect = set(), socket.socket.connect

    def remember(self, address):
        reached.add(address[0] if isinstance(address, tuple) else str(address))
        return connect(self, address)

    patch.setattr(socket.socket, "connect", remember)
    patch.setattr(page_module, "Segmenter", lambda _: segmenter)
    blocks = launch(port=free_port(), block=False)
    yield SimpleNamespace(url=blocks.local_url, reached=reached)
    blocks.close()
    patch.undo()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and chromedriver):
        pytest.skip("needs chromium and chromedriver on the path")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for switch in (
        *("headless=new", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "window-size=1280,1500"),
        *("disable-background-networking", "disable-component-update", "disable-sync"),
    ):
        options.add_argument(f"--{switch}")
    options.add_argument(f"--user-data-dir={tmp_path_factory.mktemp('chromium')}")
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(chromedriver))
    yield driver
    driver.quit()


@pytest.fixture
def browser(driver, server, tmp_path):
    """Open the page afresh."""
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    driver.get_log("performance")  # what came before this page
    driver.get(server.url)
    browser = Browser(driver, server.url, tmp_path)
    browser.wait_for(lambda: browser.result and browser.find("#routing img").is_displayed(), "the example")
    return browser


@pytest.mark.slow
def test_the_page_loads_whole_from_this_machine_alone(browser, server):
    requests, failures = set(), []
    for entry in browser.driver.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            requests.add(message["params"]["request"]["url"])
        elif message["method"] == "Network.loadingFailed" and not message["params"].get("canceled"):
            failures.append(message["params"])
        elif message["method"] == "Network.responseReceived" and message["params"]["response"]["status"] >= 400:
            failures.append(message["params"]["response"]["url"])
    hosts = {urlsplit(url).hostname for url in requests if url.startswith(("http", "ws"))}
    assert hosts == {"127.0.0.1"}
    assert not failures
    assert server.reached <= {"127.0.0.1", "localhost"}
    assert not [entry["message"] for entry in browser.driver.get_log("browser") if entry["level"] == "SEVERE"]


@pytest.mark.slow
def test_every_control_has_a_name_for_screen_readers(browser):
    nameless = browser.driver.execute_script(
        """return [...document.querySelectorAll('#labels textarea, #threshold input, #row input, #column input,'
           + ' #classes input, #run, #explain, #download')].filter(
             e => !(e.innerText || e.ariaLabel || e.title || e.labels?.length)).map(e => e.outerHTML)"""
    )
    assert nameless == []


@pytest.mark.slow
def test_typed_names_change_the_mask_and_the_classes(browser):
    before = browser.result
    browser.type_labels("cat; sand|beach")
    browser.wait_for(lambda: browser.result != before, "another mask")
    labels = browser.wait_for(
        lambda: len(found := browser.driver.find_elements("css selector", "#classes label")) == 2 and found,
        "two classes",
    )
    assert [label.text.split(" ")[0] for label in labels] == ["cat", "sand"]
    assert "2 classes on 512 x 512 pixels" in browser.find("#status").text


@pytest.mark.slow
def test_the_threshold_moves_with_the_keyboard_and_makes_other(browser):
    from selenium.webdriver.common.keys import Keys

    browser.find("#threshold input[type=range]").send_keys(Keys.END)
    browser.wait_for(lambda: "other · 100%" in browser.find("#classes").text, "every pixel to be other")


@pytest.mark.slow
def test_an_uploaded_picture_is_segmented(browser, upload):
    before = browser.result
    browser.upload(upload["path"])
    browser.wait_for(lambda: browser.result != before, "the mask of the upload")
    browser.wait_for(lambda: "80 x 96 pixels" in browser.find("#status").text, "its size")


@pytest.mark.slow
def test_a_click_on_the_result_explains_that_pixel(browser):
    from selenium.webdriver import ActionChains

    routing, image = browser.find("#routing img").get_attribute("src"), browser.find("#result img")
    assert (browser.number("row"), browser.number("column")) == (400, 340)
    scale = 512 / min(image.size["width"], image.size["height"])
    ActionChains(browser.driver).move_to_element_with_offset(image, -round(120 / scale), 0).click().perform()
    browser.wait_for(lambda: browser.number("column") != 340, "another pixel")
    assert browser.number("column") == pytest.approx(136, abs=6)
    assert browser.number("row") == pytest.approx(256, abs=6)
    browser.wait_for(lambda: browser.find("#routing img").get_attribute("src") != routing, "its routes")


@pytest.mark.slow
def test_a_class_is_switched_off_and_on_with_the_keyboard(browser):
    from selenium.webdriver.common.keys import Keys

    first = browser.result
    box = browser.find("#classes label:nth-of-type(4) input")
    box.send_keys(Keys.SPACE)
    second = browser.wait_for(lambda: browser.result != first and browser.result, "the mask without sky")
    browser.find("#classes label:nth-of-type(4) input").send_keys(Keys.SPACE)
    browser.wait_for(lambda: browser.result != second, "the mask with sky")


@pytest.mark.slow
def test_masks_are_downloaded(browser):
    browser.find("#download").click()
    [path] = browser.wait_for(lambda: list(browser.downloads.glob("*.zip")), "the zip")
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive, Image.open(archive.open("masks.png")) as masks:
        assert masks.size == (512, 512)
        assert set(np.unique(masks)) <= {0, 1, 2, 3}


@pytest.mark.slow
def test_a_bad_upload_and_empty_names_show_a_message_and_the_result_stays(browser, tmp_path):
    before = browser.result
    (tmp_path / "text.png").write_text("this is text")
    browser.upload(tmp_path / "text.png")
    browser.wait_for(lambda: "no picture that can be read" in browser.find("#status").text, "a message")
    browser.type_labels(" , ")
    browser.wait_for(lambda: "No class name is given" in browser.find("#status").text, "a message")
    assert browser.result == before
    assert "Traceback" not in browser.find("body").text


@pytest.mark.slow
def test_two_tabs_do_not_share_what_they_show(browser, server):
    before = browser.result
    browser.type_labels("sky")
    browser.wait_for(lambda: browser.result != before, "another mask")
    browser.driver.switch_to.new_window("tab")
    browser.driver.get(server.url)
    browser.wait_for(lambda: len(browser.driver.find_elements("css selector", "#classes label")) == 4, "the example")
    browser.find("#explain").click()
    browser.wait_for(lambda: "grass" in browser.find("#top_classes").text, "the example's classes")
    browser.driver.close()
    browser.driver.switch_to.window(browser.driver.window_handles[0])
    assert len(browser.driver.find_elements("css selector", "#classes label")) == 1


@pytest.mark.slow
@pytest.mark.parametrize("width", [420, 1280])
def test_the_page_fits_its_window(browser, width):
    browser.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride",
        {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
    )
    needed = browser.driver.execute_script("return document.documentElement.scrollWidth")
    browser.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert needed <= width


def test_the_example_is_the_first_held_out_page():
    with Image.open(EXAMPLE_PICTURE) as picture:
        difference = np.asarray(picture).astype(int) - np.asarray(draw_scene("test", 0, 0, image_size=512).image)
    assert abs(difference).mean() < 8  # levels of 255: JPEG


# ---- other kinds of models


KINDS = ["clip", "clipseg"]
THOUSAND = ", ".join(f"thing {number}" for number in range(1000))


@pytest.fixture
def kinds(clip_folder, clipseg_folder):
    """Return a folder of each kind that needs no training."""
    return {"clip": clip_folder, "clipseg": clipseg_folder}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_another_kind_segments_compares_and_says_what_it_cannot(kinds, upload, kind):
    page = Page(Segmenter(kinds[kind]))
    page.picture.GRADIO_CACHE = str(Path(upload["path"]).parent)
    visit, status, overlay, _, shown, *_, note, routing, _ = page.on_picture(None, "cat, dog", 0.0, upload, "sky")
    assert "2 classes on 80 x 96 pixels" in status
    assert visit.answer.names == ["cat", "dog", "other"]
    assert [value for _, value in shown.choices] == ["cat", "dog", "other"]
    assert (overlay.size, routing) == (visit.scene.preview.size, None)
    assert "there are no routes to draw: " in note
    visit, status, *_ = page.on_settings(visit, THOUSAND, 0.0)
    assert "1000 classes on 80 x 96 pixels" in status
    _, _, _, shown = page.show_result(visit)
    assert 0 < len(shown["choices"]) < 1000, "of so many, those that the picture shows"
    found = [name for _, name in shown["choices"]]
    hidden, _ = page.on_shown(visit, found[1:])
    assert hidden.answer.hidden == {found[0]}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_a_page_of_another_kind_works_in_the_browser(driver, kinds, upload, tmp_path, kind):
    blocks = launch(kinds[kind], port=free_port(), block=False)
    try:
        driver.get(blocks.local_url)
        browser = Browser(driver, blocks.local_url, tmp_path)
        browser.wait_for(lambda: browser.find("#picture input[type=file]"), "the page")
        browser.type_labels("cat, dog")
        browser.upload(upload["path"])
        browser.wait_for(lambda: "2 classes on 80 x 96 pixels" in browser.find("#status").text, "the mask")
        browser.type_labels(THOUSAND)
        browser.wait_for(lambda: "1000 classes" in browser.find("#status").text, "a thousand labels")
    finally:
        blocks.close()
