"""Reports as Markdown, and as one HTML file that contains its pictures and can be read in light and dark mode."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping
from html import escape
from pathlib import Path

from ..shared.training.folder import write_text

STYLE = """
:root { color-scheme: light dark; --text: #1a1a1a; --back: #fff; --line: #d4d4d4; --soft: #f3f3f3; --link: #0b5cad;
  --good: #00693e; --bad: #a8251a; --c0: #0072b2; --c1: #c44e00; --c2: #00805d; --c3: #a8437f; --c4: #7a6200;
  --c5: #5b54c9; --c6: #b3261e; --c7: #4d5a66 }
@media (prefers-color-scheme: dark) { :root { --text: #e6e6e6; --back: #16181b; --line: #41464c; --soft: #22262a;
  --link: #8ec5ff; --good: #66d9a3; --bad: #ff9c8f; --c0: #5ab4f0; --c1: #ff9d5c; --c2: #3fd0a4; --c3: #f2a3cf;
  --c4: #e0c04a; --c5: #b3adff; --c6: #ff8a80; --c7: #b4c0cc } }
* { box-sizing: border-box }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 84rem; margin: 2rem auto; padding: 0 1rem; color: var(--text);
  background: var(--back); overflow-wrap: break-word }
p, li { max-width: 48rem } p:has(img) { max-width: none }
h1, h2, h3 { line-height: 1.25 } h2 { margin-top: 2.2rem } a { color: var(--link) }
.scroll { overflow: auto; max-height: 85vh; margin: 1rem 0; border: 1px solid var(--line); border-radius: 4px }
.figure { max-height: none }
.scroll:focus-visible, summary:focus-visible, a:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
table { border-collapse: separate; border-spacing: 0; font-size: 13px; min-width: 100% }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .6rem; text-align: left; white-space: nowrap;
  font-variant-numeric: tabular-nums }
tbody tr:last-child > * { border-bottom: 0 }
thead th { position: sticky; top: 0; background: var(--soft); z-index: 1 }
tbody th { font-weight: 400 }
.better { color: var(--good); font-weight: 600 } .worse { color: var(--bad); font-weight: 600 }
img { max-width: 100%; height: auto; background: #fff }
svg { display: block; width: 100%; min-width: 36rem; max-width: 60rem; height: auto }
svg text { fill: currentColor; font-family: system-ui, sans-serif }
code, pre { background: var(--soft) } pre { padding: .6rem; overflow-x: auto }
summary { cursor: pointer; padding: .4rem 0 }
@media (max-width: 600px) { tbody th, tbody td:nth-child(2) { white-space: normal } }
@media print { .scroll { max-height: none; overflow: visible } }
"""


def cell(text: str) -> str:
    """Returns text for a cell of a Markdown table, on one line, with the signs that Markdown would read escaped."""
    line = " ".join(text.split()).replace("&", "&amp;").replace("<", "&lt;")
    return re.sub(r"([\\`*|\[\]~]|\b_|_\b)", r"\\\1", line)


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def page(markdown: str, title: str, pictures: Mapping[str, str]) -> str:
    """Returns an HTML page of Markdown, which needs no other file and no script.

    Tables scroll within themselves under a head that stays, and are reached by the keyboard.

    Args:
        markdown: the text.
        title: title of the page.
        pictures: for the name of each picture that the text links to, its SVG, or a `data:` address.
    """
    from markdown_it import MarkdownIt

    body = MarkdownIt("commonmark").enable("table").render(markdown)
    for name, picture in pictures.items():
        if picture.startswith("data:"):
            body = body.replace(f'src="{name}"', f'src="{picture}"')
        else:
            body = re.sub(rf'<p><img src="{re.escape(name)}" alt="([^"]*)"[^>]*></p>', labeled(picture), body)
    body = body.replace("<th>", '<th scope="col">')
    body = re.sub(r"<tr>\n<td>(.*?)</td>", r'<tr>\n<th scope="row">\1</th>', body)
    body = re.sub(r"<td>(. (better|worse))</td>", r'<td class="\2">\1</td>', body)
    headings = re.split(r"(?=<h[1-6]>|<summary>)", body)
    body = "".join(with_regions(part) for part in headings)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<style>{STYLE}</style></head>\n<body><main>\n{body}</main></body></html>\n"
    )


def with_regions(section: str) -> str:
    """Returns the HTML of a section with a scrolling region around each table, named by the section's heading."""
    found = re.match(r"<(h[1-6]|summary)>(.*?)</\1>", section, flags=re.S)
    name = re.sub(r"<[^>]*>", "", found[2]) if found else "table"
    start = f'<div class="scroll" role="region" tabindex="0" aria-label="Table: {name}">\n<table>'
    return section.replace("<table>", start).replace("</table>", "</table>\n</div>")


def labeled(svg: str) -> Callable[[re.Match[str]], str]:
    """Returns the replacement of an image by an SVG that scrolls within itself, with the image's text as its label."""

    def replace(found: re.Match[str]) -> str:
        drawn = svg.replace("<svg ", f'<svg role="img" aria-label="{found[1]}" ', 1)
        return f'<div class="scroll figure" role="region" tabindex="0" aria-label="Figure">\n{drawn}</div>'

    return replace


def write(
    folder: Path, name: str, markdown: str, title: str, drawings: Mapping[str, str] | None = None
) -> tuple[Path, Path]:
    """Writes `name.md`, which links to the PNG pictures of the folder, and `name.html`, which contains them.

    Args:
        folder: the folder.
        name: name of both files, without the ending.
        markdown: the text.
        title: title of the page.
        drawings: for names of PNG pictures, the SVG that the page contains in their place.
    """
    source = write_text(folder / f"{name}.md", markdown)
    pictures = {
        picture.name: f"data:image/png;base64,{base64.b64encode(picture.read_bytes()).decode()}"
        for picture in sorted(folder.glob("*.png"))
        if picture.name in markdown
    }
    return source, write_text(source.with_suffix(".html"), page(markdown, title, pictures | dict(drawings or {})))
