"""Imports go one way, as docs/design.md draws it."""

from __future__ import annotations

import ast
import re
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Each may import what stands after it, and nothing before it.
LAYERS = ["app", "endpoints", "server", "browsable_api", "email_services"]
FORBIDDEN = {
    "endpoints": {"server"},
    "browsable_api": {"email_services", "gunicorn"},
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
    for file in [*ROOT.glob("*.py"), *ROOT.glob("endpoints/**/*.py"), *ROOT.glob("server/*.py")]:
        assert "flask_api" not in imports_of(file), file.name


PRODUCT = re.compile(
    r"mailpool|gunicorn|heroku|pool_|root_|api_key|(?<!of )email|maildir", re.IGNORECASE
)


def test_the_browsable_api_knows_nothing_of_this_product():
    for file in (ROOT / "browsable_api").rglob("*.*"):
        if file.suffix in {".py", ".html", ".js", ".css"}:
            assert PRODUCT.findall(file.read_text()) == [], file.name


# What rooms share; every other module of endpoints, or package in it, is a room.
SHARED = {
    "access",
    "addresses",
    "captured",
    "export",
    "context",
    "guesses",
    "key_uses",
    "messages",
    "overview",
    "rooms",
    "sessions",
    "upkeep",
}


def rooms() -> dict[str, list[Path]]:
    """The files of each room."""
    found: dict[str, list[Path]] = {}
    for file in (ROOT / "endpoints").rglob("*.py"):
        name = file.relative_to(ROOT / "endpoints").parts[0].removesuffix(".py")
        if name not in {"__init__", *SHARED}:
            found.setdefault(name, []).append(file)
    return found


def test_no_room_needs_another():
    found = rooms()
    assert {*found} == {
        "sending",
        "log",
        "queue",
        "services",
        "signing_in",
        "keys",
        "configuration",
        "operating",
    }
    for name, files in found.items():
        others = {f"endpoints.{other}" for other in {*found} - {name}}
        for file in files:
            assert [i for i in imported_by(file) if i.startswith(tuple(others))] == [], file.name
    for name in SHARED:
        needed = imported_by(ROOT / f"endpoints/{name}.py")
        assert [i for i in needed if i.startswith(tuple(f"endpoints.{r}" for r in found))] == []


def test_no_view_is_known_by_a_string():
    views = {
        node.name
        for files in rooms().values()
        for file in files
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef) and node.decorator_list
    }
    assert {"send_message", "get_message", "list_domains"} <= views
    sources = [*ROOT.glob("*.py"), *(ROOT / "endpoints").rglob("*.*")]
    for file in (source for source in sources if source.suffix in {".py", ".html"}):
        text = file.read_text()
        assert "url_for" not in text, file.name
        if file.suffix == ".py":
            strings = {n.value for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Constant)}
            assert not views & {value for value in strings if isinstance(value, str)}, file.name


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
