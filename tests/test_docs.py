"""The documents against the project: links lead somewhere, commands and snippets are ones that exist."""

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from typer.main import get_command

import setdet
from setdet.cli import app
from setdet.training.config import TrainConfig

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted(
    path for pattern in ("*.md", "docs/**/*.md", "benchmarks/**/*.md") for path in ROOT.glob(pattern) if path.is_file()
)
NAMES = [str(path.relative_to(ROOT)) for path in DOCUMENTS]

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def prose(document: Path) -> str:
    """A document without its code blocks."""
    return _FENCE.sub("", document.read_text(encoding="utf-8"))


def blocks(document: Path, *languages: str) -> Iterator[str]:
    """The code blocks in any of `languages`."""
    for language, text in _FENCE.findall(document.read_text(encoding="utf-8")):
        if language in languages:
            yield text


def anchors(document: Path) -> set[str]:
    """The fragments that headings can be linked by."""
    headings = re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def shell_lines(document: Path) -> Iterator[list[str]]:
    """The commands in a document's shell blocks, split into words."""
    for text in blocks(document, "sh", "bash", "console"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line.removeprefix("$ "), comments=True)
            while words and re.fullmatch(r"[A-Z_]+=.*", words[0]):  # a variable for this one command
                words.pop(0)
            if words:
                yield words


def parse(words: list[str]) -> None:
    """Has the command line parse `setdet …` without running it; flags and values are checked."""
    command, path, rest = get_command(app), "setdet", words[1:]
    while rest and rest[0] in getattr(command, "commands", {}):
        command = command.commands[rest[0]]  # type: ignore[attr-defined]
        path, rest = f"{path} {rest[0]}", rest[1:]
    assert not hasattr(command, "commands") or not rest or rest[0].startswith("-"), f"no such command: {path} {rest[0]}"
    command.make_context(path, rest, resilient_parsing=rest == [])


def test_there_are_documents() -> None:
    assert {"README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/architecture.md", "docs/model.md"} <= set(NAMES)


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_links_lead_somewhere(document: Path) -> None:
    for text, target in _LINK.findall(prose(document)):
        if re.match(r"https?://|mailto:", target):
            continue
        path, _, fragment = target.partition("#")
        linked = (document.parent / path).resolve() if path else document
        assert linked.exists(), f"{target}: there is no such file"
        assert linked.is_relative_to(ROOT), f"{target}: leads out of the project"
        if fragment:
            assert fragment in anchors(linked), f"{target}: there is no such heading"
        if linked.suffix == ".py":  # `Name` links to the file that defines it
            source = linked.read_text(encoding="utf-8")
            for name in re.findall(r"`(\w+)`", text):
                assert re.search(rf"^\s*(class|def) {name}\b|^{name}\b", source, re.MULTILINE), f"{name} is not there"


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_commands_exist(document: Path) -> None:
    for words in shell_lines(document):
        if words[0] == "setdet":
            parse(words)
        if words[0] == "make":
            targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
            assert {word for word in words[1:] if "=" not in word} <= targets, words
        if words[0] == "python" and words[1].endswith(".py"):
            assert (ROOT / words[1]).is_file(), words[1]


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_fields_that_are_set_exist(document: Path) -> None:
    quoted = re.findall(r"--set[ =]('[^']+'|\"[^\"]+\"|[^\s`)]+)", document.read_text(encoding="utf-8"))
    assignments = [one.strip("'\"") for one in quoted if "=" in one and one != "section.field=value"]
    TrainConfig().override(assignments)


def test_the_readme_shows_a_field_that_is_set() -> None:
    assert "--set augment." in (ROOT / "README.md").read_text(encoding="utf-8")  # what the test above reads


def test_a_wrong_command_is_noticed() -> None:
    for line in ("setdet trian data", "setdet train data --epoch-count 3", "setdet data chek x", "setdet val weights"):
        with pytest.raises(BaseException, match=r"(?i)no such|missing"):
            parse(line.split())


@pytest.mark.parametrize("document", DOCUMENTS, ids=NAMES)
def test_python_compiles_and_names_what_is_public(document: Path) -> None:
    for text in blocks(document, "python"):
        for node in ast.walk(ast.parse(text, filename=str(document))):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "setdet":
                assert node.attr in setdet.__all__, f"setdet.{node.attr} is not public"


def test_citation_names_the_paper() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["license"] == "Apache-2.0"
    papers = [citation["preferred-citation"], *citation["references"]]
    assert any(paper["title"] == "DETRs Beat YOLOs on Real-time Object Detection" for paper in papers)
