"""The gates of the house style that a program can measure: `python -m tests.gates` prints them; 1 is a breach.

Shipping code is what every Hub folder gets: the modules that model and processor reach by relative imports.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path


ROOT = Path(__file__).resolve().parents[1]
MODEL = "ldvc/model"
ENTRIES = ("modeling_ldvc", "processing_ldvc")
FOLDERS = (".", "metrics/zero_shot_miou", "picturebook", "benchmarks")  # and every folder of the package
ALLOWED_IMPORTS = {"torch", "transformers", "huggingface_hub", "safetensors", "PIL", "numpy"}
# What inference must not wait for: `import ldvc` leaves them alone.
HEAVY = ("datasets", "accelerate", "evaluate", "matplotlib", "gradio", "scipy", "torchvision", "pandas", "pyarrow")
MAX_FUNCTION, LONG_FUNCTION, MAX_FILE, MAX_COLUMNS, FIRST_IMPORT = 60, 50, 700, 119, 30
MAX_LONG_SHARE = 0.04
SHAPE = re.compile(r"\([\w\s./*+-]+(,[\w\s./*+-]*)+\)|scalar|[Ss]hape|As \[`|as in `|same shape", re.ASCII)


@dataclass
class Gate:
    """One thing that is measured.

    Attributes:
        name: What.
        value: Measured.
        limit: In words.
        breaches: Places that break it.
    """

    name: str
    value: str
    limit: str
    breaches: list[str] = field(default_factory=list)


@dataclass
class Function:
    """A function of a module.

    Attributes:
        place: "file.py:line name".
        node: Its definition.
        owner: The class around it, if any.
        is_inner: Whether it lies inside another function.
    """

    place: str
    node: ast.FunctionDef
    owner: ast.ClassDef | None
    is_inner: bool

    @property
    def num_lines(self) -> int:
        """Lines with docstring and decorators."""
        return self.node.end_lineno - min([self.node.lineno, *(d.lineno for d in self.node.decorator_list)]) + 1

    @property
    def arguments(self) -> list[ast.arg]:
        """All arguments but `self` and `cls`."""
        a = self.node.args
        found = [*a.posonlyargs, *a.args, *a.kwonlyargs, *filter(None, (a.vararg, a.kwarg))]
        return [arg for arg in found if arg.arg not in ("self", "cls")]

    @property
    def is_public(self) -> bool:
        """Whether users see it."""
        is_private_owner = self.owner is not None and self.owner.name.startswith("_")
        return not (self.is_inner or is_private_owner or self.node.name.startswith("_"))

    @property
    def handles_tensors(self) -> bool:
        """Whether tensors or arrays go in and something comes out; a check, which gives nothing, takes any shape."""
        if self.node.returns is None or ast.unparse(self.node.returns) == "None":
            return False
        hints = [arg.annotation for arg in self.arguments] + [self.node.returns]
        return any(re.search(r"\b(Tensor|ndarray)\b", ast.unparse(hint)) for hint in hints if hint is not None)


def modules() -> list[Path]:
    """Every module but the tests."""
    found = [path for folder in FOLDERS for path in (ROOT / folder).glob("*.py")]
    return sorted([*found, *(ROOT / "ldvc").rglob("*.py")])


def relative_imports(name: str) -> set[str]:
    """Modules that a shipping module imports relatively."""
    tree = ast.parse((ROOT / MODEL / f"{name}.py").read_text())
    return {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level and node.module}


def shipping() -> list[Path]:
    """The files of every Hub folder."""
    found, todo = set(), list(ENTRIES)
    while todo:
        name = todo.pop()
        if name not in found:
            found.add(name)
            todo += relative_imports(name)
    return sorted(ROOT / MODEL / f"{name}.py" for name in found)


def functions(path: Path) -> list[Function]:
    """All functions and methods of a file."""

    def visit(node: ast.AST, owner: ast.ClassDef | None, is_inner: bool) -> Iterator[Function]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef):
                place = f"{path.relative_to(ROOT).as_posix()}:{child.lineno} {child.name}"
                yield Function(place, child, owner, is_inner)
                yield from visit(child, None, True)
            else:
                yield from visit(child, child if isinstance(child, ast.ClassDef) else owner, is_inner)

    return list(visit(ast.parse(path.read_text()), None, False))


def share(part: int, whole: int) -> str:
    """A share in percent."""
    return f"{100 * part / max(whole, 1):.1f} % of {whole}"


# ---- gates


def function_lengths() -> list[Gate]:
    """Length of functions, everywhere; the share of long ones in shipping code."""
    everywhere = [function for path in modules() for function in functions(path)]
    longest = max(everywhere, key=lambda function: function.num_lines)
    too_long = [f"{f.place}: {f.num_lines} lines" for f in everywhere if f.num_lines > MAX_FUNCTION]
    shipped = [function for path in shipping() for function in functions(path)]
    long_ones = [function for function in shipped if function.num_lines > LONG_FUNCTION]
    is_over = len(long_ones) > MAX_LONG_SHARE * len(shipped)
    places = [f"{f.place}: {f.num_lines} lines" for f in long_ones] if is_over else []
    return [
        Gate("longest function", f"{longest.num_lines} ({longest.place})", f"{MAX_FUNCTION} lines", too_long),
        Gate(
            f"shipping functions over {LONG_FUNCTION} lines",
            share(len(long_ones), len(shipped)),
            f"{MAX_LONG_SHARE:.0%}",
            places,
        ),
    ]


def file_lengths() -> list[Gate]:
    """Length of files and of lines."""
    lengths = {path: len(path.read_text().splitlines()) for path in modules()}
    largest = max(lengths, key=lengths.get)
    of_shipping = max(shipping(), key=lengths.get)
    wide = [
        f"{path.relative_to(ROOT)}:{number}"
        for path in [*modules(), *sorted((ROOT / "tests").glob("*.py"))]
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if len(re.sub(r"\s+# noqa.*", "", line)) > MAX_COLUMNS  # as ruff measures
    ]
    too_long = [f"{path.relative_to(ROOT)}: {number} lines" for path, number in lengths.items() if number > MAX_FILE]
    return [
        Gate("largest shipping file", f"{lengths[of_shipping]} ({of_shipping.name})", f"{MAX_FILE} lines"),
        Gate("largest file", f"{lengths[largest]} ({largest.relative_to(ROOT)})", f"{MAX_FILE} lines", too_long),
        Gate(f"lines over {MAX_COLUMNS} columns", str(len(wide)), "0", wide),
    ]


def typed_arguments() -> Gate:
    """Arguments of shipping code with a type."""
    found = [(function, arg) for path in shipping() for function in functions(path) for arg in function.arguments]
    untyped = [f"{function.place}: {arg.arg}" for function, arg in found if arg.annotation is None]
    return Gate("typed arguments in shipping code", share(len(found) - len(untyped), len(found)), "100 %", untyped)


def docstrings() -> list[Gate]:
    """Public functions of shipping code with a docstring, and with shapes where tensors are handled."""
    public = [function for path in shipping() for function in functions(path) if function.is_public]
    public = [function for function in public if not is_property_setter(function)]
    without = [function.place for function in public if not ast.get_docstring(function.node)]
    handling = [function for function in public if function.handles_tensors]
    shapeless = [function.place for function in handling if not SHAPE.search(text_of(function))]
    return [
        Gate("public functions with docstring", share(len(public) - len(without), len(public)), "100 %", without),
        Gate(
            "public functions of tensors with shapes",
            share(len(handling) - len(shapeless), len(handling)),
            "100 %",
            shapeless,
        ),
    ]


def is_property_setter(function: Function) -> bool:
    """Whether it is the second half of a property, which is documented at the first."""
    return any(isinstance(d, ast.Attribute) and d.attr == "setter" for d in function.node.decorator_list)


def text_of(function: Function) -> str:
    """Docstring of a function, and of the class around it, where `forward` and `__call__` are explained."""
    owner = ast.get_docstring(function.owner) if function.owner is not None else ""
    return f"{ast.get_docstring(function.node)} {owner}"


def readme() -> Gate:
    """Line of the first import."""
    lines = (ROOT / "README.md").read_text().splitlines()
    first = next(number for number, line in enumerate(lines, 1) if line.startswith(("from ", "import ")))
    breaches = [f"README.md:{first}"] if first > FIRST_IMPORT else []
    return Gate("first import of the README", f"line {first}", f"line {FIRST_IMPORT}", breaches)


def import_graph() -> Gate:
    """Shipping code imports itself and the libraries of a checkpoint, nothing that stays here."""
    names, breaches, count = {path.stem for path in shipping()}, [], 0
    for path in shipping():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                found = [node.module or "."]
            else:
                continue
            count += 1
            for module in found:
                name = module.split(".")[0]
                if name not in names | ALLOWED_IMPORTS | set(sys.stdlib_module_names):
                    breaches.append(f"{path.name}:{node.lineno} imports {name}")
    return Gate("imports of shipping code that it may not have", str(len(breaches)), f"0 of {count}", breaches)


def light_import() -> Gate:
    """`import ldvc` in a fresh process, and what came with it beside what Transformers itself loads for a CLIP."""
    own = "from transformers import AutoImageProcessor, CLIPModel; import transformers.pipelines"
    code = (
        f"import sys; loaded = lambda: {{name for name in {HEAVY!r} if name in sys.modules}}; {own}; "
        "before = loaded(); import ldvc; print(*sorted(loaded() - before))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    found = done.stdout.split()
    return Gate("libraries that `import ldvc` should not load", str(len(found)), f"0 of {len(HEAVY)}", found)


def measure() -> list[Gate]:
    """All gates."""
    return [
        *function_lengths(),
        *file_lengths(),
        typed_arguments(),
        *docstrings(),
        readme(),
        import_graph(),
        light_import(),
    ]


def main() -> int:
    """Print the table, then the breaches."""
    gates = measure()
    width = max(len(gate.name) for gate in gates)
    for gate in gates:
        sys.stdout.write(f"{gate.name:{width}}  {gate.value}  (limit {gate.limit})\n")
    for gate in gates:
        for breach in gate.breaches:
            sys.stdout.write(f"breach of {gate.name}: {breach}\n")
    return 1 if any(gate.breaches for gate in gates) else 0


if __name__ == "__main__":
    sys.exit(main())
