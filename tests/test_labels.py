"""The label linter: reading lists, and everything it says about them."""

import pytest
import torch
import torch.nn.functional as F

from ldvc.app import labels
from ldvc.app.labels import as_classes, check_labels, near_threshold, parse_labels, render
from ldvc.model.inference_ldvc import encode_classes


@pytest.fixture
def encode(tiny_model, tiny_processor):
    return lambda classes: encode_classes(tiny_model, tiny_processor, classes)[1]


@pytest.fixture
def check(tiny_processor, encode):
    """Return a function from a label text to its report."""
    return lambda text, **options: check_labels(parse_labels(text), tiny_processor, encode, **options)


def kinds(report):
    return [(finding.level, finding.kind, finding.label) for finding in report.findings]


# ---- reading


def test_commas_part_classes_and_bars_synonyms():
    assert parse_labels("cat, sofa|couch ,hot dog") == [
        ("cat", ["cat"]),
        ("sofa", ["sofa", "couch"]),
        ("hot dog", ["hot dog"]),
    ]


def test_a_file_has_one_class_per_line_and_commas_in_names(tmp_path):
    path = tmp_path / "classes.TXT"
    path.write_text("\ufeffcat\n\n# furniture\n sofa | couch\ndesk, brown\r\n", encoding="utf-8")
    assert parse_labels(str(path)) == [("cat", ["cat"]), ("sofa", ["sofa", "couch"]), ("desk, brown", ["desk, brown"])]


def test_a_file_that_is_missing_is_named():
    with pytest.raises(ValueError, match=r"label file 'nosuch\.txt' cannot be read \(No such file"):
        parse_labels("nosuch.txt")


def test_a_file_of_another_encoding_says_so(tmp_path):
    (tmp_path / "a.txt").write_bytes("café".encode("latin-1"))
    with pytest.raises(ValueError, match="no UTF-8 text; save it as UTF-8"):
        parse_labels(str(tmp_path / "a.txt"))


def test_a_file_without_a_class_says_so(tmp_path):
    (tmp_path / "a.txt").write_text("# nothing\n")
    with pytest.raises(ValueError, match="names no class; write one per line"):
        parse_labels(str(tmp_path / "a.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [("cat,,dog", "empty"), ("", "empty"), ("cat, Cat", "given twice"), ("sofa|couch, couch", "couch.*given twice")],
)
def test_lists_that_segmentation_refuses_are_refused(text, message):
    with pytest.raises(ValueError, match=message):
        as_classes(parse_labels(text))


# ---- names


def test_a_good_list_has_no_findings(check):
    report = check("cat, dog, sofa", max_cosine=1)
    assert (kinds(report), report.labels) == ([], ["cat", "dog", "sofa"])


def test_duplicates_are_found_by_case_space_and_synonym(check):
    report = check("cat, Cat, sofa|couch, couch, hot dog, hot  dog", max_cosine=1)
    duplicates = [finding for finding in report.findings if finding.kind == "duplicate"]
    assert [(finding.level, finding.label) for finding in duplicates] == [
        ("error", "Cat"),
        ("error", "couch"),
        ("error", "hot  dog"),
    ]
    assert "label 2 repeats 'cat'; case and spaces do not count" in duplicates[0].message
    assert report.labels == ["cat", "sofa", "hot dog"]


@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        ("", "empty", "label 2: the class name '' is empty"),
        ("d\x07og", "control character", r"label 2: the class name 'd\\x07og' holds a control character"),
        ("word " * 300, "too long", r"tokens in 'a photo of a {}', the text tower reads 77; shorten it"),
    ],
)
def test_names_that_segmentation_refuses_are_errors(check, label, kind, message):
    report = check(f"cat, {label}, dog")
    assert [finding.kind for finding in report.findings if finding.level == "error"] == [kind]
    [finding] = [finding for finding in report.findings if finding.kind == kind]
    assert message.replace("\\\\", "\\") in finding.message
    assert report.labels == ["cat", "dog"], "the rest is still looked at"


def test_errors_agree_with_what_segmentation_refuses(check, tiny_processor):
    for text in ("cat, dog", "cat, Cat", "a|b, b", "zebra, giraffe", "cat,", "x" * 200):
        has_errors = check(text).count("error") > 0
        try:
            tiny_processor(class_names=as_classes(parse_labels(text)))
            is_refused = False
        except ValueError:
            is_refused = True
        assert has_errors == is_refused, text


@pytest.mark.parametrize(
    ("label", "kind", "message"),
    [
        ("zebra", "split badly", "falls into 5 pieces (z+e+b+r+a)"),
        ("cat zebra", "split badly", "'zebra' falls into 5 pieces"),
        ("ab", "split badly", "2 pieces (a+b)"),
        ("猫", "unknown character", "read as single bytes"),
        ("c\u200bat", "invisible character", "U+200B; type the name again"),
    ],
)
def test_names_that_read_badly_are_warnings(check, label, kind, message):
    report = check(f"dog, {label}", max_cosine=1)
    assert kinds(report) == [("warning", kind, label)]
    assert message in report.findings[0].message


def test_a_name_with_an_unknown_token_is_reported(check, tiny_processor, monkeypatch):
    unknown = tiny_processor.tokenizer.unk_token
    monkeypatch.setattr(type(tiny_processor.tokenizer), "tokenize", lambda self, text: [unknown])
    report = check("cat", max_cosine=1)
    assert kinds(report) == [("warning", "unknown character", "cat")]
    assert "spell it out" in report.findings[0].message


# ---- similarity


def fixed_embeds(cosines):
    """(num_labels + 1, ...) unit vectors in a plane: label i has this cosine with the first."""
    angles = torch.tensor([1.0, *cosines]).acos()
    return torch.stack([angles.cos(), angles.sin()], dim=1)


def test_near_identical_is_a_quarter_of_the_median_distance():
    embeds = torch.eye(4)
    assert near_threshold(embeds) == pytest.approx(0.75)  # every distance is 1
    close = F.normalize(torch.eye(4) + 3, dim=-1)
    cosine = float(close[0] @ close[1])
    assert near_threshold(close) == pytest.approx(1 - 0.25 * (1 - cosine), abs=1e-6)


def test_everyday_words_stand_in_for_a_distribution():
    pair = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.99, 0.141067, 0.0, 0.0]])
    assert near_threshold(pair) > 0.99, "two labels alone are always as near as their own median"
    assert near_threshold(pair, torch.eye(4)[1:]) < 0.99


def test_pairs_above_the_threshold_are_warned_of(tiny_processor):
    embeds = fixed_embeds([0.9, 0.2])
    report = check_labels(parse_labels("cat, dog, sofa"), tiny_processor, lambda _: embeds, max_cosine=0.8)
    assert kinds(report) == [("warning", "near-identical", "dog")]
    assert "cosine 0.900 with 'cat''s; merge them as cat|dog" in report.findings[0].message
    assert report.pairs[0] == ("cat", "dog", 0.9)
    assert report.matrix[0] == [1.0, 0.9, 0.2]


def test_the_most_similar_pairs_of_a_long_list_are_found_block_by_block(tiny_processor):
    generator = torch.Generator().manual_seed(0)
    embeds = F.normalize(torch.randn(1500, 16, generator=generator), dim=-1)
    names = [f"cat {index}" for index in range(1500)]
    report = labels.Report(names, [], [])
    labels.compare(report, embeds, max_cosine=1, num_pairs=5)
    cosines = (embeds @ embeds.T).triu(1)
    best = cosines.flatten().topk(5).indices.tolist()
    assert [(first, second) for first, second, _ in report.pairs] == [
        (names[place // 1500], names[place % 1500]) for place in best
    ]
    assert report.matrix is None


def test_a_short_list_says_what_its_threshold_rests_on(check):
    assert (
        check("cat, dog").threshold_source == "a quarter of the median distance of this list and of 8 everyday words"
    )
    long = check("cat, dog, sofa, grass, sky, photo, of, cat sofa")
    assert long.threshold_source == "a quarter of the median distance of this list"


def test_a_threshold_that_is_no_cosine_is_refused(check):
    with pytest.raises(ValueError, match=r"max_cosine is 1\.5; a cosine is -1 to 1"):
        check("cat, dog", max_cosine=1.5)


def test_without_a_text_tower_names_are_still_checked(tiny_processor):
    report = check_labels(parse_labels("cat, cat, dog"), tiny_processor, None)
    assert kinds(report) == [("error", "duplicate", "cat")]
    assert report.max_cosine is None


# ---- the report


def test_the_report_shows_counts_findings_and_tables(tiny_processor):
    embeds = fixed_embeds([0.9, 0.2])
    report = check_labels(parse_labels("cat, dog, sofa, cat"), tiny_processor, lambda _: embeds, max_cosine=0.8)
    lines = render(report, "folder").splitlines()
    assert lines[0] == "3 labels could be encoded: 1 error, 1 warning (model folder, template 'a photo of a {}')"
    assert lines[1].startswith("error    duplicate: 'cat' label 4 repeats")
    assert "near-identical above cosine 0.800 (--max-cosine)" in lines
    assert "| cat   | dog   |  0.900 |" in lines
    assert "| cat    | 1.00 | 0.90 | 0.20 |" in lines


def test_a_long_report_shows_errors_first_and_says_what_it_leaves_out(tiny_processor):
    report = check_labels(parse_labels("zebra|" * 3 + ",".join(f"zebra{i}" for i in range(150))), tiny_processor, None)
    lines = render(report, "folder").splitlines()
    assert lines[1].startswith("error")
    assert (len(lines), lines[-1]) == (102, f"... and {len(report.findings) - 100} more; --json lists them all.")


def test_invisible_characters_are_shown_in_the_tables(check):
    assert r"'c\u200bat'" in render(check("c\u200bat, dog"), "folder")


def test_the_report_becomes_json(check):
    content = check("cat, cat, zebra").to_dict()
    assert (content["errors"], content["warnings"]) == (1, 1)
    assert content["findings"][0] == {
        "level": "error",
        "kind": "duplicate",
        "label": "cat",
        "message": "label 2 repeats 'cat'; case and spaces do not count, name it once.",
    }
