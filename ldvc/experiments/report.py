"""Tables of README, cards and docs, rendered from the files in results/: `ldvc report`.

A document names a table by a pair of comments, `<!-- table: NAME -->` and `<!-- end -->`; what stands between them is
never written by hand.
"""

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from benchmarks import plot, tables
from ldvc.data.vocabularies import SETTINGS
from ldvc.experiments.ablations import Collected, Experiments, Finding, collect, read_list, weigh_claims
from ldvc.experiments.cards import read_cards, render_card
from ldvc.experiments.figures import draw_decoder_swap, draw_few_seen
from ldvc.experiments.ledger import REPORTED, Spread, published_table, score_spread
from ldvc.experiments.tables import UNLESS_NAMED, ablation_tables, left_out_notes
from ldvc.places import ROOT


RECORD = ROOT / "recipes" / "ablations" / "picturebook_record.yaml"
ABLATIONS = ROOT / "recipes" / "ablations" / "picturebook.yaml"
TUNING = ROOT / "recipes" / "ablations" / "picturebook_tuning.yaml"
FEW_SEEN = ROOT / "recipes" / "ablations" / "picturebook_few_seen.yaml"
LARGE_PAGES = ROOT / "recipes" / "ablations" / "picturebook_256.yaml"
TRAINING_FREE = ROOT / "results" / "picturebook_training_free.json"
CALIBRATION = ROOT / "results" / "picturebook_calibration.json"
FIGURE = ROOT / "assets" / "decoder_swap.png"
FEW_SEEN_FIGURE = ROOT / "assets" / "few_seen.png"
SPEED_FIGURE = ROOT / "assets" / "speed.png"
CARDS = ROOT / "model_cards"
DOCUMENTS = (
    *("README.md", "picturebook/README.md", "docs/experiments.md", "docs/speed.md", "docs/segmenters.md"),
    "docs/training_free.md",
    "model_cards/ldvc-picturebook.md",
)
MARKER = re.compile(r"(<!-- table: (\w+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)
GROUPS = ("things_seen", "things_unseen", "stuff_seen", "stuff_unseen")
# A number with one decimal on a line that speaks of scores; prose must not state them, tables are rendered.
SCORE_WORDS = re.compile(r"[mh]?IoU|pAcc|accuracy|per ?cent|%")
SCORE_NUMBER = re.compile(r"(?<![\w.])\d{1,3}\.\d(?![\w.]|\d)")
SHORT_GROUPS = ("reference", "a2", "b", "c", "d", "e", "k")  # what the README has room for
SWAP_GROUP = "a2"  # of the list: LDVC and the class-query decoders, at full length
SCORE_TITLES = {
    "pixel_accuracy": "pAcc",
    "miou_seen": "mIoU(S)",
    "miou_unseen": "mIoU(U)",
    "hiou": "hIoU",
    "fragments": "fragments",
    "fall_of_unseen": "mIoU(U) lost since its best",
}
Scores = Mapping[str, Any]


# ---- Picturebook


def score_row(title: str, tables: Sequence[Scores]) -> str:
    """One row of the Picturebook table: the same scores of several seeds."""
    main = [[table[key] for table in tables] for key in REPORTED]
    groups = [[table["groups"][key] for table in tables] for key in GROUPS]
    fragments = [table["fragmentation"]["components_per_class_and_image"] for table in tables]
    cells = [title, *(Spread(values).format() for values in main + groups), Spread(fragments).format(1.0, 2)]
    cells.append(str(len(tables)))
    return "| " + " | ".join(cells) + " |"


def picturebook_scores() -> str:
    """LDVC, the class-query decoder and the controls on held-out scenes, mean and spread over seeds."""
    experiments = read_list(RECORD)
    collected = collect(experiments)
    ldvc, class_query, tokens = (collected.results.get(name, []) for name in ("ldvc", "class_query", "floor_tokens"))
    left_out = left_out_notes(experiments, collected)
    if not ldvc:
        return "\n\n".join(["Not run yet: `make record`.", *left_out])
    rows = [
        score_row("**LDVC**", [run["scores"]["0.0"] for run in ldvc]),
        score_row("LDVC, 0.1 off seen scores", [run["scores"]["0.1"] for run in ldvc]),
    ]
    for offset in sorted({*ldvc[0]["scores"]} - {"0.0", "0.1"}):
        title = f"LDVC, {offset} off, chosen without unseen masks"
        rows.append(score_row(title, [run["scores"][offset] for run in ldvc]))
    controls = [run["controls"] for run in ldvc if run.get("controls")]
    if controls:
        permuted = [control["permuted_unseen_names"] for control in controls]
        rows.append(score_row("LDVC, unseen names permuted", permuted))
    if class_query:
        rows.append(
            score_row("class-query decoder, ZegCLIP's rule of masks", [run["scores"]["0.0"] for run in class_query])
        )
        rows.append(score_row("the same, 0.1 off", [run["scores"]["0.1"] for run in class_query]))
    if controls:
        value = controls[0]["training_free_clip"]  # no seed changes CLIP or the pages that are scored
        rows.append(score_row("CLIP without training, value path", [value]))
    if tokens:
        rows.append(score_row("CLIP without training, plain tokens", [tokens[0]["scores"]["0.0"]]))
    if TRAINING_FREE.is_file():
        found = json.loads(TRAINING_FREE.read_text())["rows"].values()
        best = max(found, key=lambda row: row["tuning_hiou"])
        rows.append(score_row(f"CLIP without training, {best['title']}", [best["smoothing"]["none"]["scores"]]))
    oracle = ROOT / "results" / "picturebook_oracle.json"
    if oracle.is_file():
        rows.append(score_row("oracle: perfect 16 x 16 tokens", [json.loads(oracle.read_text())["scores"]]))
    reference = ldvc[0]["scores"]["0.0"]["fragmentation"]["reference_components_per_class_and_image"]
    seconds = [run["training_seconds"] for run in ldvc]
    note = (
        f"{describe_runs(ldvc)}; a training took {min(seconds):.0f} to {max(seconds):.0f} s (two CPU cores, some with "
        f"other work beside, PyTorch {ldvc[0]['versions']['torch']}); "
        f"{ldvc[0]['trainable_parameters'] / 1e6:.2f} M trained "
        f"parameters. Fragments: connected components per predicted class and image (labels: {reference:.2f})."
    )
    heads = "| | pAcc | mIoU(S) | mIoU(U) | hIoU | things S | things U | stuff S | stuff U | fragments | seeds |"
    note += calibration_note() + decided_claims(experiments, collected)
    return "\n".join([heads, "|" + "---|" * 11, *rows, "", "\n\n".join([note, *left_out])])


def calibration_note() -> str:
    """What `ldvc calibrate` chose to take off seen scores; empty where it has not run."""
    if not CALIBRATION.is_file():
        return ""
    found = json.loads(CALIBRATION.read_text())
    by_offset = dict(zip(found["offsets"], found["mean_hiou"], strict=True))
    held_out = ", ".join(f"{100 * by_offset[offset]:.1f} with {offset} off" for offset in (0.0, 0.1))
    return (
        f" `ldvc calibrate` takes {found['seen_score_offset']} off, chosen without unseen masks: hIoU of seen classes "
        f"held out in {len(found['parts'])} parts: {held_out}."
    )


def decided_claims(experiments: Experiments, collected: Collected) -> str:
    """Sentences on the claims whose interval leaves zero out; of the others, nothing is said in words."""
    sentences = []
    findings, calibrated = (weigh_claims(experiments, collected, offset) for offset in ("0.0", "0.1"))
    for finding, other in zip(findings, calibrated, strict=True):
        if finding.verdict in ("confirmed", "contradicted"):
            plain, lowered = (format_difference(side, 100.0, 1) for side in (finding, other))
            sentences.append(
                f" {finding.claim.claim}: {finding.verdict} over {len(finding.seeds)} pairs of seeds, "
                f"{SCORE_TITLES[finding.claim.score]} {plain}, with 0.1 off {lowered} (95 % interval)."
            )
    return "".join(sentences)


def describe_runs(runs: Sequence[Mapping[str, Any]]) -> str:
    """Seeds, scenes and steps of a row's results."""
    seeds = f"{len(runs)} seed{'s' if len(runs) > 1 else ''}"
    return f"{seeds}, {runs[0]['num_images']} held-out scenes, {runs[0]['recipe']['max_steps']} steps"


def picturebook_clip() -> str:
    """The tiny CLIP's zero-shot accuracy, from its own record."""
    record = json.loads((ROOT / "results" / "picturebook_clip.json").read_text())
    figures = {name: value for name, value in record["scores"].items() if isinstance(value, float)}
    rows = [f"| {name.replace('_', ' ')} | {value:.3f} |" for name, value in figures.items()]
    return "\n".join(["| figure | value |", "|---|---|", *rows])


# ---- CLIP without training


def picturebook_training_free() -> str:
    """Every training-free method on Picturebook, without smoothing and with, from one command's record."""
    if not TRAINING_FREE.is_file():
        return "Not run yet: `python -m picturebook.training_free`."
    record = json.loads(TRAINING_FREE.read_text())
    heads = ("method", "chosen on the tuning split", "hIoU, tuning", "pAcc", "mIoU(S)", "mIoU(U)", "hIoU", "fragments")
    smoothed = [f"hIoU, fragments: {name}" for name in ("PAMR", "propagation")]
    lines = [f"| {' | '.join([*heads, *smoothed])} |", "|" + "---|" * (len(heads) + len(smoothed))]
    for row in record["rows"].values():
        plain = row["smoothing"]["none"]["scores"]
        fragments = {
            name: found["scores"]["fragmentation"]["components_per_class_and_image"]
            for name, found in row["smoothing"].items()
        }
        chosen = {k: v for k, v in row["settings"].items() if len(row["tried"]) > 1}
        cells = [row["title"], describe_choice(chosen), f"{100 * row['tuning_hiou']:.1f}"]
        cells += [f"{100 * plain[key]:.1f}" for key in REPORTED] + [f"{fragments['none']:.2f}"]
        for name in ("pamr", "propagation"):
            cells.append(f"{100 * row['smoothing'][name]['scores']['hiou']:.1f}, {fragments[name]:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    reference = plain["fragmentation"]["reference_components_per_class_and_image"]
    note = (
        f"Percent; {record['num_images']} pages of the test split, settings chosen by hIoU on "
        f"{record['num_tuning_images']} pages of the tuning split ({record['num_smoothing_images']} for smoothing), "
        f"template {record['prompt_templates'][0]!r}, whole pages. Fragments: connected components per predicted "
        f"class and image (labels: {reference:.2f}). Code: {record['commit'][:7] + record['commit'][40:]}."
    )
    return "\n".join([*lines, "", note])


def describe_choice(settings: Mapping[str, Any]) -> str:
    """Settings as one would type them."""
    return f"`{', '.join(f'{name}={value!r}' for name, value in settings.items())}`" if settings else "-"


def published_training_free() -> str:
    """What others published for CLIP without training."""
    published = yaml.safe_load((ROOT / "results" / "published_training_free.yaml").read_text())
    heads = ["method", *published["benchmarks"], "source"]
    lines = [f"| {' | '.join(heads)} |", "|---|" + "---:|" * len(published["benchmarks"]) + "---|"]
    for row in published["rows"]:
        cells = ["-" if value is None else f"{value:.1f}" for value in row["miou"]]
        lines.append(f"| {row['row']} | {' | '.join(cells)} | {row['source']} |")
    sources = "; ".join(f"{letter}: {words}" for letter, words in published["sources"].items())
    return "\n".join([*lines, "", f"mIoU in percent, ViT-B/16 of OpenAI. {sources}."])


# ---- experiments


def picturebook_ablations() -> str:
    """Every experiment on the embedded world."""
    return ablation_tables(read_list(ABLATIONS))


def picturebook_ablations_short() -> str:
    """The main rows with the scores alone, for the README."""
    experiments = read_list(ABLATIONS)
    collected = collect(experiments)
    rows = [row for row in experiments.rows if row.group in SHORT_GROUPS and not row.training_free]
    lines = ["| | | mIoU(S) | mIoU(U) | hIoU | hIoU, 0.1 off |", "|---|---|---|---|---|---|"]
    for row in rows:
        results = collected.results.get(row.name)
        if results:
            cells = [score_spread(results, score).format() for score in ("miou_seen", "miou_unseen", "hiou")]
            cells.append(score_spread(results, "hiou", "0.1").format())
            letter = "" if row.group == "reference" else row.group
            lines.append(f"| {letter} | {row.title} | {' | '.join(cells)} |")
    trained = next((runs for runs in collected.results.values() if "recipe" in runs[0]), None)
    if trained:
        lines += ["", f"Percent, mean ± standard deviation; {describe_runs(trained)}{UNLESS_NAMED}."]
    num_missing = sum(row.name not in collected.results for row in rows)
    if num_missing:
        lines += ["", f"{num_missing} of these {len(rows)} rows have no results yet."]
    return "\n".join(lines)


def finding_row(finding: Finding, calibrated: Finding, titles: Mapping[str, str]) -> str:
    """One row of the table of findings: the claim, both rows, the difference without and with the offset."""
    claim = finding.claim
    factor, digits = (1.0, 2) if claim.score == "fragments" else (100.0, 1)
    sides = ([side[seed] for seed in finding.seeds] for side in (finding.row, finding.than))
    row, than = (Spread(side).format(factor, digits) for side in sides)
    differences = [format_difference(side, factor, digits) for side in (finding, calibrated)]
    return (
        f"| {claim.claim} ({claim.source}) | {SCORE_TITLES[claim.score]}: {titles[claim.row]} {row} against "
        f"{titles[claim.than]} {than} | {' | '.join(differences)} | **{finding.verdict}** |"
    )


def format_difference(finding: Finding, factor: float, digits: int) -> str:
    """Write "mean [low, high]" of the difference, "-" without an interval."""
    if finding.interval is None:
        return "-"
    mean, low, high = (f"{factor * value:+.{digits}f}" for value in (finding.differences.mean, *finding.interval))
    return f"{mean} [{low}, {high}]"


def findings_table(path: Path) -> str:
    """The claims of a list as the seeds decide them, and what that says in words."""
    experiments = read_list(path)
    collected = collect(experiments)
    findings, calibrated = (weigh_claims(experiments, collected, offset) for offset in ("0.0", "0.1"))
    titles = {row.name: row.title for row in experiments.rows}
    lines = ["| claim | figures | difference | 0.1 off | verdict |", "|---|---|---|---|---|"]
    pairs = zip(findings, calibrated, strict=True)
    lines += [finding_row(finding, other, titles) for finding, other in pairs if finding.verdict != "open"]
    return "\n".join([*lines, "", *summarise(findings, calibrated)])


def picturebook_findings() -> str:
    """The claims of the paper, and ours, on the embedded world."""
    return findings_table(ABLATIONS)


def picturebook_smoothing() -> str:
    """LDVC's scores without smoothing and with, from one command's record."""
    path = ROOT / "results" / "picturebook_smoothing.json"
    if not path.is_file():
        return "Not run yet: `python -m picturebook.smoothing`."
    record = json.loads(path.read_text())
    heads = ("smoothing", "chosen", "hIoU, tuning", "mIoU(S)", "mIoU(U)", "hIoU", "fragments", "seconds a page")
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    for name, chosen in record["chosen"].items():
        runs = [run["rows"][name] for run in record["runs"]]
        settings = {key: chosen[key] for key in ("dilations", "scale") if chosen[key] is not None}
        cells = [name, describe_choice(settings), f"{100 * chosen['tuning_hiou']:.1f}"]
        cells += [
            Spread([run["scores"][key] for run in runs]).format() for key in ("miou_seen", "miou_unseen", "hiou")
        ]
        fragments = [run["scores"]["fragmentation"]["components_per_class_and_image"] for run in runs]
        cells += [Spread(fragments).format(1.0, 2), Spread([run["seconds_per_page"] for run in runs]).format(1.0, 3)]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        f"Percent, mean ± standard deviation over the record's {len(record['runs'])} seeds, no offset; "
        f"{record['num_images']} pages of the test split, settings chosen on {record['num_tuning_images']} pages of "
        f"the tuning split. Code: {record['commit'][:7] + record['commit'][40:]}."
    )
    return "\n".join([*lines, "", note])


def few_seen_lines(experiments: Experiments, collected: Collected) -> dict[str, dict[float, list[Mapping[str, Any]]]]:
    """Rows of a list over shares of the seen classes: title without its share -> share -> results."""
    lines: dict[str, dict[float, list[Mapping[str, Any]]]] = {}
    for row in experiments.rows:
        if runs := collected.results.get(row.name):
            share = experiments.recipe_of(row, runs[0]["seed"]).seen_share
            lines.setdefault(row.title.rpartition(",")[0], {})[share] = runs
    return lines


def few_seen() -> str:
    """Table of scores by share of seen classes, below its figure once that is drawn."""
    table = ablation_tables(read_list(FEW_SEEN))
    if not FEW_SEEN_FIGURE.is_file():
        return table
    picture = f"../{FEW_SEEN_FIGURE.relative_to(ROOT).as_posix()}"
    words = (
        "*mIoU of the same unseen classes, and its harmonic mean with mIoU of the classes that trained, by their "
        "share; line: mean, band: standard deviation over seeds. Drawn by `ldvc report --figures`.*"
    )
    return f"![mIoU by share of seen classes]({picture})\n\n{words}\n\n{table}"


def summarise(findings: Sequence[Finding], calibrated: Sequence[Finding]) -> list[str]:
    """Say which claims hold here, which do not, and which are open; one line each."""
    lines = []
    for verdict in ("confirmed", "not confirmed", "contradicted", "open"):
        for source, whose in (("paper", "of the paper"), ("ours", "of ours")):
            claims = [f.claim.claim for f in findings if f.verdict == verdict and f.claim.source == source]
            state = "open, for want of runs" if verdict == "open" else verdict
            lines += [f"- {state.capitalize()}, {whose}: {'; '.join(claims)}."] if claims else []
    pairs = [(f, c) for f, c in zip(findings, calibrated, strict=True) if "open" not in (f.verdict, c.verdict)]
    turned = [f.claim.claim for f, c in pairs if {f.verdict, c.verdict} == {"confirmed", "contradicted"}]
    once = [f.claim.claim for f, c in pairs if f.verdict != c.verdict and "not confirmed" in (f.verdict, c.verdict)]
    lines += [f"- Turned round with 0.1 off seen scores: {'; '.join(turned)}."] if turned else []
    lines += [f"- Decided without the offset or with it, not both: {'; '.join(once)}."] if once else []
    return lines


def swap_rows(experiments: Experiments, collected: Collected) -> list[tuple[str, list[Mapping[str, Any]]]]:
    """Titles and results of rows with curves: LDVC and the class-query decoders."""
    curves = []
    for row in experiments.rows:
        runs = [run for run in collected.results.get(row.name, []) if len(run.get("curve", [])) > 1]
        if runs and row.group == SWAP_GROUP:
            curves.append((row.title, runs))
    return curves


def decoder_swap() -> str:
    """The figure of S and U over training, once there are curves to draw."""
    experiments = read_list(ABLATIONS)
    curves = swap_rows(experiments, collect(experiments))
    if not curves:
        return "Not run yet: `make experiments`."
    if not FIGURE.is_file():
        return "Not drawn yet: `ldvc report --figures`."
    titles = "; ".join(title for title, _ in curves)
    return (
        f"![mIoU of seen and unseen classes over training]({'../' + FIGURE.relative_to(ROOT).as_posix()})\n\n"
        f"*mIoU of seen and unseen classes over training; line: mean, band: standard deviation over seeds. {titles}. "
        "Drawn by `ldvc report --figures`.*"
    )


# ---- documents


def clipseg() -> str:
    """Seconds per picture of CLIPSeg and LDVC by label count."""
    path = ROOT / "results" / "benchmarks" / "clipseg.json"
    if not path.is_file():
        return "Not run yet: `python -m benchmarks clipseg`."
    result = json.loads(path.read_text())
    lines = [
        "| labels | CLIPSeg | LDVC | LDVC, class embeddings kept | CLIPSeg / LDVC |",
        "|---:|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        seconds = {name: figure["median"] for name, figure in row["seconds"].items()}
        times = " | ".join(f"{seconds[name]:.2f} s" for name in ("clipseg", "ldvc", "ldvc_kept_embeds"))
        lines.append(f"| {row['labels']} | {times} | {seconds['clipseg'] / seconds['ldvc']:.1f} |")
    machine = result["machine"]
    note = (
        f"One picture of {result['image_size']} x {result['image_size']} pixels, ViT-B/16, {result['dtype']}, "
        f"{machine['threads']} CPU thread(s), PyTorch {machine['torch']}; medians, the models take turns."
    )
    return "\n".join([*lines, "", note])


def segmenters() -> str:
    """Seconds and memory per picture of every kind of segmenter by label count."""
    path = ROOT / "results" / "benchmarks" / "segmenters.json"
    if not path.is_file():
        return "Not run yet: `python -m benchmarks segmenters`."
    result = json.loads(path.read_text())
    heads = {"training_free": "CLIP without training", "clipseg": "CLIPSeg", "ldvc": "LDVC"}
    heads["library"] = "the library's CLIPSeg"
    lines = [f"| labels | {' | '.join(heads.values())} |", "|---:|" + "---:|" * len(heads)]
    for row in result["rows"]:
        cells = (f"{row['seconds'][name]['median']:.2f} s, {row['peak_bytes'][name] / 1e6:,.0f} MB" for name in heads)
        lines.append(f"| {row['labels']} | {' | '.join(cells)} |")
    machine = result["machine"]
    note = (
        f"One picture of {result['image_size']} x {result['image_size']} pixels, ViT-B/16, random weights of the "
        f"published sizes, class embeddings kept, {result['dtype']}, {machine['threads']} CPU thread(s), PyTorch "
        f"{machine['torch']}; medians, the models take turns; peak memory beside the weights."
    )
    return "\n".join([*lines, "", note])


def speed_scaling() -> str:
    """The scaling laws, with their plot once it is drawn."""
    is_drawn = SPEED_FIGURE.is_file()
    return tables.scaling(f"../{SPEED_FIGURE.relative_to(ROOT).as_posix()}" if is_drawn else None)


TABLES: dict[str, Callable[[], str]] = {
    "picturebook_scores": picturebook_scores,
    "picturebook_clip": picturebook_clip,
    "picturebook_training_free": picturebook_training_free,
    "published_training_free": published_training_free,
    "picturebook_ablations": picturebook_ablations,
    "picturebook_ablations_short": picturebook_ablations_short,
    "picturebook_findings": picturebook_findings,
    "picturebook_tuning": lambda: ablation_tables(read_list(TUNING)),
    "picturebook_smoothing": picturebook_smoothing,
    "few_seen": few_seen,
    "few_seen_findings": lambda: findings_table(FEW_SEEN),
    "large_pages": lambda: ablation_tables(read_list(LARGE_PAGES)),
    "large_pages_findings": lambda: findings_table(LARGE_PAGES),
    "decoder_swap": decoder_swap,
    "clipseg": clipseg,
    "segmenters": segmenters,
    "speed": tables.goals,
    "speed_machines": tables.machines,
    "speed_details": tables.details,
    "speed_operations": tables.operations,
    "speed_latency": tables.latency,
    "speed_scaling": speed_scaling,
    "speed_memory": tables.memory_plan,
    "speed_onnx": tables.onnx,
    "speed_gpu": tables.gpu,
    "speed_runtimes": tables.runtimes,
    **{f"published_{setting}": partial(published_table, setting) for setting in SETTINGS},
}


def render(text: str) -> str:
    """Replace what stands between the markers of a document."""
    return MARKER.sub(lambda match: f"{match[1]}{TABLES[match[2]]()}\n{match[4]}", text)


def unsourced_scores(text: str) -> list[str]:
    """Lines that state a score outside a rendered table; front matter, code and links are left aside."""
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)
    text = MARKER.sub("", text)
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    text = re.sub(r"`[^`\n]*`|\]\([^)]*\)", "", text)
    return [line for line in text.splitlines() if SCORE_WORDS.search(line) and SCORE_NUMBER.search(line)]


def documents() -> dict[Path, str]:
    """Every rendered document as it should be: path -> text."""
    wanted = {ROOT / name: (ROOT / name).read_text() for name in DOCUMENTS}
    wanted |= {CARDS / f"{card.name}.md": render_card(card) for card in read_cards()}
    return {path: render(text) for path, text in wanted.items()}


def draw_figures() -> None:
    """Draw what there are results for, and name what there are none for."""
    experiments = read_list(ABLATIONS)
    curves = swap_rows(experiments, collect(experiments))
    if curves:
        draw_decoder_swap(curves, FIGURE)
    else:
        sys.stderr.write("no figure: no row of the list has a curve of scores yet; run `make experiments`.\n")
    few = read_list(FEW_SEEN)
    if lines := few_seen_lines(few, collect(few)):
        draw_few_seen(lines, FEW_SEEN_FIGURE)
    else:
        sys.stderr.write(f"no figure of few seen classes: run `ldvc experiments {FEW_SEEN.relative_to(ROOT)}`.\n")
    if not plot.draw_scaling(SPEED_FIGURE):
        sys.stderr.write("no figure of scaling laws: run `python -m benchmarks scaling`.\n")


def write_documents(is_check: bool = False, with_figures: bool = False) -> int:
    """Write or check the documents; returns the exit code.

    Args:
        is_check: Change nothing; a document that is out of date gives 1.
        with_figures: Draw the figures anew.

    Raises:
        ValueError: If a result cannot be used.
    """
    try:
        return _write_documents(is_check, with_figures)
    except KeyError as error:  # of a field that one table needs, and not every result
        raise ValueError(f"a result lacks the field {error}; run the row again with this version.") from error


def _write_documents(is_check: bool, with_figures: bool) -> int:
    if with_figures:
        draw_figures()
    stale, unsourced = [], []
    for path, text in documents().items():
        name = path.relative_to(ROOT).as_posix()
        unsourced += [f"{name}: {line}" for line in unsourced_scores(text)]
        if not path.is_file() or path.read_text() != text:
            stale.append(name)
            if not is_check:
                path.write_text(text)
    if unsourced:
        sys.stderr.write("scores outside a rendered table:\n" + "\n".join(unsourced) + "\n")
    if is_check and stale:
        sys.stderr.write(f"out of date: {', '.join(stale)}; run `ldvc report`.\n")
    return 1 if unsourced or (is_check and stale) else 0
