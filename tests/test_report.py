"""The ledger's checks, and everything that is rendered from it: tables, figure, published figures, cards."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from result_files import NAMES, make_recipe, make_result, make_table, write

from ldvc.commands import experiments as commands
from ldvc.experiments import ablations, report
from ldvc.experiments import cards as cards_module
from ldvc.experiments.ablations import collect, read_list
from ldvc.experiments.cards import CardError, check_card, make_card, read_cards, read_words, render_card
from ldvc.experiments.figures import SWAP_COLORS, draw_decoder_swap, draw_few_seen
from ldvc.experiments.ledger import (
    SETTINGS,
    LedgerError,
    PublishedError,
    load_published,
    load_result,
    load_results,
    published_table,
)


ROOT = Path(__file__).resolve().parents[1]
ORACLE_AND_RECORD = ("picturebook_oracle", "picturebook/ldvc_seed0")


# ---- result files


def test_every_committed_result_is_whole():
    for folder in (path for path in (ROOT / "results").iterdir() if path.is_dir() and path.name != "benchmarks"):
        for name in {re.sub(r"_seed\d+$", "", path.stem) for path in folder.glob("*_seed*.json")}:
            assert load_results(folder, name)


def test_no_result_names_a_path_of_the_machine_that_made_it():
    files = [*(ROOT / "results").rglob("*.json"), ROOT / "picturebook" / "ldvc" / "recipe.yaml"]
    for path in files:
        assert not re.search(r"[\"' ]/(home|root|tmp|work|Users)/", path.read_text()), path


def test_the_oracle_was_scored_on_the_pages_of_the_record():
    oracle, record = (json.loads((ROOT / "results" / f"{name}.json").read_text()) for name in ORACLE_AND_RECORD)
    assert oracle["commit"]
    for field in ("num_images", "dataset_fingerprint"):
        assert oracle[field] == record[field], field


@pytest.mark.parametrize(
    "field",
    ["num_images", "scores", "commit", "config_sha256", "dataset_fingerprint", "versions", "seed", "training_seconds"],
)
def test_a_missing_field_is_named_with_its_file(tmp_path, field):
    result = make_result()
    del result[field]
    with pytest.raises(LedgerError, match=rf"x\.json: lacks field '{field}'; run the row again"):
        load_result(write(tmp_path / "x.json", result))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": "0"}, "field 'seed' is '0', not int"),
        ({"commit": None}, "field 'commit' is None, not str"),
        ({"training_seconds": True}, "field 'training_seconds' is True, not a number"),
        ({"scores": {}}, "field 'scores' lacks '0.0', the table without offset"),
        ({"scores": {"0.0": {}}}, r"field 'scores\.0\.0' lacks 'pixel_accuracy'"),
        ({"curve": [{"step": 1}]}, r"field 'curve\[0\]' lacks 'miou_seen'"),
    ],
)
def test_a_wrong_field_is_named_with_its_value(tmp_path, change, message):
    with pytest.raises(LedgerError, match=message):
        load_result(write(tmp_path / "x.json", make_result() | change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"miou_seen": 54.2}, r"'scores\.0\.0\.miou_seen' is 54\.2, not a fraction"),
        ({"per_class_iou": [0.5, "x"]}, r"per_class_iou\[1\]' is 'x'"),
        ({"per_class_iou": []}, "per_class_iou' is no list of scores"),
        ({"hiou": 0.9}, r"hiou' is 0\.9, but the harmonic mean .* is 0\.4"),
        ({"intervals": {}}, r"intervals\.pixel_accuracy' is None, not \[low, high\]"),
        ({"intervals": None}, r"intervals\.pixel_accuracy' is None, not \[low, high\]"),
        ({"fragmentation": "many"}, r"fragmentation' is 'many', no mapping"),
        (
            {"fragmentation": {"components_per_class_and_image": "many"}},
            "components_per_class_and_image' is no number",
        ),
    ],
)
def test_a_wrong_score_is_named(tmp_path, change, message):
    result = make_result()
    result["scores"]["0.0"] |= change
    with pytest.raises(LedgerError, match=message):
        load_result(write(tmp_path / "x.json", result))


def test_files_that_are_no_results_are_refused(tmp_path):
    (tmp_path / "x.json").write_text('{"scores": ')
    with pytest.raises(LedgerError, match=r"x\.json: no valid JSON"):
        load_result(tmp_path / "x.json")
    with pytest.raises(LedgerError, match=r"y\.json: cannot be read"):
        load_result(tmp_path / "y.json")
    with pytest.raises(LedgerError, match="holds a list, not a result"):
        load_result(write(tmp_path / "z.json", []))


def test_a_file_named_for_another_seed_is_refused(tmp_path):
    write(tmp_path / "ldvc_seed1.json", make_result(0))
    with pytest.raises(LedgerError, match="field 'seed' is 0, but the file is named for seed 1"):
        load_results(tmp_path, "ldvc")


def test_results_come_in_order_of_their_seed_and_of_their_row_alone(tmp_path):
    for seed in (10, 2, 0):
        write(tmp_path / f"ldvc_seed{seed}.json", make_result(seed))
    write(tmp_path / "ldvc_seedling_seed0.json", make_result(0))
    assert [result["seed"] for result in load_results(tmp_path, "ldvc")] == [0, 2, 10]


def test_an_evaluation_stands_in_the_ledger_by_its_files_seed(tmp_path):
    result = make_result(protocol={"dataset": "voc", "checkpoint": "a"}, seconds=3) | {"seed": None}
    del result["recipe"]
    write(tmp_path / "cross_seed0.json", result)
    kept = {"predictions": "b/maps", "inference": {"window_batch_size": 9}}
    write(tmp_path / "cross_seed1.json", result | {"protocol": {"dataset": "voc", "checkpoint": "b"} | kept})
    assert [found["seed"] for found in load_results(tmp_path, "cross")] == [0, 1]
    write(tmp_path / "cross_seed1.json", result | {"protocol": {"dataset": "context", "checkpoint": "b"}})
    with pytest.raises(LedgerError, match="dataset was 'voc', now 'context'"):
        load_results(tmp_path, "cross")


# ---- tables


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A list of two rows and the place of its results."""
    recipe = {"class_names": NAMES, "unseen_classes": ["sofa"], "dataset": "scenes"}
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(recipe))
    content = {
        "world": "toys",
        "recipe": str(tmp_path / "base.yaml"),
        "groups": {"a2": "Who asks?", "reference": "What is compared"},
        "rows": [
            {"name": "ldvc", "title": "LDVC", "group": "a2"},
            {"name": "class_query", "title": "class query", "group": "a2", "overrides": {"decoder_query": "class"}},
            {"name": "floor", "title": "CLIP", "group": "reference", "training_free": "value"},
        ],
        "claims": [
            {"claim": "Image queries win", "source": "paper", "row": "ldvc", "than": "class_query", "score": "hiou"},
            {"claim": "Training helps", "source": "ours", "row": "ldvc", "than": "floor", "score": "hiou"},
        ],
    }
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(ablations, "ROOT", tmp_path)
    monkeypatch.setattr(report, "ABLATIONS", path)
    return read_list(path)


def fill(world, row, seed, seen, unseen, **fields):
    rows = {entry.name: entry for entry in world.rows}
    result = make_result(seed, seen, unseen, recipe=world.recipe_of(rows[row], seed), **fields)
    write(world.results_folder / f"{row}_seed{seed}.json", result)


def test_the_table_shows_mean_and_spread_of_what_was_run_and_names_the_rest(world):
    for seed, seen in ((0, 0.5), (1, 0.6)):
        fill(world, "ldvc", seed, seen, 0.3)
    table = report.picturebook_ablations()
    assert "| LDVC | 80.0 ± 0.0 | 55.0 ± 7.1 | 30.0 ± 0.0 |" in table
    assert "| 2.50 ± 0.00 | 1.11 | 2 |" in table
    assert "Not run: class query; CLIP." in table
    assert "Code: 0123456." in table
    assert "Who asks?" in table
    assert "What is compared" not in table


def test_the_short_table_has_the_same_scores_and_counts_what_is_missing(world):
    for seed, seen in ((0, 0.5), (1, 0.6)):
        fill(world, "class_query", seed, seen, 0.3)
    table = report.picturebook_ablations_short()
    assert "| a2 | class query | 55.0 ± 7.1 | 30.0 ± 0.0 | 38.7 ± 1.8 | 38.7 ± 1.8 |" in table
    assert "20000 steps unless the row names others." in table
    assert "1 of these 2 rows have no results yet." in table


def test_a_table_without_any_result_has_no_number(world):
    assert not re.search(r"\d\d\.\d", report.picturebook_ablations())
    assert "Not run: LDVC; class query; CLIP." in report.picturebook_ablations()


def test_findings_are_words_that_follow_from_the_numbers(world):
    for seed in (0, 1, 2):
        fill(world, "ldvc", seed, 0.6, 0.5 + 0.01 * seed)
        fill(world, "class_query", seed, 0.6, 0.2 + 0.01 * seed)
    text = report.picturebook_findings()
    assert re.search(
        r"Image queries win \(paper\) \| hIoU: LDVC 55\.\d ± 0\.\d against class query 31\.\d ± 1\.\d", text
    )
    assert re.search(
        r"\| \+2\d\.\d \[\+2\d\.\d, \+2\d\.\d\] \| \+2\d\.\d \[\+2\d\.\d, \+2\d\.\d\] \| \*\*confirmed\*\* \|", text
    )
    assert "- Confirmed, of the paper: Image queries win." in text
    assert "- Open, for want of runs, of ours: Training helps." in text


def test_a_finding_against_the_paper_is_stated_as_it_fell(world):
    for seed in (0, 1, 2):
        fill(world, "ldvc", seed, 0.6, 0.2 + 0.01 * seed)
        fill(world, "class_query", seed, 0.6, 0.5 + 0.01 * seed)
    assert "- Contradicted, of the paper: Image queries win." in report.picturebook_findings()


@pytest.mark.parametrize(
    ("unseen", "said"),
    [
        (0.8, "- Turned round with 0.1 off seen scores: Image queries win."),
        (0.5, "- Decided without the offset or with it, not both: Image queries win."),
    ],
)
def test_a_finding_that_falls_otherwise_with_an_offset_is_said_to_do_so(world, unseen, said):
    for seed in (0, 1, 2):
        fill(world, "ldvc", seed, 0.6, 0.5 + 0.01 * seed)
        fill(world, "class_query", seed, 0.6, 0.2 + 0.01 * seed)
        path = world.results_folder / f"class_query_seed{seed}.json"
        result = json.loads(path.read_text())
        result["scores"]["0.1"] = make_table(0.6, unseen + 0.01 * seed)
        write(path, result)
    assert said in report.picturebook_findings()


def test_results_of_other_settings_are_left_out_of_the_table_and_named(world):
    fill(world, "ldvc", 0, 0.5, 0.3)
    fill(world, "class_query", 0, 0.5, 0.3)
    path = world.results_folder / "class_query_seed0.json"
    result = json.loads(path.read_text())
    result["recipe"]["max_steps"] = 5
    write(path, result)
    table = report.picturebook_ablations()
    assert "| class query |" not in table
    assert "Left out: class query, seed 0 made with other settings (max_steps was 5, now 20000)." in table


def test_the_record_names_what_an_outdated_clip_made_in_place_of_its_scores(world, monkeypatch):
    monkeypatch.setattr(report, "RECORD", report.ABLATIONS)
    fill(world, "ldvc", 0, 0.5, 0.3, clip_fingerprint="of a CLIP before")
    assert report.picturebook_scores() == (
        "Not run yet: `make record`.\n\nLeft out: LDVC, seed 0 made with another CLIP."
    )


@pytest.mark.slow
def test_the_figure_draws_a_line_and_a_band_for_each_decoder(world, tmp_path, monkeypatch):
    rise = [{"step": step, "miou_seen": 0.1 * step, "miou_unseen": 0.05 * step} for step in (1, 2, 3)]
    fall = [{"step": step, "miou_seen": 0.2 * step, "miou_unseen": 0.4 - 0.1 * step} for step in (1, 2, 3)]
    monkeypatch.setattr(report, "ROOT", tmp_path)
    monkeypatch.setattr(report, "FIGURE", tmp_path / "assets" / "figure.png")
    assert report.decoder_swap().startswith("Not run yet")
    for seed in (0, 1):
        fill(world, "ldvc", seed, 0.5, 0.3, curve=rise)
        fill(world, "class_query", seed, 0.5, 0.3, curve=fall)
    assert report.decoder_swap() == "Not drawn yet: `ldvc report --figures`."
    rows = report.swap_rows(world, collect(world))
    assert [title for title, _ in rows] == ["LDVC", "class query"]
    report.FIGURE.parent.mkdir()
    draw_decoder_swap(rows, report.FIGURE)
    assert "(../assets/figure.png)" in report.decoder_swap()
    picture = np.asarray(Image.open(report.FIGURE).convert("RGB")).astype(int)
    for color in SWAP_COLORS[:2]:
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture - rgb).sum(axis=2) < 12).sum() > 200, color


def test_figures_without_a_curve_are_left_out_and_documents_written(world, monkeypatch, capsys):
    monkeypatch.setattr(report, "documents", dict)
    monkeypatch.setattr(report.plot, "draw_scaling", lambda path: False)
    assert commands.report(["--figures"]) == 0
    told = capsys.readouterr().err
    assert "no figure: no row of the list has a curve" in told
    assert "no figure of scaling laws: run `python -m benchmarks scaling`." in told


@pytest.mark.slow
def test_the_figure_needs_a_curve(tmp_path):
    with pytest.raises(ValueError, match="no result has a curve"):
        draw_decoder_swap([], tmp_path / "figure.png")


def few_seen_world(world, tmp_path, monkeypatch):
    """A list of two methods at two shares, with results of three seeds."""
    content = yaml.safe_load(Path(world.path).read_text()) | {"recipe": str(tmp_path / "few.yaml"), "world": "few"}
    (tmp_path / "few.yaml").write_text(yaml.safe_dump({"vocabulary": "voc2012", "dataset": "scenes"}))
    content["rows"] = [
        {"name": f"{name}_{share}", "title": f"{name}, all, {share} %", "group": "a2", "overrides": overrides}
        for share in (50, 100)
        for name, overrides in (
            ("ldvc", {"seen_share": share / 100}),
            ("none", {"seen_share": share / 100, "text_adapter": "none"}),
        )
    ]
    content["claims"] = [
        {"claim": "The adapter helps", "source": "ours", "row": "ldvc_50", "than": "none_50", "score": "miou_unseen"}
    ]
    path = tmp_path / "few_list.yaml"
    path.write_text(yaml.safe_dump(content))
    monkeypatch.setattr(report, "FEW_SEEN", path)
    listed = read_list(path)
    for row in listed.rows:
        for seed in (0, 1, 2):
            unseen = 0.5 + 0.01 * seed - (0.3 if row.name == "ldvc_50" else 0)
            fill(listed, row.name, seed, 0.6, unseen)
    return listed


def test_scores_by_share_of_seen_classes_are_one_line_a_method(world, tmp_path, monkeypatch):
    listed = few_seen_world(world, tmp_path, monkeypatch)
    lines = report.few_seen_lines(listed, collect(listed))
    assert {title: list(shares) for title, shares in lines.items()} == {
        "ldvc, all": [0.5, 1.0],
        "none, all": [0.5, 1.0],
    }
    assert "| ldvc, all, 50 % |" in report.few_seen()
    assert "- Contradicted, of ours: The adapter helps." in report.TABLES["few_seen_findings"]()


@pytest.mark.slow
def test_the_figure_of_few_seen_classes_draws_a_line_for_each_method(world, tmp_path, monkeypatch):
    listed = few_seen_world(world, tmp_path, monkeypatch)
    draw_few_seen(report.few_seen_lines(listed, collect(listed)), tmp_path / "few.png")
    picture = np.asarray(Image.open(tmp_path / "few.png").convert("RGB")).astype(int)
    for color in SWAP_COLORS[:2]:
        rgb = [int(color[i : i + 2], 16) for i in (1, 3, 5)]
        assert (np.abs(picture - rgb).sum(axis=2) < 12).sum() > 200, color
    with pytest.raises(ValueError, match="no row has results; run recipes/ablations/"):
        draw_few_seen({}, tmp_path / "few.png")


def test_words_follow_where_the_interval_leaves_zero_out_and_are_not_said_otherwise(world):
    assert report.decided_claims(world, collect(world)) == ""
    for seed in (0, 1, 2):
        fill(world, "ldvc", seed, 0.6, 0.5 + 0.01 * seed)
        fill(world, "class_query", seed, 0.6, 0.2 + 0.01 * seed)
    said = report.decided_claims(world, collect(world))
    assert re.fullmatch(
        r" Image queries win: confirmed over 3 pairs of seeds, hIoU \+2\d\.\d \[.*\], with 0.1 off .*interval\)\.",
        said,
    )
    fill(world, "class_query", 2, 0.6, 0.7)
    assert report.decided_claims(world, collect(world)) == ""


# ---- numbers without a source


def test_a_score_in_prose_is_noticed():
    assert report.unsourced_scores("LDVC reaches an mIoU(U) of 32.7 here.") == [
        "LDVC reaches an mIoU(U) of 32.7 here."
    ]


@pytest.mark.parametrize(
    "text",
    [
        "<!-- table: x -->\nmIoU 32.7\n<!-- end -->",
        "```\nmIoU 32.7\n```",
        "---\nvalue: 32.7  # mIoU\n---\n",
        "See `mIoU 32.7` and PyTorch 2.13.",
        "transformers 5.23.0 has accuracy metrics",
    ],
)
def test_rendered_tables_code_and_versions_are_no_scores_in_prose(text):
    assert report.unsourced_scores(text) == []


def test_no_document_states_a_score_outside_a_rendered_table():
    pages = {*(ROOT / name for name in report.DOCUMENTS), *(ROOT / "docs").glob("*.md"), ROOT / "CONTRIBUTING.md"}
    for page in pages:
        assert report.unsourced_scores(page.read_text()) == [], page


def test_the_check_fails_for_a_score_in_prose(monkeypatch, capsys):
    monkeypatch.setattr(report, "documents", lambda: {ROOT / "README.md": "an hIoU of 99.9"})
    assert commands.report(["--check"]) == 1
    assert "README.md: an hIoU of 99.9" in capsys.readouterr().err


def test_a_result_that_cannot_be_used_ends_the_report_with_one_line(world, capsys):
    write(world.results_folder / "ldvc_seed0.json", {"scores": {}})
    assert commands.report(["--check"]) == 2
    assert re.fullmatch(r"ldvc report: .*ldvc_seed0\.json: lacks field 'num_images'.*\n", capsys.readouterr().err)


# ---- published figures


def test_a_printed_harmonic_mean_that_does_not_follow_is_flagged():
    published = load_published()
    flagged = {
        (setting, row.method, name)
        for setting in SETTINGS
        for row in published[setting]
        for name, scores in row.scores.items()
        if "≠" in published_table_cell(scores)
    }
    assert {
        ("inductive", "CaGNet", "pascal_context"),
        ("transductive", "STRICT", "coco_stuff"),
        ("transductive", "zsseg + self-training", "voc2012"),
        ("transductive", "MVP-SEG+", "coco_stuff"),
        ("transductive", "MVP-SEG+", "pascal_context"),
        ("fully_supervised", "ZegCLIP", "pascal_context"),
        ("fully_supervised", "OTSeg+", "pascal_context"),
    } <= flagged
    assert ("inductive", "ZegCLIP", "voc2012") not in flagged
    assert ("transductive", "OTSeg+", "voc2012") not in flagged


def published_table_cell(scores):
    from ldvc.experiments.ledger import format_scores

    return format_scores(scores)


def test_published_rows_are_marked_as_published_and_ours_stand_beside_them(tmp_path):
    shutil.copyfile(ROOT / "results" / "published.yaml", tmp_path / "published.yaml")
    table = published_table("inductive", tmp_path)
    assert "| ZegCLIP | 94.6 / 91.9 / 77.8 / 84.3 |" in table
    assert "published: Z |" in table
    assert "| LDVC | - / - / ≈82.3 / - |" in table
    assert "derived: L |" in table
    assert "Ours: no run on these benchmarks yet." in table
    write(tmp_path / "voc2012" / "inductive_seed0.json", make_result(0, 0.9, 0.8))
    table = published_table("inductive", tmp_path)
    assert "| **LDVC, this repository** | 80.0 / 90.0 / 80.0 / 84.7 | - | - | measured |" in table
    assert "| **LDVC, this repository, 0.1 off seen scores** | 80.0 / 90.0 / 80.0 / 84.7 | - | - | measured |" in table
    assert "no run" not in table


def test_a_score_of_ours_under_another_protocol_than_trained_is_marked(tmp_path):
    shutil.copyfile(ROOT / "results" / "published.yaml", tmp_path / "published.yaml")
    result = make_result(0, protocol={"dataset": "voc"}, seconds=1, audit={"status": "mismatch"})
    del result["recipe"]
    write(tmp_path / "voc2012" / "cross_dataset_seed0.json", result)
    assert "| **LDVC, this repository** | 52.5 (audit: mismatch) | - |" in published_table("cross_dataset", tmp_path)


def test_every_published_row_names_a_source_that_is_listed():
    published = load_published()
    for setting in SETTINGS:
        for row in published[setting]:
            assert set(re.findall(r"\b[A-Z]\b", row.source)) & set(published["sources"]), row


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "Z", "voc2012": [1, 2, 3, 4]}, "lacks 'method'"),
        ({"method": "A", "source": "Z", "voc2012": [1, 2, 3]}, "A: 'voc2012' is .*; give pAcc"),
        ({"method": "A", "source": "Z", "voc2012": [1, 2, 3, 400]}, "A: 'voc2012' is .*; give percentages"),
        ({"method": "A", "source": "Z", "voc": [1, 2, 3, 4]}, "A: unknown field 'voc'"),
    ],
)
def test_a_wrong_published_row_is_refused(tmp_path, row, message):
    content = yaml.safe_load((ROOT / "results" / "published.yaml").read_text())
    (tmp_path / "published.yaml").write_text(yaml.safe_dump(content | {"inductive": [row]}))
    with pytest.raises(PublishedError, match=message):
        load_published(tmp_path / "published.yaml")


def test_a_published_file_without_a_part_or_that_is_no_yaml_is_refused(tmp_path):
    (tmp_path / "published.yaml").write_text("sources: {Z: z}\n")
    with pytest.raises(PublishedError, match="lacks 'notes'"):
        load_published(tmp_path / "published.yaml")
    (tmp_path / "published.yaml").write_text("sources: [")
    with pytest.raises(PublishedError, match="cannot be read"):
        load_published(tmp_path / "published.yaml")


# ---- cards


def test_every_card_is_what_its_recipe_renders_and_the_hub_can_read_it():
    cards = read_cards()
    assert {path.stem for path in (ROOT / "model_cards").glob("*.md")} - {"template"} == {card.name for card in cards}
    for card in cards:
        text = report.render(render_card(card))
        assert (ROOT / "model_cards" / f"{card.name}.md").read_text() == text, f"{card.name}: run `ldvc report`"
        data = check_card(text)
        assert (data.library_name, data.pipeline_tag) == ("transformers", "image-segmentation")


@pytest.mark.parametrize("benchmark", ["voc2012", "coco_stuff", "pascal_context"])
@pytest.mark.parametrize("setting", ["inductive", "transductive", "supervised"])
def test_there_is_a_card_for_every_recipe_of_a_benchmark(benchmark, setting):
    assert (ROOT / "recipes" / f"{benchmark}_{setting}.yaml").is_file()
    assert f"recipes/{benchmark}_{setting}.yaml" in {card.recipe_path for card in read_cards()}


def test_a_card_without_a_checkpoint_says_so_and_states_no_score():
    for card in read_cards():
        if card.protocol is None:
            text = render_card(card)
            assert "**No checkpoint exists yet.**" in text
            assert "model-index" not in text
            assert not re.search(r"\b\d\d\.\d\b", text.split("## Differences")[0]), card.name


def own_card(**parts):
    content = read_words()
    recipe = make_recipe(clip="openai/clip-vit-base-patch16", max_steps=5)
    return make_card("ldvc-toys", recipe, "recipe.yaml", content, **parts)


PROTOCOL = {
    "classes": [{"name": name, "positive_pixels": 0 if name == "sofa" else 9} for name in NAMES],
    "keeps_setting": True,
    "image_draws": 80,
    "unseen_mask_pixels_in_the_loss": 0,
}


def test_a_card_with_results_has_them_in_table_and_model_index():
    text = render_card(own_card(protocol=PROTOCOL, result=make_result()))
    assert "| as it is | 80.0 [25.0, 75.0] | 60.0 [25.0, 75.0] | 30.0 [25.0, 75.0] | 40.0 [25.0, 75.0] |" in text
    results = check_card(text).eval_results
    assert [(result.metric_name, result.metric_value) for result in results] == [
        ("pAcc", 80.0), ("mIoU(S)", 60.0), ("mIoU(U)", 30.0), ("hIoU", 40.0),
    ]  # fmt: skip


def test_a_card_lists_classes_by_the_audit_and_not_by_the_recipe():
    audit = PROTOCOL | {"classes": [{"name": name, "positive_pixels": 9} for name in NAMES]}
    assert "Trained with masks (4): cat, dog, sofa, grass. Counted" in render_card(own_card(protocol=audit))
    assert "Never with masks (1): **sofa**" in render_card(own_card(protocol=PROTOCOL))
    assert "By the recipe" in render_card(own_card())


def test_a_cards_commands_are_those_of_its_run():
    text = render_card(own_card(protocol=PROTOCOL))
    assert """--class_names '["cat", "dog", "sofa", "grass"]' --unseen_classes '["sofa"]'""" in text
    assert "--dataset scenes" in text
    recipe = make_recipe(seed=3, label_column="mask", window=0, clip="openai/clip-vit-base-patch16")
    text = render_card(make_card("x", recipe, "recipes/own_data.yaml", read_words()))
    assert "accelerate launch train.py recipes/own_data.yaml --seed 3\n" in text
    assert "--label_column mask" in text


def test_a_card_says_of_an_unaudited_start_that_nobody_knows_it():
    audit = PROTOCOL | {"start": {"checkpoint": "models/found", "is_audited": False}}
    words = " ".join(render_card(own_card(protocol=audit)).split())
    assert "It started from the weights of found, of whose own training no whole audit is known." in words


def test_the_python_of_every_card_compiles():
    for card in read_cards():
        code = re.findall(r"```python\n(.*?)```", render_card(card), re.DOTALL)
        assert len(code) == 1
        compile(code[0], card.name, "exec")


def test_a_data_set_or_clip_without_words_is_said_to_be_unknown():
    text = render_card(make_card("x", make_recipe(clip="me/clip"), "r.yaml", read_words(), patch_size=16))
    assert "The licence of the CLIP me/clip is its owners'" in " ".join(text.split())
    assert "The bias of the data set scenes has not been looked into." in " ".join(text.split())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("license: apache-2.0\n", "lacks `license`"),
        ("library_name: transformers\n", "lacks `library_name`"),
    ],
)
def test_a_card_without_a_field_is_refused(change, message):
    with pytest.raises(CardError, match=message):
        check_card(render_card(own_card()).replace(change, ""))


def test_a_model_index_that_the_hub_cannot_read_is_refused():
    text = render_card(own_card(protocol=PROTOCOL, result=make_result()))
    with pytest.raises(CardError, match=r"the card's front matter cannot be read: .*model.index"):
        check_card(text.replace("    metrics:", "    figures:"))


def test_a_list_of_cards_with_a_mistake_is_refused(tmp_path):
    content = yaml.safe_load((ROOT / "model_cards" / "cards.yaml").read_text())
    path = tmp_path / "cards.yaml"
    path.write_text(yaml.safe_dump(content | {"cards": [{"name": "a", "recipe": "x", "colour": "red"}]}))
    with pytest.raises(CardError, match="card 'a': unknown key 'colour'"):
        read_cards(tmp_path)
    path.write_text(yaml.safe_dump(content | {"cards": [{"name": "a"}]}))
    with pytest.raises(CardError, match="card 'a': a `name` and a `recipe` are needed"):
        read_cards(tmp_path)
    path.write_text(yaml.safe_dump(content | {"cards": content["cards"][:1] * 2}))
    with pytest.raises(CardError, match="the card 'ldvc-picturebook' stands twice"):
        read_cards(tmp_path)
    path.write_text("words: {}")
    with pytest.raises(CardError, match="lacks 'words'"):
        read_cards(tmp_path)
    path.write_text("words: [")
    with pytest.raises(CardError, match="cannot be read"):
        read_cards(tmp_path)


def test_a_checkpoint_without_its_audit_has_no_card(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "model_cards", tmp_path / "model_cards")
    shutil.copytree(ROOT / "recipes", tmp_path / "recipes")
    monkeypatch.setattr(cards_module, "ROOT", tmp_path)
    with pytest.raises(CardError, match=r"protocol\.json: cannot be read"):
        read_cards()
