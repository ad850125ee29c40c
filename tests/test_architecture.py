"""Imports go one way, as README.md draws it."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each may import what stands after it, and nothing before it.
LAYERS = ["app", "endpoints", "browsable_api", "email_services"]
FORBIDDEN = {
    "browsable_api": {"email_services"},
    "email_services": {"flask", "flask_api", "werkzeug", "browsable_api"},
}


def imports_of(file: Path) -> set[str]:
    """The top-level packages that a file imports."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add((node.module or "").partition(".")[0])
    return found


@pytest.mark.parametrize("layer", LAYERS[1:])
def test_imports_go_one_way(layer):
    forbidden = {*LAYERS[: LAYERS.index(layer)], *FORBIDDEN.get(layer, ())}
    for file in (ROOT / layer).rglob("*.py"):
        assert not imports_of(file) & forbidden, file.name


def test_only_the_browsable_api_knows_flask_api():
    for file in [*ROOT.glob("*.py"), *ROOT.glob("endpoints/*.py")]:
        assert "flask_api" not in imports_of(file), file.name


def modules_of(package: str) -> dict[str, Path]:
    """The files of a package, by the name that imports them."""
    files = (ROOT / package).rglob("*.py")
    names = {file: ".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files}
    return {name.removesuffix(".__init__"): file for file, name in names.items()}


def imported_by(file: Path) -> set[str]:
    """What a file names where it imports: modules, and what it takes from them."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def test_no_two_modules_of_email_services_need_each_other():
    modules = modules_of("email_services")
    needs = {name: imported_by(file) & {*modules} for name, file in modules.items()}
    assert "email_services.store" in needs["email_services.ledger"]
    assert "email_services.transport" in needs["email_services.providers.smtp"]
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(" needs ".join(reversed(error.args[1])))
