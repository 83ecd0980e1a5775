"""The command lines of a page of the documentation."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Part:
    """Lines of a page that are typed together.

    Attributes:
        heading: they stand in the code blocks below it.
        comment: begin of the comment line (``# COVID-19-20``) that they follow, up to the next one
            or the block's end; "" for all lines of the blocks.
        page: the page's path in the project.
    """

    heading: str
    comment: str = ""
    page: str = "docs/data.md"

    def lines(self) -> str:
        """The lines, letter by letter.

        Raises:
            LookupError: the page has no such heading, or nothing is found there.
        """
        text = (REPOSITORY / self.page).read_text(encoding="utf-8")
        blocks = [(heading, block) for heading, block in _blocks(text) if heading == self.heading]
        found = [_commented(block, self.comment) if self.comment else block for _, block in blocks]
        lines = "\n".join(filter(None, found))
        if not lines:
            raise LookupError(f"{self.page}: no commands below {self.heading!r} {self.comment!r}")
        return lines


def _blocks(text: str) -> list[tuple[str, str]]:
    """(heading, code block without its fences) of a page."""
    blocks, heading, inside = [], "", None
    for line in text.splitlines():
        if line.startswith("```"):
            if inside is not None:
                blocks.append((heading, "\n".join(inside)))
            inside = [] if inside is None else None
        elif inside is not None:
            inside.append(line)
        elif match := re.match(r"#+ (.*)", line):
            heading = match[1]
    return blocks


def _commented(block: str, begin: str) -> str:
    """The lines behind the comment that begins so, up to the next comment."""
    taken, on = [], False
    for line in block.splitlines():
        if line.startswith("#"):
            on = line[1:].strip().startswith(begin)
        elif on:
            taken.append(line)
    return "\n".join(taken)
