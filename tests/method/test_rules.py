"""What files may know: a strategy only `illava_lab.method`, and nobody but the models' room the type of a model."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import illava_lab
import illava_lab.method

PACKAGE = Path(illava_lab.__file__).parent
STRATEGIES = sorted(path for path in (PACKAGE.parent / "strategies").glob("*.py") if path.name != "__init__.py")
ASK_FOR_THE_TYPE = {
    "models/families.py",  # the one table of what a model is
    "models/values.py",  # which numbers a family's configuration must have; asked before any weights
    "models/frames.py",  # whether and how a family is shown videos; asked of a configuration, before any weights
    "models/processors.py",  # which stand-in a family's processor needs; asked of a configuration, before any weights
}


def imports(tree: ast.AST) -> Iterator[tuple[str, set[str]]]:
    """Every module that is imported, with the names that are taken from it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or ""), {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            yield from ((alias.name, set()) for alias in node.names)


@pytest.mark.parametrize("path", STRATEGIES, ids=lambda path: path.stem)
def test_a_strategy_knows_only_the_method_room_and_no_model(path: Path) -> None:
    for module, names in imports(ast.parse(path.read_text(encoding="utf-8"))):
        root = module.partition(".")[0]
        assert root not in ("", "strategies", "tests", "transformers"), f"{path.name} imports {module}"
        if root == "illava_lab":
            assert module == "illava_lab.method" and names <= set(illava_lab.method.__all__), f"{path.name}: {module}"


def statements(path: Path) -> int:
    """Lines on which a statement begins or ends, imports and docstrings aside."""
    lines: set[int] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if not isinstance(node, ast.stmt) or isinstance(node, (ast.Import, ast.ImportFrom)):
            continue
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            continue
        last = node.lineno if hasattr(node, "body") else node.end_lineno or node.lineno
        lines |= set(range(node.lineno, last + 1))
    return len(lines)


def test_strategies_are_short() -> None:
    """One file for each method; half of them say it in 45 lines, beside what explains it, and none takes 100."""
    lengths = sorted(map(statements, STRATEGIES))
    assert lengths and lengths[len(lengths) // 2] <= 45 and lengths[-1] <= 100


def test_only_the_models_room_asks_for_the_type_of_a_model() -> None:
    asking = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if (isinstance(node, ast.Attribute) and node.attr == "model_type")
        or (isinstance(node, ast.Constant) and node.value == "model_type")  # getattr, or a key of a configuration
    }
    assert asking == ASK_FOR_THE_TYPE
