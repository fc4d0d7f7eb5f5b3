"""A web page that segments pictures into classes given by name: `ldvc demo [MODEL]`.

The page runs on this machine alone: it binds to loopback, loads nothing from a network and sends nothing anywhere. A
picture is encoded once; new class names or another threshold only run the decoder. Programs ask by the call `/segment`
(docs/serving.md). Needs the extra `demo`.
"""

import hashlib
import html
import logging
import os
import secrets
import signal
import socket
import sys
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gradio as gr
import numpy as np

from ldvc.app.explain import draw_routing
from ldvc.app.session import EXAMPLE_PICTURE, NO_ANSWER, OTHER, Segmenter, Visit
from ldvc.loading import EMBEDDED_CHECKPOINT, one_line
from ldvc.masks.drawing import class_colors
from ldvc.masks.formats import describe_names
from ldvc.masks.pixels import write_grey


__all__ = ["build_demo", "launch"]

logger = logging.getLogger(__name__)

MAX_FILE_SIZE = "40mb"
KEPT_SECONDS = 900  # then files that were uploaded or made are deleted
SWEEP_SECONDS = 60  # from one look for such files to the next
FOLDER_PREFIX = "ldvc_demo_"
MAX_WAITING = 32  # requests in the queue; further ones are told to come back
MAX_SESSIONS = 64  # kept in memory, about 10 MB each; with more, the oldest begins anew
CSS = """
.gradio-container { max-width: 1240px !important; margin: 0 auto !important; }
#title h1 { margin-bottom: 0; }
#status { min-height: 1.5em; }
#status .problem { font-weight: 600; color: #b42318; }
.dark #status .problem { color: #ff8a7a; }
#result img { cursor: crosshair; width: 100%; object-fit: contain; }
#picture img { object-fit: contain; }
#classes label > span { display: inline-flex; align-items: center; gap: 0.45em; }
#classes label > span::before { content: ""; width: 0.95em; height: 0.95em; border-radius: 3px; flex: none;
  box-shadow: 0 0 0 1px rgba(0, 0, 0, 0.35); }
"""
# The file is made on demand: the visible button fills the hidden one, which is then clicked.
CLICK_HIDDEN_DOWNLOAD = "() => setTimeout(() => document.querySelector('#masks_file').click(), 100)"


def build_demo(model_folder: str | Path = EMBEDDED_CHECKPOINT, **settings: Any) -> gr.Blocks:
    """Build the page; `launch` gives it its looks and its limits, and starts it.

    Served in another way, nobody deletes visitors' files: `launch` does.

    Args:
        model_folder: What `ldvc.load` takes: a folder or Hub id.
        settings: Of `ldvc.load`.

    Raises:
        ValueError: If it cannot segment by names.
    """
    return Page(Segmenter(model_folder, **settings)).blocks


def launch(
    model_folder: str | Path = EMBEDDED_CHECKPOINT,
    host: str = "127.0.0.1",
    port: int = 7860,
    *,
    block: bool = True,
    **settings: Any,
) -> gr.Blocks:
    """Serve the page until interrupted.

    Args:
        model_folder: See `build_demo`.
        host: Address to listen on; the default answers this machine only.
        port: TCP port, 1 to 65,535.
        block: Wait for Ctrl+C; otherwise return at once, `close()` of the result stops the page.
        settings: Of `ldvc.load`.

    Raises:
        ValueError: If the model cannot segment by names, or the port is no port.
        OSError: If the port cannot be used.
    """
    check_port(host, port)
    given = os.environ.get("GRADIO_TEMP_DIR")
    if given and Path(given).name.startswith(FOLDER_PREFIX):  # of a page before, which will remove it
        given = str(Path(given).parent)
    if given:
        Path(given).mkdir(parents=True, exist_ok=True)
    folder = TemporaryDirectory(prefix=FOLDER_PREFIX, dir=given, ignore_cleanup_errors=True)
    os.environ["GRADIO_TEMP_DIR"] = folder.name  # for all that is uploaded or made; Gradio asks again and again
    blocks = build_demo(model_folder, **settings)
    own = set(Path(folder.name).rglob("*"))  # the example
    if host not in ("127.0.0.1", "localhost", "::1"):
        logger.warning(f"the page listens on {host}: everyone who reaches this machine can use it.")
    keep_from_proxy(host)
    blocks.queue(max_size=MAX_WAITING, default_concurrency_limit=1)
    blocks.launch(
        server_name=host,
        server_port=port,
        share=False,
        ssr_mode=False,
        mcp_server=False,
        pwa=False,
        run_history=False,
        enable_monitoring=False,
        footer_links=[],
        max_file_size=MAX_FILE_SIZE,
        state_session_capacity=MAX_SESSIONS,
        theme=make_theme(),
        css=CSS,
        quiet=True,
        prevent_thread_lock=True,
    )
    threading.Thread(target=keep_clean, args=(blocks, folder, own, given), daemon=True).start()
    sys.stdout.write(f"LDVC is at {blocks.local_url} (Ctrl+C stops it)\n")
    sys.stdout.flush()
    if block:
        wait_for_end(blocks)
    return blocks


def keep_clean(blocks: gr.Blocks, folder: TemporaryDirectory, own: Collection[Path], given: str | None) -> None:
    """Delete visitors' files when they are old, and all files when the page ends.

    Gradio can do that, but stops for good when a visitor comes while it looks, and forgets files of a visitor who made
    a mistake (of Gradio 6.31, found by `tests/load.py`).

    Args:
        blocks: The page, served.
        folder: Of all its files.
        own: What is in it from the start.
        given: The variable `GRADIO_TEMP_DIR` as it was before.
    """
    while blocks.is_running:
        delete_old(Path(folder.name), own)
        time.sleep(SWEEP_SECONDS)
    folder.cleanup()
    if os.environ.get("GRADIO_TEMP_DIR") != folder.name:  # another page has opened since
        return
    os.environ.pop("GRADIO_TEMP_DIR")
    if given is not None:
        os.environ["GRADIO_TEMP_DIR"] = given


def delete_old(folder: Path, own: Collection[Path]) -> None:
    """Delete the files in a folder that have been there for `KEPT_SECONDS`, and then the folders that they leave."""
    for parent, folders, files in os.walk(folder, topdown=False):  # which minds nothing that comes and goes meanwhile
        for path in (Path(parent, name) for name in (*files, *folders)):
            with suppress(OSError):  # it is gone already, or not empty
                if path not in own and time.time() - path.stat().st_mtime > KEPT_SECONDS:
                    path.rmdir() if path.is_dir() else path.unlink()


def wait_for_end(blocks: gr.Blocks) -> None:
    """Serve until Ctrl+C, or until the system asks to end, which then counts as Ctrl+C.

    Gradio's own waiting does not part from open tabs, so that it has to be given up after some seconds.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)
    with suppress(KeyboardInterrupt):
        while blocks.is_running:
            time.sleep(0.1)
    blocks.close(verbose=False)


def check_port(host: str, port: int) -> None:
    """Check that a page can be served there, before the model is loaded.

    Raises:
        ValueError: If the port is no port.
        OSError: If it cannot be used.
    """
    if not 1 <= port <= 65535:
        raise ValueError(f"port {port} is no TCP port; use 1024 to 65535.")
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"port {port} of {host} cannot be used ({reason}); choose another with --port.") from error


def keep_from_proxy(host: str) -> None:
    """Keep Gradio, which calls its own page to see that it is there, from asking a proxy for it."""
    names = ("NO_PROXY", "no_proxy")  # the second hides the first where both are set
    kept = [address for name in names for address in os.environ.get(name, "").split(",") if address]
    os.environ.update(dict.fromkeys(names, ",".join(dict.fromkeys([*kept, "localhost", "127.0.0.1", host]))))


def make_theme() -> gr.themes.Base:
    """Return the page's looks: fonts that are on every machine, and inks dark enough to be read."""
    theme = gr.themes.Default(
        primary_hue="orange",
        neutral_hue="slate",
        font=("system-ui", "sans-serif"),
        font_mono=("ui-monospace", "monospace"),
    )
    return theme.set(
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_hover_dark="*primary_800",
        block_info_text_color="*neutral_600",
        block_info_text_color_dark="*neutral_300",
    )


class Page:
    """The components of the page, and what connects them to a [`Segmenter`].

    Every handler takes the visit and returns values for components; a mistake of the visitor's changes nothing but the
    status line, so that the last result stays.
    """

    def __init__(self, segmenter: Segmenter):
        self.segmenter = segmenter
        self.first_visit, label_text = segmenter.start()
        with gr.Blocks(title="LDVC", analytics_enabled=False) as blocks:
            self.blocks = blocks
            self.visit = gr.State(None)
            gr.Markdown(
                "# LDVC: segment anything you can name\n"
                "Give a picture and a list of class names: every pixel gets the name that fits it best, names without "
                "a single training mask included.",
                elem_id="title",
            )
            with gr.Row():
                with gr.Column(scale=4, min_width=320):
                    self._add_controls(label_text)
                with gr.Column(scale=6, min_width=320):
                    self._add_result()
            self._add_explanation()
            self._connect()
        self.downloads = Path(self.masks_file.GRADIO_CACHE, "downloads")

    # ---- components

    def _add_controls(self, label_text: str) -> None:
        """Add what the visitor sets."""
        gr.Markdown("**Picture** · drop, paste or choose a file")
        self.picture = gr.Image(
            self.first_visit.scene and str(EXAMPLE_PICTURE),
            label="Picture",
            show_label=False,
            sources=["upload", "clipboard"],
            image_mode=None,
            height=360,
            buttons=[],
            elem_id="picture",
            alt_text="the picture to segment",
        )
        self.labels = gr.Textbox(
            label_text,
            label="Class names",
            info="Commas, semicolons or lines between names; synonyms as in sofa|couch.",
            lines=1,
            max_lines=6,
            max_length=40_000,
            elem_id="labels",
        )
        self.negative = gr.Textbox(
            "",
            label="Not",
            info=f"Names that compete with them and come back as “{OTHER}”; may be empty.",
            lines=1,
            max_lines=3,
            max_length=20_000,
            elem_id="negative",
        )
        self.threshold = gr.Slider(
            0,
            1,
            0,
            step=0.01,
            label="Threshold",
            info=f"Pixels whose best class is less probable become “{OTHER}”. 0 names every pixel.",
            elem_id="threshold",
        )
        self.run = gr.Button("Segment", variant="primary", elem_id="run")
        self.status = gr.HTML(f"<p role='status'>Model: {html.escape(self.segmenter.name)}</p>", elem_id="status")

    def _add_result(self) -> None:
        """Add what the visitor looks at and takes away."""
        _, overlay, swatches, shown = self.show_result(self.first_visit)
        gr.Markdown("**Result** · click a pixel to see why it got its class")
        self.overlay = gr.Image(
            overlay,
            label="Result",
            show_label=False,  # it would cover pixels that can be clicked, as would buttons
            interactive=False,
            format="png",
            buttons=[],
            elem_id="result",
            alt_text="the picture with its classes in colour",
        )
        self.swatches = gr.HTML(swatches, elem_id="swatches", visible="hidden")
        self.shown = gr.CheckboxGroup(
            shown["choices"],
            value=shown["value"],
            label="Classes, with their share of the picture",
            info="★ trained without a single mask" if self.segmenter.knows_seen_classes else None,
            elem_id="classes",
        )
        self.download = gr.Button("Download masks and overlay (zip)", elem_id="download")
        self.masks_file = gr.DownloadButton("zip", visible="hidden", elem_id="masks_file")

    def _add_explanation(self) -> None:
        """Add the answer to "why this pixel?"."""
        row, column, top_classes, margin, routing = self.show_explanation(self.first_visit)
        gr.Markdown("## Why this pixel?", elem_id="why")
        with gr.Row():
            with gr.Column(scale=4, min_width=320):
                with gr.Row():
                    self.row = gr.Number(row, label="Row", precision=0, minimum=0, min_width=90, elem_id="row")
                    self.column = gr.Number(
                        column, label="Column", precision=0, minimum=0, min_width=90, elem_id="column"
                    )
                    self.explain = gr.Button("Explain", elem_id="explain", min_width=90)
                self.top_classes = gr.Label(
                    top_classes, label="Best classes", num_top_classes=5, elem_id="top_classes"
                )
                self.margin = gr.HTML(margin, elem_id="margin")
            with gr.Column(scale=6, min_width=320):
                gr.Markdown("**Where the attention of its region was routed**")
                self.routing = gr.Image(
                    routing,
                    label="Routes",
                    show_label=False,
                    interactive=False,
                    format="png",
                    buttons=["fullscreen", "download"],
                    elem_id="routing",
                    alt_text="the picture with the regions that the pixel's region attends to",
                )

    def _connect(self) -> None:
        """Say which event calls what; events that run the model wait for each other."""
        model = {"concurrency_id": "model", "concurrency_limit": 1, "api_visibility": "private"}
        result = [self.visit, self.status, self.overlay, self.swatches, self.shown]
        explanation = [self.row, self.column, self.top_classes, self.margin, self.routing]
        settings = [self.visit, self.labels, self.threshold]
        all_settings = [*settings, self.negative]
        # Without preprocessing, the upload comes as the path of a file that nobody has opened yet.
        self.picture.input(
            self.on_picture,
            [*settings, self.picture, self.negative],
            [*result, *explanation, self.picture],
            preprocess=False,
            **model,
        )
        submitted = [self.run.click, self.labels.submit, self.negative.submit]
        gr.on(submitted, self.on_settings, all_settings, [*result, *explanation], **model)
        self.threshold.input(  # while it is dragged, and from the keyboard; values that were passed over are left out
            self.on_settings,
            all_settings,
            [*result, *explanation],
            trigger_mode="always_last",
            show_progress="hidden",
            **model,
        )
        self.shown.input(
            self.on_shown, [self.visit, self.shown], [self.visit, self.overlay], show_progress="hidden", **model
        )
        self.overlay.select(self.on_click, self.visit, [self.visit, self.status, *explanation], **model)
        gr.on(
            [self.explain.click, self.row.submit, self.column.submit],
            self.on_point,
            [self.visit, self.row, self.column],
            [self.visit, self.status, *explanation],
            **model,
        )
        self.download.click(self.on_download, self.visit, [self.status, self.masks_file], **model).success(
            None, js=CLICK_HIDDEN_DOWNLOAD
        )
        gr.api(self.on_api, api_name="segment", concurrency_id="model", concurrency_limit=1)

    # ---- handlers

    def on_picture(
        self,
        visit: Visit | None,
        label_text: str,
        threshold: float,
        upload: Mapping | None,
        negative_text: str | None = None,
    ) -> list:
        """Take a new picture."""
        visit, started = visit or self.first_visit, time.perf_counter()
        if upload is None:  # the box was emptied; the result stays until there is another picture
            return [Visit(None, visit.answer), *[gr.skip()] * 10]
        try:
            scene = self.segmenter.encode(self.uploaded_file(upload))
        except ValueError as error:
            picture = visit.scene.preview if visit.scene else None
            return [*self.refuse(visit, error, 8), picture]
        return [
            *self.on_settings(Visit(scene, visit.answer), label_text, threshold, negative_text, started),
            gr.skip(),
        ]

    def uploaded_file(self, upload: Mapping) -> Path:
        """Return the file of an upload: what the browser names might be any file of this machine.

        Raises:
            ValueError: If it was not uploaded to this page.
        """
        path = Path(str(upload.get("path"))).resolve()
        if not path.is_relative_to(Path(self.picture.GRADIO_CACHE).resolve()):
            raise ValueError("the file was not uploaded to this page; choose it again.")
        return path

    def on_settings(
        self,
        visit: Visit | None,
        label_text: str,
        threshold: float,
        negative_text: str | None = None,
        started: float | None = None,
    ) -> list:
        """Segment the picture with the names and the threshold on the page."""
        visit, encoding = visit or self.first_visit, "kept" if started is None else "made"
        started = started or time.perf_counter()
        try:
            visit = replace(visit, answer=self.segmenter.segment(visit, label_text, threshold, negative_text))
        except ValueError as error:
            return self.refuse(visit, error, 8)
        status, *result = self.show_result(visit)
        seconds = time.perf_counter() - started
        status = f"{status}, {seconds:.2f} s, encoding of the picture {encoding}"
        return [visit, say(status), *result[:2], gr.CheckboxGroup(**result[2]), *self.show_explanation(visit)]

    def on_shown(self, visit: Visit | None, shown: Sequence[str]) -> list:
        """Show and hide classes."""
        visit = visit or self.first_visit
        if visit.answer is None:
            return [visit, gr.skip()]
        preview = visit.answer.scene.preview
        label_map = self.segmenter.label_map(visit.answer, (preview.height, preview.width))
        names = self.segmenter.listed_names(visit.answer, label_map)
        # a class that this answer does not have keeps its state for a later one
        hidden = (visit.answer.hidden - set(names)) | (set(names) - set(shown))
        visit = replace(visit, answer=replace(visit.answer, hidden=frozenset(hidden)))
        return [visit, self.show_result(visit)[1]]

    def on_click(self, visit: Visit | None, event: gr.SelectData) -> list:
        """Explain the pixel of the overlay that was clicked."""
        visit = visit or self.first_visit
        if visit.answer is None:
            return self.refuse(visit, ValueError(NO_ANSWER), 5)
        preview = visit.answer.scene.preview
        column, row = (min(max(int(at), 0), side - 1) for at, side in zip(event.index, preview.size, strict=True))
        visit = replace(visit, answer=replace(visit.answer, point=(row, column)))
        return [visit, gr.skip(), *self.show_explanation(visit)]

    def on_point(self, visit: Visit | None, row: float | None, column: float | None) -> list:
        """Explain a pixel given by numbers, so that the page works without a mouse."""
        visit = visit or self.first_visit
        try:
            visit = replace(visit, answer=self.segmenter.point_at(visit.answer, row, column))
        except ValueError as error:
            return self.refuse(visit, error, 5)
        return [visit, gr.skip(), *self.show_explanation(visit)]

    def on_download(self, visit: Visit | None, request: gr.Request) -> list:
        """Write the masks to a file, one per visitor, the last only."""
        visit = visit or self.first_visit
        if visit.answer is None:
            return [self.refuse(visit, ValueError(NO_ANSWER), 0)[1], None]
        # The browser chooses the name of its session: no part of a path may come from it.
        visitor = hashlib.sha256(str(request.session_hash).encode()).hexdigest()
        folder = self.downloads / visitor
        folder.mkdir(parents=True, exist_ok=True)
        self.segmenter.write_masks(visit.answer, folder / "ldvc_masks.zip")
        return [say("Masks written."), str(folder / "ldvc_masks.zip")]

    def on_api(
        self, picture: dict[str, Any], labels: str, threshold: float = 0.0, negative: str = ""
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Segment a picture for a program; nothing of the call is kept but the file of the result, for a while.

        Args:
            picture: What an upload gives, as `handle_file` of gradio_client makes it.
            labels: As in the box of the page.
            threshold: Probability below which a pixel is "other", 0 to 1; 0 is none.
            negative: Names that compete and come back as "other"; may be empty.

        Returns:
            A file, the label map as grey PNG of the picture's own size; and what its ids mean.

        Raises:
            Error: If the picture or the names are not good.
        """
        if not 0 <= threshold <= 1:
            raise gr.Error(f"the threshold is {threshold}; use 0 to 1.", print_exception=False)
        try:
            scene = self.segmenter.encode(self.uploaded_file(picture))
            answer = self.segmenter.segment(Visit(scene), labels, threshold, negative)
        except ValueError as error:
            raise gr.Error(one_line(error), print_exception=False) from error
        folder = self.downloads / secrets.token_hex(16)
        folder.mkdir(parents=True)
        with (folder / "label_map.png").open("wb") as file:
            write_grey(file, self.segmenter.label_map(answer, scene.picture_size), len(answer.names))
        place = {"path": str(folder / "label_map.png"), "meta": {"_type": "gradio.FileData"}}
        return place, describe_names(answer.names, words=answer.classes, threshold=answer.threshold or None)

    # ---- what handlers show

    def show_result(self, visit: Visit) -> list:
        """Return status, overlay, style of the swatches, and choices of the classes."""
        answer = visit.answer
        if answer is None:
            return ["", None, "", {"choices": [], "value": []}]
        preview = answer.scene.preview
        label_map = self.segmenter.label_map(answer, (preview.height, preview.width))
        shares = np.bincount(label_map.ravel(), minlength=len(answer.names)) / label_map.size
        unseen = set(self.segmenter.unseen_names(answer))
        listed = self.segmenter.listed_names(answer, label_map)
        listed_set = set(listed)
        choices = [
            (f"{name}{' ★' if name in unseen else ''} · {share:.0%}", name)
            for name, share in zip(answer.names, shares, strict=True)
            if name in listed_set
        ]
        height, width = answer.scene.picture_size
        status = f"{len(answer.classes)} classes on {width} x {height} pixels"
        shown = {"choices": choices, "value": [name for name in listed if name not in answer.hidden]}
        return [status, self.segmenter.draw(answer, label_map), style_swatches(listed), shown]

    def show_explanation(self, visit: Visit) -> list:
        """Return row, column, classes, margin and picture of the chosen pixel."""
        if visit.answer is None:
            return [0, 0, None, "", None]
        explanation = self.segmenter.explain(visit.answer)
        row, column = self.segmenter.picture_point(visit.answer)
        best = explanation.top_classes
        note = "There is one class only."
        if explanation.margin is not None:
            note = (
                f"<b>{html.escape(best[0].name)}</b> leads by {explanation.margin:.2f} before "
                f"{html.escape(best[1].name)}. Each class has a probability of its own; they do not sum to 1."
            )
        try:
            routing = draw_routing(visit.answer.scene.preview, explanation)
        except ValueError as error:
            routing, note = None, f"{note} {html.escape(str(error))}"
        return [row, column, dict(best), f"<p>{note}</p>", routing]

    def refuse(self, visit: Visit, error: ValueError, num_others: int) -> list:
        """Tell the visitor what is wrong; the other components stay as they are."""
        message = one_line(error)
        message = message[:1].upper() + message[1:]
        gr.Warning(html.escape(message))
        return [visit, say(message, "problem"), *[gr.skip()] * num_others]


def say(text: str, kind: str = "note") -> str:
    """Make a line for the status, read out by screen readers."""
    return f"<p role='status' class='{kind}'>{html.escape(text)}</p>"


def style_swatches(names: Sequence[str]) -> str:
    """Make the style that gives the check box of each class its colour."""
    rules = [
        f"#classes label:nth-of-type({position}) > span::before {{ background: rgb{tuple(color)}; }}"
        for position, color in enumerate(class_colors(names).tolist(), start=1)
    ]
    return f"<style>{' '.join(rules)}</style>"
