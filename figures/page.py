"""The HTML of the report: a document with its style inside, sections, tables, figures.

Strings named ``body``, ``rows`` or ``cells`` are HTML already; every other argument is text and is escaped here.
"""

import re
from collections.abc import Sequence
from html import escape

STYLE = """
:root { --ink: #1b1f24; --soft: #57606a; --line: #d8dee4; --band: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 1.5rem 1.2rem 4rem; color: var(--ink); background: #fff;
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0.4rem 0 1rem; }
h2 { font-size: 1.3rem; margin: 2.4rem 0 0.6rem; padding-bottom: 0.2rem; border-bottom: 1px solid var(--line); }
p { max-width: 78ch; }
nav { margin-bottom: 0.8rem; }
nav a { margin-right: 1.2rem; color: #0a5a8a; }
.banner { border: 1px solid var(--line); border-left: 8px solid; border-radius: 6px; padding: 0.9rem 1.1rem;
          background: var(--band); }
.banner.good { border-left-color: #00795a; } .banner.bad { border-left-color: #b3261e; }
.banner strong { font-size: 1.15rem; }
.cards { display: flex; flex-wrap: wrap; gap: 0.4rem 2rem; margin-top: 0.6rem; }
.cards b { font-size: 1.25rem; margin-right: 0.4rem; } .cards span { color: var(--soft); }
.run { color: var(--soft); font-size: 0.9rem; margin-top: 0.4rem; overflow-wrap: anywhere; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: 0.88rem; margin: 0.8rem 0; }
th, td { text-align: left; vertical-align: top; padding: 0.4rem 0.5rem; border-bottom: 1px solid var(--line); }
th { background: var(--band); white-space: nowrap; }
td { font-variant-numeric: tabular-nums; }
td + td { white-space: nowrap; }
td .source, td .remark, td .status { color: var(--soft); font-size: 0.92em; }
code, pre { font-family: ui-monospace, "DejaVu Sans Mono", Consolas, monospace; font-size: 0.95em; }
pre { background: var(--band); border: 1px solid var(--line); border-radius: 6px; padding: 0.7rem 0.9rem;
      overflow-x: auto; }
.verdict { font-weight: 600; white-space: nowrap; padding: 0.1rem 0.45rem; border-radius: 4px; border: 1px solid; }
.holds { color: #00593f; background: #e3f4ee; } .refuted { color: #7a4300; background: #fdf0dc; }
.fails { color: #8c1d18; background: #fce8e6; }
.claims td:first-child { min-width: 19rem; width: 100%; }
.plain td { white-space: normal; overflow-wrap: anywhere; }
.banner.open { border-left-color: #0a5a8a; }
.warning { border: 1px solid #b26a00; border-left: 8px solid #b26a00; border-radius: 6px; padding: 0.6rem 1.1rem;
           background: #fdf0dc; margin: 0.8rem 0; max-width: none; }
.rule { margin-top: 1rem; } .formula { font-size: 1.05rem; margin: 0.3rem 0; } sub, sup { line-height: 0; }
.first { display: grid; grid-template-columns: minmax(0, 2fr) minmax(0, 3fr); gap: 0 1.5rem; align-items: start; }
.first figure { margin: 0.8rem 0; }
@media (max-width: 860px) { .first { grid-template-columns: 1fr; } }
.lead td:first-child { color: var(--soft); min-width: 7.5rem; overflow-wrap: normal; }
.numbers { width: auto; } .numbers td { white-space: nowrap; }
.unfinished { color: var(--soft); }
details { border: 1px solid var(--line); border-radius: 6px; padding: 0.5rem 0.9rem; margin: 0.7rem 0; }
summary { cursor: pointer; font-weight: 600; }
.said { white-space: pre-wrap; overflow-wrap: anywhere; background: var(--band); border: 1px solid var(--line);
        border-radius: 6px; padding: 0.5rem 0.8rem; margin: 0.2rem 0 0.6rem; font-size: 0.92rem; }
.sides { display: grid; grid-template-columns: 1fr 1fr; gap: 0 1rem; }
.sides h4 { margin: 0.3rem 0 0; font-size: 0.92rem; } .pair { border-top: 1px solid var(--line); padding: 0.6rem 0; }
@media (max-width: 640px) { .sides { grid-template-columns: 1fr; } }
figure { margin: 1.6rem 0 2.8rem; } figure img { display: block; width: 100%; max-width: 800px; height: auto; }
figcaption { max-width: 78ch; color: #30363d; font-size: 0.95rem; margin-top: 0.5rem; }
@media print { nav { display: none; } figure { break-inside: avoid; } }
"""


_CONTROL = {code: "\ufffd" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def to_bytes(text: str) -> bytes:
    """A page as UTF-8, without control characters and lone surrogates, which HTML and UTF-8 cannot hold."""
    return text.translate(_CONTROL).encode("utf-8", "replace")


LINKS = (("claims", "claims"), ("figures", "figures"), ("reproduce", "how to repeat it"))
"""Sections of the report of `nashpo verify`."""


def document(title: str, body: str, links: Sequence[tuple[str, str]] = LINKS) -> str:
    """A whole page with links (anchor, text) to its sections."""
    menu = "".join(f'<a href="#{anchor}">{escape(text)}</a>' for anchor, text in links)
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1><nav>{menu}</nav>\n{body}\n</body></html>\n"
    )


def banner(sentence: str, tone: str, cards: Sequence[tuple[str, str]], run: str) -> str:
    """The verdict, coloured by ``tone`` (good, bad or open), over numbers (what, value) and a line about the run."""
    numbers = "".join(f"<div><b>{escape(value)}</b><span>{escape(what)}</span></div>" for what, value in cards)
    said = f"<strong>{escape(sentence)}</strong>"
    body = f'{said}<div class="cards">{numbers}</div><div class="run">{prose(run)}</div>'
    return f'<div class="banner {escape(tone)}">{body}</div>'


def formula(text: str) -> str:
    """A formula in plain text with its indices, ``π_{t+1}`` and ``ref^{ητ}``, set below and above the line."""
    tags = {"_": "sub", "^": "sup"}

    def tagged(found: re.Match[str]) -> str:
        tag = tags[found[1]]
        return f"<{tag}>{found[2] or found[3]}</{tag}>"

    return re.sub(r"([_^])(?:\{([^{}]*)\}|(\w))", tagged, escape(text))


def prose(text: str) -> str:
    """Text with what stands between backticks set as code; a percent sign stays with its number."""
    parts = escape(text).replace(" %", "\u00a0%").split("`")
    return "".join(f"<code>{part}</code>" if i % 2 else part for i, part in enumerate(parts))


def section(anchor: str, title: str, body: str) -> str:
    """A section that the menu can lead to."""
    return f'<section id="{escape(anchor)}"><h2>{escape(title)}</h2>\n{body}\n</section>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], kind: str = "") -> str:
    """A table of cells that are HTML; without a head line where all its names are empty."""
    names = "".join(f"<th>{escape(name)}</th>" for name in head)
    first = f"<thead><tr>{names}</tr></thead>" if any(head) else ""
    lines = "\n".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="wide"><table class="{escape(kind)}">{first}<tbody>\n{lines}\n</tbody></table></div>'


def figure(name: str, title: str, caption: str, png: str) -> str:
    """A picture given as base64, with its caption."""
    return (
        f'<figure id="figure-{escape(name)}"><img alt="{escape(title)}" src="data:image/png;base64,{png}">'
        f"<figcaption>{prose(caption)}</figcaption></figure>"
    )
