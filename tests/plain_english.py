"""Check that prose and names are plain English: ``python -m tests.plain_english`` prints each line that breaks a rule.

Docstrings, comments, messages, command line helps and Markdown pages are searched for patterns that a native scientist
would not write. CONTRIBUTING.md gives the rules and their reasons; only those that a pattern can hold are checked here.
"""

from __future__ import annotations

import ast
import io
import itertools
import re
import sys
import tokenize
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ("mrhdata", "tests", "benchmarks", "docs")
PAGES = ("*.md", "docs/**/*.md", "benchmarks/*.md", "benchmarks/results/*.md")

#: Pattern -> remedy. They are searched in all prose.
PATTERNS = {
    r"\b(?:is|are|was|were|be) no (?!longer\b|more\b|less\b|fewer\b|better\b|worse\b)": "write 'is not a', or 'has no'",
    r"\b(?:is|are) (?-i:none)\b": "name the thing that is missing",
    r"\b(?:go|goes|going|went|gone) on\b": "write 'resume' or 'continue'",
    r"\b(?:is|are|was|were) told\b|\btold (?:apart|by|of|in|from)\b": "name the message, or write 'distinguish'",
    r"\bbeside\b": "write 'next to', 'besides' or 'compared with'",
    r"\balone\b": "write 'only'",
    r"\bliv(?:es?|ing) on\b": "write 'depends on'",
    r"\bstands? under (?:its|their|that) name": "write 'exists'",
    r"\b(?:and|,) what (?:is|was|it|they|a|the)\b": "name the noun: 'the files that ...'",
}
#: First words that a docstring, a parameter description or a help must not have.
OPENINGS = re.compile(r"^(?:Of|What|Where|Whose|Those|Who)\b(?!.*\?$)")


def main() -> int:
    """Print every finding; the exit code is 1 if there is one."""
    findings = [*_python(), *_markdown()]
    for path, line, text, remedy in findings:
        print(f"{path.relative_to(ROOT)}:{line}: {remedy}: {text.strip()[:100]}")
    print(f"{len(findings)} lines break a rule of plain English")
    return 1 if findings else 0


def _python() -> Iterator[tuple[Path, int, str, str]]:
    for folder in SOURCES:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path == Path(__file__) or "_build" in path.parts:
                continue
            source = path.read_text(encoding="utf-8")
            for line, text in _prose(source):
                yield from ((path, line, text, remedy) for remedy in _broken(text))
            for line, text in _openings(source):
                if OPENINGS.match(text):
                    yield path, line, text, "start with the thing, or with a verb"


def _markdown() -> Iterator[tuple[Path, int, str, str]]:
    for pattern in PAGES:
        for path in sorted(ROOT.glob(pattern)):
            if "_build" in path.parts or "generated" in path.parts:
                continue
            for number, text in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
                yield from ((path, number, text, remedy) for remedy in _broken(text))


def _broken(text: str) -> list[str]:
    return [remedy for pattern, remedy in PATTERNS.items() if re.search(pattern, text, flags=re.IGNORECASE)]


def _prose(source: str) -> Iterator[tuple[int, str]]:
    """Lines of comments and strings, with their numbers."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type in (tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", -1)):
            if token.type == tokenize.STRING and " " not in token.string:
                continue  # a key or a name, not prose
            for offset, text in enumerate(token.string.splitlines()):
                yield token.start[0] + offset, text


def _openings(source: str) -> Iterator[tuple[int, str]]:
    """First lines of docstrings and of descriptions of parameters, and helps of the command line."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node, clean=False):
            string = node.body[0].value  # type: ignore[attr-defined]
            lines = string.value.splitlines()
            yield string.lineno, lines[0].strip()
            for number, (above, text) in enumerate(itertools.pairwise(lines), 1):
                name = re.match(r"^( *)[\w, *]+(?: : .*)?$", above)
                if name and text.startswith(name[1] + "    ") and " : " in above:
                    yield string.lineno + number, text.strip()
        if isinstance(node, ast.keyword) and node.arg == "help" and isinstance(node.value, ast.Constant):
            yield node.value.lineno, str(node.value.value)


if __name__ == "__main__":
    sys.exit(main())
