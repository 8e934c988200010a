"""Find the members of upstream libraries that the library relies on without their being public API."""

import ast
from collections.abc import Iterator
from pathlib import Path


ROOT = Path(__file__).parents[2] / "cloud_hf"
LIBRARIES = ("accelerate", "datasets", "peft", "torch", "transformers", "trl", "vllm")


def modules() -> Iterator[ast.Module]:
    for path in sorted(ROOT.rglob("*.py")):
        yield ast.parse(path.read_text("utf-8"))


def submodule_imports() -> set[str]:
    """`module.name` of every import from below an upstream library's top level."""
    return {
        f"{node.module}.{alias.name}"
        for tree in modules()
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and not node.level and node.module
        for alias in node.names
        if node.module.split(".")[0] in LIBRARIES and "." in node.module
    }


def private_names() -> set[str]:
    """Underscore attributes that are read, called or overridden, and that no code of ours introduces."""
    used, ours = set(), set()
    for tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and _is_private(node.attr):
                is_own = (
                    isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self"
                )
                (ours if is_own else used).add(node.attr)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and _is_private(node.name):
                ours.add(node.name)
            elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                ours.add(node.target.id)
            elif isinstance(node, ast.Assign):
                ours.update(target.id for target in node.targets if isinstance(target, ast.Name))
    return used - ours


def own_private_methods() -> dict[str, set[str]]:
    """For each class with bases, the underscore methods and attributes it sets: overrides, if a base has them too."""
    found: dict[str, set[str]] = {}
    for tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                names = {child.name for child in node.body if isinstance(child, ast.FunctionDef)}
                names |= {
                    target.id
                    for child in node.body
                    if isinstance(child, ast.Assign)
                    for target in child.targets
                    if isinstance(target, ast.Name)
                }
                names |= {
                    child.attr
                    for child in ast.walk(node)
                    if isinstance(child, ast.Attribute)
                    and isinstance(child.value, ast.Name)
                    and child.value.id == "self"
                }
                found.setdefault(node.name, set()).update(name for name in names if _is_private(name))
    return found


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__")
