"""Count names that say a grammatical role instead of a thing: ``python -m tests.vocabulary``.

A local variable or a parameter called ``found`` or ``held`` does not say what it holds; ``volume``, ``scores`` or
``mask`` do. `test_vocabulary` keeps the number small, and keeps one definition of each shared idea.
"""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "mrhdata"
ROLES = frozenset({"found", "given", "held", "made", "told", "said", "shown"})


def roles() -> Counter[str]:
    """Functions of each file that have a local variable or a parameter named by its role."""
    counts: Counter[str] = Counter()
    for path in sorted(PACKAGE.rglob("*.py")):
        for function in _functions(path):
            names = {name for name in _locals(function) if name in ROLES}
            counts[str(path.relative_to(PACKAGE))] += len(names)
    return +counts


@cache
def parse(path: Path) -> ast.Module:
    """Return the syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _functions(path: Path) -> Iterator[ast.FunctionDef]:
    tree = parse(path)
    yield from (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef))


def _locals(function: ast.FunctionDef) -> Iterator[str]:
    arguments = function.args
    yield from (a.arg for a in (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs))
    yield from (a.arg for a in (arguments.vararg, arguments.kwarg) if a is not None)
    for node in _own(function):
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id


def _own(function: ast.FunctionDef) -> Iterator[ast.AST]:
    """Nodes of a function without those of functions in it."""
    waiting = list(ast.iter_child_nodes(function))
    while waiting:
        node = waiting.pop()
        yield node
        if not isinstance(node, ast.FunctionDef):
            waiting.extend(ast.iter_child_nodes(node))


def definitions(*names: str) -> list[str]:
    """Places that define a class, a function or an alias of one of these names, anywhere in the package."""
    return [place for place in _all_definitions() if place.partition(":")[2] in names]


@cache
def _all_definitions() -> list[str]:
    """Return every class, function and alias of the package with its file."""
    places = []
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(parse(path)):
            defined = [node.name] if isinstance(node, ast.ClassDef | ast.FunctionDef) else _assigned(node)
            places += [f"{path.relative_to(PACKAGE)}:{name}" for name in defined]
    return places


def _assigned(node: ast.AST) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else []
    return [target.id for target in targets if isinstance(target, ast.Name)]


if __name__ == "__main__":
    for place, count in roles().most_common():
        print(f"{count:4} {place}")
    print(f"{sum(roles().values())} locals are named by their role")
    for idea in (("Box", "Span", "Region"), ("Source", "PatchSet"), ("in_bytes", "_bytes", "parse_memory")):
        print(f"{' or '.join(idea)}: {definitions(*idea)}")
