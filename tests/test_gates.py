"""The house style is kept where a program can measure it; `python -m tests.gates` prints the figures."""

import ast

import gates
import pytest
from test_remote_code import SHIPPED


def assert_kept(gate):
    """The whole project is measured by `make quality` too; that is why the fast tests leave it out."""
    assert gate.breaches == [], f"{gate.name}: {gate.value}, limit {gate.limit}"


def test_shipping_code_is_found_by_its_imports():
    assert {path.stem for path in gates.shipping()} == set(SHIPPED)


@pytest.mark.slow
def test_functions_are_short():
    for gate in gates.function_lengths():
        assert_kept(gate)


@pytest.mark.slow
def test_files_and_lines_are_short():
    for gate in gates.file_lengths():
        assert_kept(gate)


@pytest.mark.slow
def test_every_argument_of_shipping_code_has_a_type():
    assert_kept(gates.typed_arguments())


@pytest.mark.slow
def test_every_public_function_of_shipping_code_is_explained():
    assert_kept(gates.docstrings()[0])


@pytest.mark.slow
def test_every_public_function_of_tensors_says_their_shapes():
    assert_kept(gates.docstrings()[1])


@pytest.mark.slow
def test_the_readme_imports_on_its_first_screen():
    assert_kept(gates.readme())


@pytest.mark.slow
def test_shipping_code_imports_nothing_that_stays():
    assert_kept(gates.import_graph())


@pytest.mark.slow
def test_importing_ldvc_loads_no_library_of_training_or_page():
    assert_kept(gates.light_import())


# ---- the measures themselves


@pytest.fixture
def small_project(tmp_path, monkeypatch):
    """A project of two shipping modules that breaks every gate."""
    body = "\n".join(f"    x{number} = {number}" for number in range(70))
    source = (
        f"import pandas\nfrom torch import Tensor\n\n\ndef f(x, y: int):\n{body}\n\n\ndef g(x: Tensor) -> Tensor:\n"
    )
    source += '    """Do it."""\n    return x  ' + "#" * 120 + "\n"
    (tmp_path / "ldvc" / "model").mkdir(parents=True)
    (tmp_path / "ldvc" / "model" / "modeling_ldvc.py").write_text(source)
    (tmp_path / "ldvc" / "model" / "processing_ldvc.py").write_text("x = 1\n" * 701)
    (tmp_path / "README.md").write_text("\n" * 40 + "import ldvc\n")
    monkeypatch.setattr(gates, "ROOT", tmp_path)
    monkeypatch.setattr(gates, "FOLDERS", (".",))


@pytest.mark.parametrize(
    ("measure", "breach"),
    [
        (lambda: gates.function_lengths()[0], "ldvc/model/modeling_ldvc.py:5 f: 71 lines"),
        (lambda: gates.function_lengths()[1], "ldvc/model/modeling_ldvc.py:5 f: 71 lines"),
        (lambda: gates.file_lengths()[1], "ldvc/model/processing_ldvc.py: 701 lines"),
        (lambda: gates.file_lengths()[2], "ldvc/model/modeling_ldvc.py:80"),
        (gates.typed_arguments, "ldvc/model/modeling_ldvc.py:5 f: x"),
        (lambda: gates.docstrings()[0], "ldvc/model/modeling_ldvc.py:5 f"),
        (lambda: gates.docstrings()[1], "ldvc/model/modeling_ldvc.py:78 g"),
        (gates.readme, "README.md:41"),
        (gates.import_graph, "modeling_ldvc.py:1 imports pandas"),
    ],
    ids=["function", "share", "file", "columns", "types", "docstring", "shapes", "readme", "imports"],
)
def test_a_breach_is_found_and_named(small_project, measure, breach):
    assert breach in measure().breaches


def test_a_shape_is_recognised_in_words_and_in_brackets():
    for text in ("(batch_size, num_patches, dim)", "(num_classes,)", "a scalar", "of the same shape"):
        assert gates.SHAPE.search(text), text
    assert not gates.SHAPE.search("Do it (well).")


def test_properties_are_explained_once():
    tree = ast.parse("class A:\n @p.setter\n def p(self, value: int): ...\n").body[0].body[0]
    assert gates.is_property_setter(gates.Function("", tree, None, False))
