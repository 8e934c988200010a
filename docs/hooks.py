"""MkDocs hooks: pages that are files of the repository, pictures from other folders, and links between the two."""

import re
from pathlib import Path

from mkdocs.structure.files import File


ROOT = Path(__file__).parents[1]

# Pages that show a file which also has to be read where it lies
PAGES = {
    "contributing.md": "CONTRIBUTING.md",
    "recipes.md": "examples/configs/README.md",
    "clusters.md": "ds_configs/README.md",
}
PICTURES = ("spaces/demo", "benchmarks/results")


def on_files(files, config):
    """Add the pictures as `images/NAME.png`."""
    for folder in PICTURES:
        for path in sorted((ROOT / folder).glob("*.png")):
            files.append(File.generated(config, f"images/{path.name}", abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page, **kwargs) -> str:
    """Show the file a page stands for, and make links to files of the repository links to pages and pictures."""
    if source := PAGES.get(page.file.src_uri):
        markdown = (ROOT / source).read_text(encoding="utf8")
    for page_name, file in PAGES.items():
        markdown = re.sub(rf"\]\((?:\.\./)*{re.escape(file)}", f"]({page_name}", markdown)
    markdown = re.sub(r"\]\((?:\.\./)*docs/", "](", markdown)
    return re.sub(rf"\]\((?:\.\./)*(?:{'|'.join(PICTURES)})/(\w+\.png)\)", r"](images/\1)", markdown)
