"""Pages of HTML: well-formed, safe and self-contained, whatever is put into them."""

from __future__ import annotations

import io
import re

import pytest
from matplotlib.figure import Figure

from tests.documents import read
from vigcli.runs.html import COLOURS, Html, breakable, element, figure, joined, linked, listing, page, section, table

HOSTILE = "<script>alert('x')</script> & \"y\""


def test_text_is_escaped_and_markup_is_not() -> None:
    made = element("p", HOSTILE, element("b", "bold"), 3, None, class_="lead", aria_label=HOSTILE)
    assert made.startswith('<p class="lead" aria-label="&lt;script&gt;')
    assert made.endswith("&amp; &quot;y&quot;<b>bold</b>3</p>")
    assert "<script" not in made + joined([HOSTILE], HOSTILE) + breakable(HOSTILE) + linked(HOSTILE)
    assert "<script" not in table((HOSTILE,), [(HOSTILE, HOSTILE)], HOSTILE) + listing([HOSTILE])


def test_a_page_is_whole_and_forbids_what_is_not_in_it() -> None:
    document = read(page(HOSTILE, section("One", element("p", "text")), section("Nothing", Html(), None)))
    assert document.headings == ["One"]
    assert document.text("title") == document.text("h1") == HOSTILE
    policy = next(a for tag, a in document.elements if a.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy["content"]
    assert {"viewport"} <= {a.get("name") for tag, a in document.elements if tag == "meta"}


def test_a_page_is_drawn_in_light_and_in_the_dark_but_printed_in_light() -> None:
    style = read(page("x")).text("style")
    dark = style.index("@media screen and (prefers-color-scheme:dark)")
    for name, (light, on_dark) in COLOURS.items():
        assert style.index(f"--{name}:{light}") < dark < style.index(f"--{name}:{on_dark}")


@pytest.mark.parametrize("on", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize("name", sorted(set(COLOURS) - {"paper", "line"}))
def test_text_can_be_read_on_its_ground(name: str, on: int) -> None:
    def luminance(colour: str) -> float:
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(COLOURS[name][on]), luminance(COLOURS["paper"][on])))
    text_or_graphics = 4.5 if name in ("ink", "quiet", "blue") else 3.0  # WCAG 2.1, 1.4.3 and 1.4.11
    assert (high + 0.05) / (low + 0.05) >= text_or_graphics


def test_papers_are_links() -> None:
    assert linked("arXiv:2406.05850 Table 3") == (
        '<a href="https://arxiv.org/abs/2406.05850">arXiv:2406.05850</a> Table 3'
    )


def test_a_picture_takes_the_colours_of_the_page_and_shares_no_ids() -> None:
    drawn = Figure()
    drawn.subplots().plot([1, 2], "o", color=COLOURS["blue"][0])
    written = io.StringIO()
    drawn.savefig(written, format="svg")
    pictures = [figure(written.getvalue(), HOSTILE, prefix) for prefix in ("one", "two")]
    document = read(page("x", *pictures))
    assert "var(--blue)" in pictures[0]
    assert COLOURS["blue"][0] not in pictures[0]
    assert "<metadata" not in pictures[0]
    for picture, prefix in zip(pictures, ("one", "two"), strict=True):
        ids = set(re.findall(r' id="([^"]*)"', picture))
        used = set(re.findall(r'(?:href="|url\()#([^")]*)', picture))
        assert used
        assert used <= ids
        assert all(name.startswith(f"{prefix}-") for name in ids)
    assert [a["aria-label"] for tag, a in document.elements if tag == "svg"] == [HOSTILE, HOSTILE]
