"""A page of HTML as its tests look at it."""

from __future__ import annotations

import html.parser


class Page(html.parser.HTMLParser):
    """Collects the cells of rows, links, images and the text of a page, and checks that its tags match."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.rows, self.links, self.images, self.open, self.words = [], [], [], [], []
        self.feed(source)
        assert not self.open
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value for name, value in attrs if name == "href"]
        self.images += [value for name, value in attrs if name == "src"]
        if tag not in ("meta", "img", "br"):
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)
        if "td" in self.open or "th" in self.open:
            self.rows[-1][-1] += data
