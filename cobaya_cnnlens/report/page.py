"""A report as files: one self-contained HTML page, and its tables as CSV and JSON.

The bytes depend on the content alone: no dates, no paths.
"""

from __future__ import annotations

import base64
import csv
import html
import io
import json
from dataclasses import dataclass, field
from pathlib import Path

from matplotlib.figure import Figure

from ..files import atomic_write
from .drawing import PAGE_DPI, png


@dataclass(frozen=True)
class Measured:
    """A number with its 1σ Monte-Carlo error, None where it has none."""

    value: float
    error: float | None = None

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.value:.4g}"
        if not self.error > 0:
            return f"{self.value:.4g} ± {self.error:.1g}"
        # Two digits of the error, and the value as far.
        exponent = int(f"{self.error:e}".split("e")[1])
        if exponent > -4 and abs(self.value) < 1e5:
            digits = max(0, 1 - exponent)
            return f"{self.value:.{digits}f} ± {self.error:.{digits}f}"
        return f"{self.value:.3e} ± {self.error:.1e}"


Cell = str | int | float | Measured | None


@dataclass(frozen=True)
class Table:
    """``name`` is that of its files; a row has a cell per column."""

    name: str
    caption: str
    columns: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


@dataclass(frozen=True)
class Picture:
    """A figure, what it shows, and its resolution on the page."""

    caption: str
    figure: Figure
    dpi: int = PAGE_DPI


@dataclass(frozen=True)
class Missing:
    """What a report cannot show, why, and the command that mends it."""

    what: str
    why: str
    command: str


@dataclass
class Section:
    """One part of the report; ``notes`` are paragraphs."""

    name: str
    title: str
    notes: list[str] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)


STYLE = """
body{font:16px/1.5 system-ui,sans-serif;color:#1b1b1b;max-width:1160px;margin:0 auto;padding:16px}
h1{font-size:1.6rem;line-height:1.2}h2{font-size:1.25rem;margin-top:2.2em;border-bottom:1px solid
#ccc}figure{margin:1em 0}img{max-width:100%;height:auto}figcaption,caption{font-size:.9rem;
color:#444;text-align:left;padding:.3em 0}.wide{overflow-x:auto}table{border-collapse:collapse;
font-size:.85rem;font-variant-numeric:tabular-nums}td,th{padding:.2em .7em;border-bottom:1px solid
#ddd;text-align:right;white-space:nowrap}th{white-space:normal;vertical-align:bottom}
td:first-child,th:first-child{text-align:left}
.better{color:#0a6b2d}.worse{color:#a3180e}.missing{background:#fdf0ee;border-left:4px solid
#a3180e;padding:.5em 1em;overflow-wrap:anywhere;font-size:.9rem}nav a{margin-right:1em;
white-space:nowrap}nav{line-height:2}code{font-size:.9em}
"""


def render(title: str, preface: list[str], sections: list[Section]) -> str:
    """The page's HTML."""
    links = " ".join(f'<a href="#{s.name}">{html.escape(s.title)}</a>' for s in sections)
    parts = [
        "<!DOCTYPE html>",
        '<html lang="en"><head><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>",
        f"<h1>{html.escape(title)}</h1>",
        *(f"<p>{html.escape(p)}</p>" for p in preface),
        f"<nav>{links}</nav>",
        *(_section(s) for s in sections),
        "</body></html>\n",
    ]
    return "\n".join(parts)


def _section(section: Section) -> str:
    parts = [f'<section id="{section.name}"><h2>{html.escape(section.title)}</h2>']
    parts += [f"<p>{html.escape(note)}</p>" for note in section.notes]
    if section.missing:
        gaps = (
            f"<li><b>{html.escape(gap.what)}</b>: {html.escape(gap.why)}<br>"
            f"<code>{html.escape(gap.command)}</code></li>"
            for gap in section.missing
        )
        parts.append(f'<div class="missing"><b>Missing</b><ul>{"".join(gaps)}</ul></div>')
    for picture in section.pictures:
        data = base64.b64encode(png(picture.figure, picture.dpi)).decode()
        caption = html.escape(picture.caption)
        parts.append(
            f'<figure><img alt="{caption}" src="data:image/png;base64,{data}">'
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts += [_table(table) for table in section.tables]
    return "\n".join([*parts, "</section>"])


def _table(table: Table) -> str:
    head = "".join(f"<th>{html.escape(c)}</th>" for c in table.columns)
    rows = []
    for row in table.rows:
        cells = (
            f'<td class="{text}">{text}</td>'
            if (text := html.escape(_text(cell))) in ("better", "worse")
            else f"<td>{text}</td>"
            for cell in row
        )
        rows.append(f"<tr>{''.join(cells)}</tr>")
    return (
        f'<div class="wide"><table><caption>{html.escape(table.caption)}</caption>'
        f"<thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table></div>"
    )


def _text(cell: Cell) -> str:
    if cell is None:
        return "–"
    return f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def write(folder: Path, title: str, preface: list[str], sections: list[Section]) -> Path:
    """Write ``index.html``, ``tables.json`` and a CSV per table; return the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        table.name: {
            "caption": table.caption,
            "rows": [_as_record(table.columns, row) for row in table.rows],
        }
        for section in sections
        for table in section.tables
    }
    gaps = list(dict.fromkeys(gap for section in sections for gap in section.missing))
    text = json.dumps(
        {"tables": content, "missing": [vars(gap) for gap in gaps]}, indent=1, ensure_ascii=False
    )
    _put(folder / "tables.json", text + "\n")
    for section in sections:
        for table in section.tables:
            _put(folder / f"{table.name}.csv", _as_csv(table))
    page = folder / "index.html"
    _put(page, render(title, preface, sections))
    return page


def _as_record(columns, row) -> dict:
    record = {}
    for column, cell in zip(columns, row, strict=True):
        if isinstance(cell, Measured):
            record[column] = float(cell.value)
            if cell.error is not None:
                record[f"{column} error"] = float(cell.error)
        else:
            record[column] = cell
    return record


def _as_csv(table: Table) -> str:
    records = [_as_record(table.columns, row) for row in table.rows]
    names = list(dict.fromkeys(name for record in records for name in record))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(records)
    return text.getvalue()


def _put(path: Path, text: str) -> None:
    with atomic_write(path) as partial:
        partial.write_text(text, encoding="utf-8")
