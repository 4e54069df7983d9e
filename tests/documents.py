"""Reading a page as a browser would, and refusing one that is not well-formed or not self-contained."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"br", "col", "meta", "wbr"}
LOADING = {"src", "srcset", "data", "poster", "action", "formaction", "background", "xlink:href"}


class Document(HTMLParser):
    """Elements in their order, and the text of each."""

    def __init__(self, text: str):
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == [], f"not closed: {self._open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        assert len(given) == len(attrs), f"an attribute of {tag} stands twice"
        self.elements.append((tag, given))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self._open, f"</{tag}> closes nothing"
        assert (last := self._open.pop()) == tag, f"</{tag}> closes {last}"

    def handle_data(self, data: str) -> None:
        self.texts += [(tag, data) for tag in self._open]

    def text(self, tag: str) -> str:
        """All text inside elements of a tag."""
        return "".join(data for known, data in self.texts if known == tag)

    @property
    def headings(self) -> list[str]:
        return [data for tag, data in self.texts if tag == "h2"]


def read(text: str) -> Document:
    """A page, once it is seen to be well-formed, without scripts, and to load nothing."""
    document = Document(text)
    for tag, attributes in document.elements:
        assert tag not in {"script", "link", "iframe", "object", "embed", "img", "base", "form"}
        assert not LOADING & set(attributes), (tag, attributes)
        assert not any(name.startswith("on") for name in attributes), (tag, attributes)
        if "href" in attributes and not attributes["href"].startswith("#"):
            assert tag == "a", tag
            assert attributes["href"].startswith("https://arxiv.org/abs/")
    assert "@import" not in text
    assert "url(http" not in text
    return document
