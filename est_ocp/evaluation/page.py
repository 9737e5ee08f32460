"""One HTML page that needs no other file and no network."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path

_STYLE = """
:root { --ink: #1d2430; --soft: #5b6472; --line: #dfe3e8; --back: #ffffff; --band: #f5f7f9;
        --accent: #2563a8; }
* { box-sizing: border-box; }
body { margin: 0; background: var(--band); color: var(--ink);
       font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 2rem auto; padding: 2rem 2.5rem; background: var(--back);
       border: 1px solid var(--line); border-radius: 10px; }
h1 { font-size: 1.6rem; margin: 0 0 .3rem; }
h2 { font-size: 1.1rem; margin: 2.2rem 0 .6rem; padding-bottom: .3rem;
     border-bottom: 1px solid var(--line); }
p { margin: .4rem 0; } .soft { color: var(--soft); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
th, td { padding: .35rem .7rem; text-align: right; border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; }
th { color: var(--soft); font-weight: 600; }
tr.strong td { font-weight: 600; background: var(--band); }
tr.faint td { color: var(--soft); }
pre { background: var(--band); border: 1px solid var(--line); border-radius: 6px;
      padding: .7rem 1rem; overflow-x: auto; font-size: 13px; }
figure { margin: .8rem 0; } figure img { max-width: 100%; height: auto; }
figcaption { color: var(--soft); font-size: 13px; }
"""


def table(
    head: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] | None = None
) -> str:
    """Return an HTML table; ``classes`` gives each row's class."""
    classes = classes or [""] * len(rows)
    cells = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "".join(
        f'<tr class="{kind}">' + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>"
        for row, kind in zip(rows, classes, strict=True)
    )
    return (
        f'<div class="scroll"><table><thead><tr>{cells}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


def figure(path: Path, caption: str) -> str:
    """Return an HTML figure with the PNG file inside it."""
    data = base64.b64encode(path.read_bytes()).decode()
    text = html.escape(caption)
    return (
        f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
        f"<figcaption>{text}</figcaption></figure>"
    )


def commands(lines: Sequence[str]) -> str:
    """Return a block of command lines."""
    return f"<pre>{html.escape(chr(10).join(lines))}</pre>"


def paragraph(text: str, soft: bool = False) -> str:
    """Return a paragraph."""
    return f"<p{' class=soft' if soft else ''}>{html.escape(text)}</p>"


def page(title: str, subtitle: str, sections: Mapping[str, str]) -> str:
    """Return the whole page from its sections, heading to HTML."""
    body = "".join(
        f"<section><h2>{html.escape(heading)}</h2>{content}</section>"
        for heading, content in sections.items()
        if content
    )
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style></head><body><main>"
        f"<h1>{html.escape(title)}</h1>{paragraph(subtitle, soft=True)}{body}"
        "</main></body></html>\n"
    )
