"""The house: rooms by subject, imports that run one way, a root that can be taken in at a glance."""

import ast
import functools
import subprocess
from graphlib import TopologicalSorter
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[1]
MAX_ENTRIES = 30
DOORS = {"train", "configuration_ldvc", "modeling_ldvc", "processing_ldvc"}

# Room -> floor. A room imports what stands below it; rooms of one floor never import each other in a circle.
FLOORS = {
    "ldvc.model": 1,
    "ldvc": 2,  # public names, loading, processes, places
    "ldvc.segmenters": 2,
    "ldvc.masks": 3,
    "ldvc.export": 3,
    "ldvc.runtime": 3,
    "ldvc.data": 4,
    "ldvc.scoring": 5,
    "ldvc.app": 6,
    "picturebook": 6,
    "ldvc.training": 7,
    "benchmarks": 8,
    "ldvc.experiments": 9,
    "ldvc.commands": 10,
    "ldvc.__main__": 10,
}


def module_name(path, root=ROOT):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module):
    """The nearest room that holds a module; `None` for libraries."""
    parts = module.split(".")
    return next((room for n in range(len(parts), 0, -1) if (room := ".".join(parts[:n])) in FLOORS), None)


def imports_of(path, known, root=ROOT):
    """Modules of the project that a file imports, at its top or inside a function."""
    package = module_name(path, root).split(".")
    package = package if path.stem == "__init__" else package[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*above, *filter(None, [node.module])])
            for alias in node.names:  # of a package: a module in it, or a name
                found.add(f"{module}.{alias.name}" if f"{module}.{alias.name}" in known else module)
    return {name for name in found if name in known}


@functools.cache
def import_graph(root=ROOT):
    paths = [path for part in ("ldvc", "picturebook", "benchmarks") for path in sorted((root / part).rglob("*.py"))]
    known = {module_name(path, root): path for path in paths}
    return {name: imports_of(path, known, root) - {name} for name, path in known.items()}


def arrows_up(graph):
    return [
        f"{module} (floor {FLOORS[room_of(module)]}) imports {target} (floor {FLOORS[room_of(target)]})"
        for module, targets in graph.items()
        for target in targets
        if FLOORS[room_of(target)] > FLOORS[room_of(module)]
    ]


def test_imports_run_down_the_floors():
    assert arrows_up(import_graph()) == []


def test_an_arrow_that_runs_up_is_found():
    graph = {"ldvc.data.samples": {"picturebook.world"}, "picturebook.world": {"ldvc.data.worlds"}}
    assert arrows_up(graph) == ["ldvc.data.samples (floor 4) imports picturebook.world (floor 6)"]


def test_no_room_imports_another_in_a_circle():
    rooms = {}
    for module, targets in import_graph().items():
        rooms.setdefault(room_of(module), set()).update(map(room_of, targets))
    list(TopologicalSorter({room: targets - {room} for room, targets in rooms.items()}).static_order())


def test_no_module_imports_another_in_a_circle():
    graph = import_graph()
    list(TopologicalSorter({name: targets - {"ldvc"} for name, targets in graph.items()}).static_order())


def test_the_model_imports_nothing_of_the_rest():
    for module, targets in import_graph().items():
        if module.startswith("ldvc.model."):
            assert {room_of(target) for target in targets} <= {"ldvc.model"}, module


def test_every_folder_of_the_package_is_a_room():
    assert {f"ldvc.{path.parent.name}" for path in (ROOT / "ldvc").glob("*/__init__.py")} <= set(FLOORS)


def test_the_root_can_be_taken_in_at_a_glance():
    done = subprocess.run(["git", "ls-tree", "--name-only", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        pytest.skip("no git checkout: what belongs to the project cannot be told from what was made here")
    entries = done.stdout.split()
    assert len(entries) <= MAX_ENTRIES, entries
    assert {entry.removesuffix(".py") for entry in entries if entry.endswith(".py")} == DOORS
    assert not {"datasets", "evaluate", "transformers", "torch", "accelerate"} & set(entries), "called like a library"


@pytest.mark.parametrize("door", sorted(DOORS))
def test_a_door_is_a_dozen_lines(door):
    assert len((ROOT / f"{door}.py").read_text().splitlines()) <= 12
