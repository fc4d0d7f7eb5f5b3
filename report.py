"""Render the result tables of README and model cards from the files in results/.

    python report.py            write the tables between the markers of each document
    python report.py --check    fail if a document does not show what results/ holds

A document names a table by a pair of comments, `<!-- table: NAME -->` and `<!-- end -->`; what stands between them is
never written by hand.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np


ROOT = Path(__file__).resolve().parent
DOCUMENTS = ("README.md", "picturebook/README.md", "model_cards/ldvc-picturebook.md")
MARKER = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
Scores = Mapping[str, Any]


def load_runs(name: str) -> list[dict[str, Any]]:
    """Results of one recipe over seeds, `results/picturebook/NAME_seed*.json`.

    Raises:
        FileNotFoundError: If there is none.
    """
    paths = sorted((ROOT / "results" / "picturebook").glob(f"{name}_seed*.json"))
    if not paths:
        raise FileNotFoundError(f"no results/picturebook/{name}_seed*.json; run `make record` first.")
    return [json.loads(path.read_text()) for path in paths]


def load_oracle() -> Scores:
    """Scores of perfect tokens, from `python -m picturebook.oracle`."""
    return json.loads((ROOT / "results" / "picturebook_oracle.json").read_text())["scores"]


def spread(values: Sequence[float | None], factor: float = 100.0, digits: int = 1) -> str:
    """Mean and standard deviation over seeds, in percent; one run has no deviation."""
    numbers = np.array([value for value in values if value is not None], dtype=float) * factor
    if not len(numbers):
        return "-"
    mean = f"{numbers.mean():.{digits}f}"
    return mean if len(numbers) == 1 else f"{mean} ± {numbers.std(ddof=1):.{digits}f}"


def score_row(title: str, tables: Sequence[Scores]) -> str:
    """One row of the Picturebook table: the same scores of several seeds."""
    main = [[table[key] for table in tables] for key in ("pixel_accuracy", "miou_seen", "miou_unseen", "hiou")]
    groups = [
        [table["groups"][key] for table in tables]
        for key in ("things_seen", "things_unseen", "stuff_seen", "stuff_unseen")
    ]
    fragments = [table["fragmentation"]["components_per_class_and_image"] for table in tables]
    cells = [title, *map(spread, main + groups), spread(fragments, 1.0, 2)]
    return "| " + " | ".join(cells) + " |"


def picturebook_scores() -> str:
    """LDVC, the class-query decoder and the controls on held-out scenes, mean and spread over seeds."""
    ldvc, class_query = load_runs("ldvc"), load_runs("class_query")
    reference = [run["scores"]["0.0"]["fragmentation"]["reference_components_per_class_and_image"] for run in ldvc]
    heads = "| | pAcc | mIoU(S) | mIoU(U) | hIoU | things S | things U | stuff S | stuff U | fragments |"
    rows = [
        score_row("**LDVC**", [run["scores"]["0.0"] for run in ldvc]),
        score_row("LDVC, 0.1 off seen scores", [run["scores"]["0.1"] for run in ldvc]),
        score_row("LDVC, unseen names permuted", [run["controls"]["permuted_unseen_names"] for run in ldvc]),
        score_row("class-query decoder", [run["scores"]["0.0"] for run in class_query]),
        score_row("class-query decoder, 0.1 off", [run["scores"]["0.1"] for run in class_query]),
        score_row("CLIP without training", [ldvc[0]["controls"]["training_free_clip"]]),
        score_row("oracle: perfect 16 x 16 tokens", [load_oracle()]),
    ]
    note = (
        f"{len(ldvc)} seeds, {ldvc[0]['num_images']} held-out scenes, {ldvc[0]['recipe']['max_steps']} steps; "
        f"trained in {spread([run['training_seconds'] for run in ldvc], 1.0, 0)} s on two shared CPU cores; "
        f"{ldvc[0]['trainable_parameters'] / 1e6:.2f} M trained parameters. Fragments: connected components per "
        f"predicted class and image (labels: {reference[0]:.2f})."
    )
    return "\n".join([heads, "|" + "---|" * 10, *rows, "", note])


def picturebook_clip() -> str:
    """The tiny CLIP's zero-shot accuracy, from its own record."""
    record = json.loads((ROOT / "results" / "picturebook_clip.json").read_text())
    figures = {name: value for name, value in record["scores"].items() if isinstance(value, float)}
    rows = [f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in figures.items()]
    return "\n".join(["| figure | value |", "|---|---|", *rows])


TABLES: dict[str, Callable[[], str]] = {
    "picturebook_scores": picturebook_scores,
    "picturebook_clip": picturebook_clip,
}


def render(text: str) -> str:
    """Replace what stands between the markers of a document."""
    return MARKER.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[4]}", text)


def main(argv: Sequence[str] | None = None) -> int:
    """Write or check the documents."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a document is out of date")
    check = parser.parse_args(argv).check
    stale = []
    for name in DOCUMENTS:
        path = ROOT / name
        old = path.read_text()
        new = render(old)
        if new != old:
            stale.append(name)
            if not check:
                path.write_text(new)
    if check and stale:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run `python report.py`.\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
