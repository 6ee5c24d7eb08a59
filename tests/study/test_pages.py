"""Pages show what they are given as it is: in Markdown, and in the HTML that is made of it."""

from html.parser import HTMLParser

import pytest
from markdown_it import MarkdownIt

from pcam.study.pages import escape, picture_block, render_html, table_block

NASTY = [
    "a|b || c\\|d",
    "*bold* **bolder** _low_ __lower__ momentum_0.1_x",
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "[here](javascript:alert(1)) ![there](http://example.org/x.png)",
    "`code` ``more`` \\` \\",
    "&lt;b&gt; &amp; R&D &#60; a & b",
    "<!-- hidden --> <?php ?>",
    "~~gone~~ $x_1$ $$y$$",
    "# heading #",
    "{: .class } {{ plan }} {% raw %}",
    "p < .001 > 0",
    "1. first",
    "- item",
    "> quotation",
    "\"quoted\" 'too'",
    "<http://example.org>",
]


class Texts(HTMLParser):
    """The texts of table cells and list items, and every tag and attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.cells: list[str] = []
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.widths: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs
        if tag in ("td", "th"):
            self.cells.append("")
            self.widths[-1] += 1
        if tag == "tr":
            self.widths.append(0)

    def handle_data(self, text: str) -> None:
        if self.cells:
            self.cells[-1] += text


def read(html: str) -> Texts:
    texts = Texts()
    texts.feed(html)
    return texts


def test_a_table_shows_every_text_as_it_is_in_html() -> None:
    block = table_block("A caption.", ["text", "twice"], [[text, text] for text in NASTY])
    found = read(render_html("title", block, {}))
    assert [cell.strip() for cell in found.cells][2:] == [text for text in NASTY for _ in range(2)]
    assert set(found.widths) == {2}
    assert not {"script", "img", "a", "em", "strong", "code"} & set(found.tags)
    assert {name for name, _ in found.attributes} <= {
        "lang",
        "charset",
        "name",
        "content",
        "class",
        "tabindex",
        "scope",
    }


def test_a_table_shows_every_text_as_it_is_where_others_render_markdown() -> None:
    """As CommonMark with GitHub's tables and strikethrough, HTML allowed."""
    block = table_block("A caption.", ["text", "twice"], [[text, text] for text in NASTY])
    found = read(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(block))
    assert [cell.strip() for cell in found.cells][2:] == [text for text in NASTY for _ in range(2)]
    assert not {"script", "img", "a", "strong", "code", "s"} & set(found.tags)


def test_text_is_one_line_without_control_characters() -> None:
    assert escape("one\n\n  two\tthree\x1b[31m\x00\x02") == "one two three \\[31m"
    assert escape("MobileNetV2, random, 13,500 steps (p < .001; 95 %)") == (
        "MobileNetV2, random, 13,500 steps (p < .001; 95 %)"
    )


def test_pictures_that_follow_each_other_share_a_row_and_have_captions() -> None:
    blocks = [
        picture_block(f"figures/{name}.svg", f"Caption of *{name}*.", f'What "{name}" <shows>')
        for name in ("a (1)", "b")
    ]
    page = render_html("<t>", "\n\n".join([*blocks, "A paragraph."]), {
        "figures/a (1).svg": "data:first", "figures/b.svg": "data:second",
    })  # fmt: skip
    assert "<title>&lt;t&gt;</title>" in page
    assert page.count('<div class="pictures">') == 1
    found = read(page)
    assert found.tags.count("figure") == found.tags.count("figcaption") == 2
    assert [value for name, value in found.attributes if name == "src"] == ["data:first", "data:second"]
    assert [value for name, value in found.attributes if name == "alt"] == ['What "a (1)" <shows>', 'What "b" <shows>']
    assert "<figcaption>Caption of *b*.</figcaption></figure></div>" in page.replace("\n", "")


def test_a_picture_that_is_not_there_is_a_bug() -> None:
    with pytest.raises(KeyError):
        render_html("title", picture_block("figures/a.svg", "A caption.", "a"), {})


def test_a_quotation_is_a_box() -> None:
    assert '<blockquote class="missing">' in render_html("title", "> Not run:\n>\n> - one", {})
