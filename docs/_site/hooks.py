"""Hooks of mkdocs: pages that are generated, and pages that live outside of docs/.

Files outside of docs/ (cards, READMEs, benchmarks) appear under repository/ with their path in the
repository, so that a link that works in the repository works in the site, too. The notebooks of
examples/ become the tutorials. Schemas, the command line and docstrings become the reference.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path, PurePosixPath

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import notebooks
import reference

ROOT = Path(__file__).parent.parent.parent
OUTSIDE = "repository"
PAGES = (
    "CONTRIBUTING.md", "CHANGELOG.md", "models/**/*.md", "export/*.md", "serving/*.md",
    "examples/*.md", "benchmarks/**/*.md",
)  # fmt: skip
# A link or an image; not in code: blocks and spans of code are cut out first.
LINK = re.compile(r"(\]\()([^)\s]+)(\))")
CODE = re.compile(r"(```.*?```|``.*?``|`[^`\n]*`)", re.S)


def on_files(files, config):
    """Add the generated pages, those outside of docs/, and every file that a page links to."""
    for source, content in reference.pages().items():
        files.append(File.generated(config, source, content=content))
    for source, content in notebooks.pages().items():
        files.append(File.generated(config, source, content=content))
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            name = path.relative_to(ROOT).as_posix()
            content = path.read_text(encoding="utf-8")
            files.append(File.generated(config, f"{OUTSIDE}/{name}", content=content))
    for file in list(files.documentation_pages()):
        for _, target, _ in LINK.findall(CODE.sub("", file.content_string)):
            name = _repository_path(file.src_uri, target)
            if name is None or name.startswith("docs/") or name.endswith((".md", "/")):
                continue
            source = _site_path(name)
            path = ROOT / name
            if source not in files.src_uris and path.is_file():
                files.append(File.generated(config, source, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Point the links that leave docs/ to where their targets are in the site."""

    def replace(match: re.Match) -> str:
        before, target, after = match.groups()
        name = _repository_path(page.file.src_uri, target)
        if name is None:
            return match[0]
        source = _site_path(name)
        if source not in files.src_uris:
            raise PluginError(f"{page.file.src_uri}: a link to '{target}', which does not exist")
        anchor = f"#{target.partition('#')[2]}" if "#" in target else ""
        up = "../" * (len(PurePosixPath(page.file.src_uri).parts) - 1)
        return f"{before}{up}{source}{anchor}{after}"

    parts = CODE.split(markdown)
    return "".join(
        part if number % 2 else LINK.sub(replace, part) for number, part in enumerate(parts)
    )


def _repository_path(page: str, target: str) -> str | None:
    """Return the path in the repository that a link of a page leads to; None for other links."""
    path = target.partition("#")[0]
    if not path or "://" in target or path.startswith("mailto:"):
        return None
    if page.startswith(f"{OUTSIDE}/"):
        folder = PurePosixPath(page.removeprefix(f"{OUTSIDE}/")).parent
    elif page.startswith("tutorials/") and "_files/" not in path:
        folder = PurePosixPath("examples")
    elif page.startswith(("tutorials/", "reference/")):
        return None  # generated for the site
    else:
        folder = PurePosixPath("docs") / PurePosixPath(page).parent
    resolved = (ROOT / folder / path).resolve()
    if not resolved.is_relative_to(ROOT):
        raise PluginError(f"{page}: a link to '{target}', which leaves the repository")
    name = resolved.relative_to(ROOT).as_posix()
    if resolved.is_dir():
        return f"{name}/README.md" if (resolved / "README.md").exists() else f"{name}/"
    return name


def _site_path(name: str) -> str:
    """Return the path in the site of a file of the repository."""
    if name == "README.md":
        return "index.md"
    if name.startswith("examples/") and name.endswith(".ipynb"):
        return f"tutorials/{PurePosixPath(name).stem}.md"
    return name.removeprefix("docs/") if name.startswith("docs/") else f"{OUTSIDE}/{name}"
