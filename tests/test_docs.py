"""The pages say what is so: links lead somewhere, imports work, commands and options exist."""

import ast
import importlib
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import typer

from tfllm.cli import VERBS

ROOT = Path(__file__).parent.parent
PAGES = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "models/**/*.md", "export/*.md", "serving/*.md",
                    "examples/*.md",
                    "benchmarks/*.md")
    for path in ROOT.glob(pattern)
    if path.name not in ("CHANGELOG.md", "log.md")
)  # fmt: skip
RECIPES = sorted(ROOT.glob("models/*/*.yaml"))
GENERATED = ("tutorials/", "reference/")  # made for the site, which the slow test builds
CODE = re.compile(r"```.*?```|`[^`\n]*`", re.S)


def name(path):
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_named_files_exist(path):
    files = set(re.findall(r"(?:tfllm|tests|benchmarks)/[\w/]+\.py", path.read_text()))
    assert [file for file in sorted(files) if not (ROOT / file).exists()] == []


def python_blocks():
    for path in PAGES:
        for number, block in enumerate(re.findall(r"```python\n(.*?)```", path.read_text(), re.S)):
            yield pytest.param(block, id=f"{name(path)}-{number}")


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_to_files(path):
    links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)\s]*)?\)", CODE.sub("", path.read_text()))
    dead = [link for link in links if not (path.parent / link).exists()]
    assert [link for link in dead if not link.startswith(GENERATED)] == []


@pytest.mark.parametrize("block", python_blocks())
def test_imports_work(block):
    for node in ast.walk(ast.parse(block)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tfllm":
            module = importlib.import_module(node.module)
            for each in node.names:
                if not hasattr(module, each.name):
                    importlib.import_module(f"{node.module}.{each.name}")
        if isinstance(node, ast.Import):
            for each in node.names:
                if each.name.split(".")[0] == "tfllm":
                    importlib.import_module(each.name)


@cache
def options_of(verb, subcommand):
    """The options of a command, or None where there is no such command."""
    if verb not in VERBS:
        return None
    function = importlib.import_module(f"tfllm.cli.{verb}").COMMANDS.get(subcommand)
    if function is None:
        return None
    application = typer.Typer(add_completion=False)
    application.command()(function)
    command = typer.main.get_command(application)
    return {option for each in command.params for option in (*each.opts, *each.secondary_opts)}


def commands_of(path):
    """The words of every `tfllm ...` command of a page or of a recipe's first comment."""
    text = path.read_text().replace("\\\n#", " ").replace("\\\n", " ")
    if path.suffix == ".yaml":
        lines = re.findall(r"^#\s+(?:\$ )?(tfllm [a-z].*)$", text, re.M)
    else:
        fenced = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.S | re.M)
        blocks = [block for language, block in fenced if language in ("", "console", "sh")]
        blocks += re.findall(
            r"^    .*$", re.sub(r"^```.*?^```$", "", text, flags=re.S | re.M), re.M
        )
        lines = [line for block in blocks for line in re.findall(r"(?<!\w)tfllm [a-z].*", block)]
    for line in lines:
        try:
            yield shlex.split(line, comments=True)
        except ValueError:  # a quotation that goes on in the next line
            yield line.split("'")[0].split('"')[0].split()


@pytest.mark.parametrize("path", [*PAGES, *RECIPES], ids=name)
def test_commands_and_options_exist(path):
    for words in commands_of(path):
        verb, rest = words[1], words[2:]
        subcommand = ""
        known = options_of(verb, "")
        if known is None and rest:
            subcommand = rest[0]
            known = options_of(verb, subcommand)
        assert known is not None, f"no command: {' '.join(words)}"
        if verb == "launch":  # hands the rest to `tfllm train`
            known = known | (options_of("train", "") or set())
        used = {word.split("=")[0] for word in rest if re.match(r"--?[a-z]", word)} - {"--help"}
        unknown = used - known
        assert not unknown, f"{unknown} in: {' '.join(words)}"


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path):
    pytest.importorskip("mkdocs", reason="the site: pip install 'tfllm[docs]'")
    pytest.importorskip("mkdocstrings", reason="the site: pip install 'tfllm[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    page = (tmp_path / "reference" / "recipe.html").read_text(encoding="utf-8")
    assert "learning_rate" in page
    front = (tmp_path / "reference" / "python" / "tfllm.html").read_text(encoding="utf-8")
    assert 'id="tfllm.model.InferenceModel.generate"' in front
