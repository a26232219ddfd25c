"""The floors of the package: who may import whom. Imports inside functions and under TYPE_CHECKING count like any other."""

import ast
import graphlib
from pathlib import Path

import pytest

PACKAGE = "und3rstand_jax"
ROOT = Path(__file__).parent.parent
FLOORS = (
    "support",
    "model",
    "probes",
    "geometry",
    "checkpoint",
    "data",
    "analysis",
    "convert",
    "loading",
    "train",
    "report",
    "commands",
)
"""From the bottom up. A floor imports itself and those before it."""

DOORS = ("convert", "train")
OUTSIDE = (*DOORS, "tests", "benchmarks")
"""What else is at the top of a clone, or in the folder where somebody runs Python: no business of the library's."""


def modules(package: str = PACKAGE) -> dict[str, Path]:
    """Dotted name -> file of every module of a package of the clone."""
    files = sorted((ROOT / package).rglob("*.py"))
    names = (file.relative_to(ROOT).with_suffix("").parts for file in files)
    return {".".join(name[:-1] if name[-1] == "__init__" else name): file for name, file in zip(names, files, strict=True)}


def imported(name: str, source: str, known: frozenset[str]) -> set[str]:
    """Everything that the module `name` imports, wherever in its text: modules in `known` by their full name, others as written."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: relative import; write it out"
            members = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = members & known
            found |= submodules
            # A package that only leads to its submodule is not what is imported.
            if node.module and len(submodules) < len(node.names):
                found.add(node.module)
    return found - {name}


def upward(floors: tuple[str, ...], graph: dict[str, set[str]]) -> list[str]:
    """`importer -> imported` for every import that does not stay on its floor or go down."""
    rank = {floor: number for number, floor in enumerate(floors)}

    def floor(module: str) -> int:
        # The package itself, and its __main__, stand above every floor.
        return rank.get(module.split(".")[1] if module.count(".") else "", len(floors))

    return sorted(f"{name} -> {other}" for name, others in graph.items() for other in others if floor(other) > floor(name))


def cycle(graph: dict[str, set[str]]) -> list[str] | None:
    """The modules of one cycle, or None."""
    try:
        tuple(graphlib.TopologicalSorter(graph).static_order())
    except graphlib.CycleError as error:
        return list(error.args[1])
    return None


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    files = modules()
    return {name: imported(name, file.read_text(), frozenset(files)) for name, file in files.items()}


def test_every_module_is_on_a_floor(graph):
    tops = {name.split(".")[1] for name in graph if name.count(".")}
    assert tops - {"__main__"} == set(FLOORS)


def test_no_floor_imports_one_above_it(graph):
    inside = {name: {other for other in others if other.split(".")[0] == PACKAGE} for name, others in graph.items()}
    assert upward(FLOORS, inside) == []


def test_no_modules_import_each_other_in_a_circle(graph):
    inside = {name: {other for other in others if other in graph and other != PACKAGE} for name, others in graph.items()}
    assert cycle(inside) is None


def test_the_library_never_imports_what_the_working_directory_may_hold(graph):
    found = {f"{name} -> {other}" for name, others in graph.items() for other in others if other.split(".")[0] in OUTSIDE}
    assert found == set()


@pytest.mark.parametrize("door", DOORS)
def test_a_door_only_leads_to_its_command(door):
    files = modules(door)
    assert set(files) == {door, f"{door}.__main__"}
    assert imported(door, files[f"{door}.__main__"].read_text(), frozenset(modules())) == {f"{PACKAGE}.commands.{door}"}


def test_every_package_says_its_job():
    for name, file in modules().items():
        if file.name == "__init__.py":
            assert ast.get_docstring(ast.parse(file.read_text())), name


def test_the_checks_themselves_see_upward_lazy_and_circular_imports():
    source = "from p.high import x\ndef f():\n    import p.low\nif TYPE_CHECKING:\n    from p import high\n"
    assert imported("p.low", source, frozenset({"p.high", "p.low"})) == {"p.high"}
    assert upward(("low", "high"), {"p.low.a": {"p.high.b"}, "p.high.b": {"p.low.a"}}) == ["p.low.a -> p.high.b"]
    assert upward(("low", "high"), {"p.low": {"p"}}) == ["p.low -> p"]
    assert cycle({"a": {"b"}, "b": {"a"}, "c": set()}) is not None
    assert cycle({"a": {"b"}, "b": set()}) is None
