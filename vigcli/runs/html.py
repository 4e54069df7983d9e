"""Self-contained HTML pages: one file, no network, no scripts; readable on a phone, on paper and in the dark.

What a page says is left to the reports. Text is escaped unless it is `Html`, which `element` alone should make.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

COLOURS = {  # name -> on light, on dark; pictures are drawn in those on light
    "ink": ("#1c1c1e", "#e8e8ea"),
    "quiet": ("#6b6b70", "#a0a0a8"),
    "line": ("#d4d4d8", "#48484e"),
    "paper": ("#ffffff", "#17171a"),
    "blue": ("#1f5fa8", "#7db4f0"),
    "red": ("#b5502c", "#f09a74"),
    "green": ("#2e7d4f", "#74c795"),
    "violet": ("#7a4fa3", "#c09be6"),
    "amber": ("#a87a00", "#e0b84a"),
    "cyan": ("#0f7f8c", "#62c4d0"),
}
_VOID = {"br", "col", "meta"}
_PAPER = re.compile(r"arXiv:(\d{4}\.\d{4,5})")


class Html(str):
    """Markup that is finished and is not escaped again."""


def element(tag: str, *children: Any, **attributes: Any) -> Html:
    """`<tag attributes>children</tag>`. Whatever is not `Html` is escaped, None is left out; `class_` is `class`."""
    given = "".join(f' {name.rstrip("_").replace("_", "-")}="{escape(str(v))}"' for name, v in attributes.items())
    if tag in _VOID:
        return Html(f"<{tag}{given}>")
    return Html(f"<{tag}{given}>{joined(children)}</{tag}>")


def joined(children: Iterable[Any], between: str = "") -> Html:
    """Children one after another, each escaped unless it is `Html`."""
    texts = (c if isinstance(c, Html) else escape(str(c)) for c in children if c is not None)
    return Html(escape(between).join(texts))


def linked(text: str) -> Html:
    """Text in which papers (`arXiv:2406.05850`) are links."""
    parts = _PAPER.split(text)
    return joined(
        element("a", f"arXiv:{part}", href=f"https://arxiv.org/abs/{part}") if i % 2 else part
        for i, part in enumerate(parts)
    )


def breakable(text: str) -> Html:
    """Text that may be broken after its slashes and underscores, so that columns of a phone can hold it."""
    return Html(re.sub(r"([/_])", r"\1<wbr>", escape(text)))


def section(title: str, *content: Any) -> Html:
    """A part of a page under its heading; without content there is no part."""
    found = [part for part in content if part]
    return element("section", element("h2", title), *found) if found else Html()


def table(columns: Sequence[Any], rows: Iterable[Sequence[Any]], caption: str = "") -> Html:
    """A table whose first cells name the rows; None is a dash, and a wide one scrolls by itself."""

    def line(name: Any, *values: Any) -> Html:
        cells = (element("td", "–" if value is None else value) for value in values)
        return element("tr", element("th", name, scope="row"), *cells)

    head = element("tr", *(element("th", column, scope="col") for column in columns))
    content = element("thead", head), element("tbody", *(line(*row) for row in rows))
    made = element("table", element("caption", caption) if caption else None, *content)
    return element("div", made, class_="wide")


def listing(items: Iterable[Any]) -> Html:
    """Points one under another; nothing where there are none."""
    points = [element("li", item) for item in items]
    return element("ul", *points) if points else Html()


def figure(svg: str, caption: Any, prefix: str) -> Html:
    """A picture of matplotlib's SVG with its caption, in the page's font and colours.

    Args:
        prefix: of its ids, which a page's pictures must not share.
    """
    body = re.sub(r"^.*?(?=<svg\b)|<metadata>.*?</metadata>|<!--.*?-->", "", svg, flags=re.DOTALL)
    body = re.sub(r'\s(xmlns(:\w+)?|version|width|height)="[^"]*"', "", body[: (end := body.index(">"))]) + body[end:]
    body = body.replace("<svg", f'<svg role="img" aria-label="{escape(str(caption))}"', 1)
    body = re.sub(r'\bid="', f'id="{prefix}-', body.replace("xlink:href", "href"))
    body = re.sub(r'(href="|url\()#', rf"\1#{prefix}-", body)
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    body = re.sub(r"(font: (?:[\w.]+ )*[\d.]+px) [^;\"]*", r"\1 system-ui, sans-serif", body)
    for name, (light, _) in COLOURS.items():
        body = body.replace(light, f"var(--{name})")
    return element("figure", Html(body), element("figcaption", caption))


def page(title: str, *content: Any) -> Html:
    """A whole document. Its policy forbids scripts and everything from elsewhere."""
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    head = element(
        "head",
        element("meta", charset="utf-8"),
        element("meta", http_equiv="Content-Security-Policy", content=policy),
        element("meta", name="viewport", content="width=device-width, initial-scale=1"),
        element("title", title),
        element("style", Html(_STYLE)),
    )
    body = element("body", element("main", element("h1", title), *content))
    return Html(f"<!doctype html>\n{element('html', head, body, lang='en')}\n")


def _variables(dark: bool) -> str:
    return "".join(f"--{name}:{pair[dark]};" for name, pair in COLOURS.items())


_STYLE = f"""
:root{{color-scheme:light;{_variables(False)}}}
@media screen and (prefers-color-scheme:dark){{:root{{color-scheme:dark;{_variables(True)}}}}}
*{{box-sizing:border-box}}
body{{margin:0;background:var(--paper);color:var(--ink);font:1rem/1.5 system-ui,sans-serif}}
main{{max-width:48rem;margin:0 auto;padding:1rem}}
h1{{font-size:1.5rem;line-height:1.25;margin:.5rem 0}}
h2{{font-size:1.15rem;margin:2rem 0 .5rem;border-bottom:1px solid var(--line)}}
p,ul,figure{{margin:.6rem 0}} ul{{padding-left:1.2rem}}
a{{color:var(--blue)}}
.lead{{font-size:1.1rem}} .quiet,caption,figcaption{{color:var(--quiet);font-size:.85rem}}
.wide{{overflow-x:auto;margin:.6rem 0}}
table{{border-collapse:collapse;font-size:.85rem;line-height:1.35;width:100%}}
caption{{text-align:left;padding:.2rem 0}}
td{{font-variant-numeric:tabular-nums}}
th,td{{text-align:left;vertical-align:top;padding:.3rem .7rem .3rem 0;border-bottom:1px solid var(--line)}}
th{{font-weight:600}} th[scope=row]{{min-width:4.2rem}} tbody th{{font-weight:400;color:var(--quiet)}}
code{{font-size:.85em;overflow-wrap:anywhere}}
svg{{display:block;width:100%;height:auto;max-width:44rem}}
@media print{{:root{{font-size:13px}} main{{max-width:none;padding:0}} svg{{max-width:34rem}}
figure,tr{{break-inside:avoid}} h2,caption,thead{{break-after:avoid}}}}
"""
