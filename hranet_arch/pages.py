"""The HTML pages of this package, with what they have in common put into them."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def read_page(name: str) -> str:
    """The page's file with style and divider in it; what else stands in double braces is the caller's."""
    page = (FOLDER / name).read_text("utf-8")
    for mark, file in (("{{STYLE}}\n", "pages.css"), ("{{DIVIDER_SCRIPT}}", "divider.js")):
        page = page.replace(mark, (FOLDER / file).read_text("utf-8"))
    return page
