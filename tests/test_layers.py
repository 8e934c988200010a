"""The package's modules import each other in one direction, and only one of them needs gradio."""

import ast
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path


ROOT = Path(__file__).parents[1] / "cloud_hf"
# Registers classes by hook, so that it names modules above it
HOOKS = {"cloud_hf.auto_classes"}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


FILES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def imports(node: ast.AST) -> Iterator[ast.Import | ast.ImportFrom]:
    """Imports anywhere in a file, those in functions too, but not those for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import | ast.ImportFrom):
            yield child
        yield from imports(child)


def targets(name: str) -> set[str]:
    """Modules of the package that a module imports."""
    path = FILES[name]
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in imports(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        above = package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
        source = ".".join([*above, *([node.module] if node.module else [])])
        found |= {f"{source}.{alias.name}" if f"{source}.{alias.name}" in FILES else source for alias in node.names}
    return {module for module in found if module in FILES and module != name}


def test_no_module_imports_itself_by_way_of_others():
    graph = {name: targets(name) for name in FILES if name not in HOOKS}
    assert len(list(TopologicalSorter(graph).static_order())) >= len(
        graph
    )  # raises CycleError, which names the circle


def test_the_lower_rooms_import_nothing_from_the_upper_ones():
    upper = ("cloud_hf.evaluation", "cloud_hf.rl", "cloud_hf.commands", "cloud_hf.cli")
    for name in FILES:
        if name.startswith(("cloud_hf.data", "cloud_hf.training", "cloud_hf.serving")):
            wrong = {target for target in targets(name) if target.startswith(upper)}
            assert wrong <= {"cloud_hf.cli"}, f"{name} imports {wrong}"


def test_gradio_is_imported_in_one_file():
    users = [name for name, path in FILES.items() if "import gradio" in path.read_text("utf-8")]
    assert users == ["cloud_hf.spaces_ui"]
