"""The notebooks of examples/ as pages, with the outputs that they were committed with."""

from __future__ import annotations

import re
from pathlib import Path

from nbconvert import MarkdownExporter

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
ESCAPES = re.compile(r"\x1b\[[0-9;]*m")


def pages() -> dict[str, str | bytes]:
    """Return path in the site -> content: a page for each notebook, and its pictures."""
    result: dict[str, str | bytes] = {}
    for path in sorted(EXAMPLES.glob("*.ipynb")):
        resources = {"output_files_dir": f"{path.stem}_files", "unique_key": path.stem}
        text, resources = MarkdownExporter().from_filename(str(path), resources=resources)
        result[f"tutorials/{path.stem}.md"] = ESCAPES.sub("", text)
        for name, data in resources["outputs"].items():
            result[f"tutorials/{name}"] = data
    return result
