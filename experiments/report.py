"""Reports as Markdown, and as one HTML file that contains its pictures."""

from __future__ import annotations

import base64
from pathlib import Path

from ..shared.training.folder import write_text

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 66rem; margin: 2rem auto; padding: 0 1rem; color: #1a1a1a;
  background: #fff }
table { border-collapse: collapse; font-size: 13px; display: block; overflow-x: auto }
th, td { border-bottom: 1px solid #ddd; padding: .3rem .6rem; text-align: left; white-space: nowrap }
td:nth-child(n+3) { font-variant-numeric: tabular-nums }
img { max-width: 100%; height: auto } code, pre { background: #f4f4f4 } pre { padding: .6rem; overflow-x: auto }
"""


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def write(folder: Path, name: str, markdown: str, title: str) -> tuple[Path, Path]:
    """Writes `name.md`, which links to the PNG pictures of the folder, and `name.html`, which contains them."""
    from markdown_it import MarkdownIt

    source = folder / f"{name}.md"
    write_text(source, markdown)
    body = MarkdownIt("commonmark").enable("table").render(markdown)
    for picture in sorted(folder.glob("*.png")):
        data = base64.b64encode(picture.read_bytes()).decode()
        body = body.replace(f'src="{picture.name}"', f'src="data:image/png;base64,{data}"')
    page = source.with_suffix(".html")
    write_text(
        page,
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width">'
        f"<style>{STYLE}</style></head><body>\n{body}</body></html>\n",
    )
    return source, page
