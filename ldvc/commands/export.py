"""`ldvc export` and `ldvc explain`."""

from collections.abc import Sequence
from pathlib import Path

from ldvc.commands import end_in_one_line, make_parser
from ldvc.places import EMBEDDED_CHECKPOINT


EXPORT = """\
Programs without this code, ONNX and torch.export: pixels and class embeddings to logits, names to embeddings.

    ldvc export CHECKPOINT --output FOLDER            ONNX, with the processor and the vocabulary beside it
    ldvc export CHECKPOINT --output FOLDER --int8     weights of the picture program in 8 bits
    ldvc export CLIP --method naclip --output FOLDER  a CLIP without training; a CLIPSeg needs no method
    ldvc export CHECKPOINT --output FOLDER --format torch

Class embeddings are an input of the picture program, so one serves every vocabulary. They come from the text program,
which has LDVC's text prompts in it; those of the checkpoint's own names are written beside the programs. A baked
vocabulary and --format torch have no text program. Numbers of pictures and classes are free; in 8 bits and of a
CLIPSeg a call takes one picture. Height and width must be multiples of whole patches and whole regions:
`ldvc_export.json` says of how many pixels, and `ldvc.load(FOLDER)`, which runs the programs, checks it. ONNX Runtime
alone would cut other pictures without a word.
"""

EXPLAIN = """\
Why a pixel got its class: probabilities, the regions its attention was routed to, its attention over the classes.

Usage: `ldvc explain assets/demo_page.jpg --labels "cat, grass, sky" --point 400 340 --output routing.png`

Everything shown is read from the outputs of one forward pass over the whole picture; nothing is estimated.
"""


def export(argv: Sequence[str] | None = None) -> int:
    """Run `ldvc export`; returns the exit code."""
    parser = make_parser("export", EXPORT)
    parser.add_argument("checkpoint", help="folder or Hub id of an LDVC, CLIP or CLIPSeg")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    parser.add_argument("--format", choices=("onnx", "torch"), default="onnx")
    parser.add_argument("--method", help="of a CLIP without training, such as naclip")
    parser.add_argument("--setting", nargs="*", metavar="NAME=VALUE", help="settings of the model to change")
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
