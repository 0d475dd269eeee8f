"""Every link, anchor and image of the built site that should be within it is there; no network.

python docs/check_links.py docs/_build
"""

from __future__ import annotations

import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Page(HTMLParser):
    """What a page names (``id``), and what it points to: (attribute, address)."""

    def __init__(self, text: str):
        super().__init__()
        self.ids: set[str] = set()
        self.links: list[tuple[str, str]] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        for key, value in attributes:
            if value is None:
                continue
            if key == "id" or (key == "name" and tag == "a"):
                self.ids.add(value)
            elif key in ("href", "src"):
                self.links.append((f"{tag} {key}", value))


def broken_links(site: Path) -> list[str]:
    """One line for each address that leads nowhere, and for each that a reader's browser would
    fetch from elsewhere to show the page."""
    pages = {p.resolve(): Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}
    found = []
    for path, page in pages.items():
        if "_static" in path.parts:
            continue
        for kind, address in page.links:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                if parts.scheme in ("http", "https", "") and kind != "a href":
                    found.append(f"{path.name}: {kind} {address} is fetched from elsewhere")
                continue
            target = path if not parts.path else (path.parent / unquote(parts.path)).resolve()
            if target.is_dir():
                target = target / "index.html"
            if not target.exists():
                found.append(f"{path.name}: {kind} {address}: no such file")
            elif (
                target in pages
                and parts.fragment
                and unquote(parts.fragment) not in pages[target].ids
            ):
                found.append(f"{path.name}: {kind} {address}: no such anchor")
    return sorted(set(found))


if __name__ == "__main__":
    problems = broken_links(Path(sys.argv[1]))
    print("\n".join(problems) or "no broken link")
    sys.exit(bool(problems))
