"""The HTML pages of this package, with what they have in common put into them."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def read_page(name: str) -> str:
    """The page's file, with ``divider.js`` in its place; what else stands in double braces is the caller's."""
    return (FOLDER / name).read_text("utf-8").replace("{{DIVIDER}}", (FOLDER / "divider.js").read_text("utf-8"))
