"""MkDocs hooks: pages from repository files, pictures from other folders, links between them, and the list of modules."""

import ast
import re
from pathlib import Path

from mkdocs.structure.files import File


ROOT = Path(__file__).parents[1]

# Pages that show a file that must also be readable in place
PAGES = {
    "contributing.md": "CONTRIBUTING.md",
    "recipes.md": "examples/configs/README.md",
    "clusters.md": "ds_configs/README.md",
}
# Folders whose modules the page modules.md lists
PACKAGES = ("cloud_hf", "examples")
PICTURES = ("spaces/demo", "benchmarks/results", "benchmarks/results/claims")


def on_files(files, config):
    """Add the pictures as `images/NAME.png`."""
    for folder in PICTURES:
        for path in sorted((ROOT / folder).glob("*.png")):
            files.append(File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    """Show the file that a page represents, and make links to files of the repository links to pages and pictures."""
    if source := PAGES.get(page.file.src_uri):
        markdown = (ROOT / source).read_text(encoding="utf8")
    if page.file.src_uri == "modules.md":
        markdown += list_modules()
    for page_name, file in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(file)}", f"]({page_name}", markdown)
    markdown = re.sub(r"\]\((?:\.\./)*docs/", "](", markdown)
    return re.sub(rf"\]\((?:\.\./)*(?:{'|'.join(PICTURES)})/(\w+\.png)\)", r"](images/\1)", markdown)


def list_modules() -> str:
    """Return a table per folder with the first sentence of each module's docstring."""
    folders: dict[Path, list[str]] = {}
    for path in sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf8")))
        if docstring and not (path.name == "__init__.py" and path.parent.name != "cloud_hf"):
            sentence = re.split(r"(?<=[.:])\s*\n\n|(?<=\.) ", docstring, maxsplit=1)[0]
            row = f"| `{path.name}` | {' '.join(sentence.split()).rstrip(':').replace('|', chr(92) + '|')} |"
            folders.setdefault(path.parent.relative_to(ROOT), []).append(row)
    return "".join(
        f"\n## {folder}\n\n| file | |\n|---|---|\n" + "\n".join(rows) + "\n"
        for folder, rows in sorted(folders.items())
    )
