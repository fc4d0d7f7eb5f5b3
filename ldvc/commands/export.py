"""`ldvc export` and `ldvc explain`."""

from collections.abc import Sequence
from pathlib import Path

from ldvc.commands import end_in_one_line, make_parser
from ldvc.places import EMBEDDED_CHECKPOINT


EXPORT = """\
Programs without this code: ONNX and torch.export, from pixels and class embeddings to logits.

    ldvc export CHECKPOINT --output FOLDER            ONNX, with the processor and the vocabulary beside it
    ldvc export CHECKPOINT --output FOLDER --int8     weights in 8 bits
    ldvc export CHECKPOINT --output FOLDER --format torch

The text tower stays behind: class embeddings are an input, so one program serves every vocabulary; they come from
`model.encode_vocabulary`, and those of the checkpoint's own names are written beside the program. Numbers of images
and classes are free. Height and width must be multiples of `size_multiple(config)`, whole patches and whole regions;
the folder says so in `ldvc_export.json`, and `ExportedLDVC`, which runs the program, checks it. ONNX Runtime alone
would cut other pictures without a word.
"""

EXPLAIN = """\
Why a pixel got its class: probabilities, the regions its attention was routed to, its attention over the classes.

Usage: `ldvc explain assets/demo_page.jpg --labels "cat, grass, sky" --point 400 340 --output routing.png`

Everything shown is read from the outputs of one forward pass over the whole picture; nothing is estimated.
"""


def export(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc export`; returns the exit code."""
    parser = make_parser("export", EXPORT)
    parser.add_argument("checkpoint", help="folder or Hub id")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx")
    parser.add_argument("--int8", action="store_true", help="weights in 8 bits (ONNX only)")
    parser.add_argument("--check", type=Path, nargs="*", default=[], help="pictures to compare program and model on")
    arguments = parser.parse_args(argv)
    if arguments.int8 and arguments.format != "onnx":
        parser.error("--int8 quantises ONNX programs; leave --format torch out.")

    def work() -> None:
        from ldvc.export import export_checkpoint

        export_checkpoint(arguments)

    return end_in_one_line("export", work)


def explain(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc explain`; returns the exit code."""
    parser = make_parser("explain", EXPLAIN)
    parser.add_argument("image", help="picture file")
    parser.add_argument("--model", default=EMBEDDED_CHECKPOINT, help="checkpoint folder (default: the embedded one)")
    parser.add_argument("--labels", help='class names, such as "cat, sofa|couch, grass" (default: the checkpoint\'s)')
    parser.add_argument(
        "--point", type=int, nargs=2, metavar=("ROW", "COLUMN"), required=True, help="the pixel, from 0"
    )
    parser.add_argument("--output", type=Path, help="PNG file for the routes of each decoder layer")
    parser.add_argument("--cross_attention", type=Path, help="PNG file for the last layer's heat map of each class")
    arguments = parser.parse_args(argv)

    def work() -> None:
        from ldvc.app.explain import explain_picture

        explain_picture(arguments)

    return end_in_one_line("explain", work)
