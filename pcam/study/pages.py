"""One page in two forms: Markdown, and the same as a single HTML file that needs nothing else.

The page is written once, in Markdown. Whatever a user may have named (labels, titles, paths) is escaped, so that it can
neither break a table nor become live HTML.
"""

import re
from collections.abc import Mapping, Sequence
from importlib.resources import files
from typing import Any, Final
from urllib.parse import quote
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import markdown
from jinja2 import Environment, StrictUndefined

_ENTITIES: Final = {"&": "&amp;", "<": "&lt;", "~": "&#126;", "$": "&#36;"}
"""Characters that are markup of HTML, or that not every reader of Markdown lets a backslash escape."""


class Block(str):
    """Text that is Markdown already, and so is not escaped again."""

    __slots__ = ()


def escape(text: str) -> str:
    """Escape text so that Markdown shows it as it is, on one line, anywhere but at the beginning of a line.

    Args:
        text: Any text; spaces, ends of lines and control characters become single spaces.

    Returns:
        Markdown without any markup.
    """
    line = " ".join("".join(char if char.isprintable() else " " for char in text).split())
    markup = r"&(?=[#\w])|<(?=[\w/!?])|[~$\\`*_{}\[\]|#]"
    return re.sub(markup, lambda found: _ENTITIES.get(found[0], f"\\{found[0]}"), line)


def _escape_beginning(line: str) -> str:
    """Escape what would begin a list or a quotation at the beginning of a line."""
    return re.sub(r"^([-+>])|^(\d+)([.)])", r"\2\\\1\3", line)


def table_block(caption: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> Block:
    """Write a table with its caption above it.

    Args:
        caption: What the table shows, in whole sentences.
        header: The head of each column.
        rows: The cells of each row, as many as there are columns.

    Returns:
        The table.
    """
    lines = [header, ["---"] * len(header), *rows]
    cells = [[cell if line is lines[1] else escape(cell) for cell in line] for line in lines]
    return Block("\n".join([f"*{escape(caption)}*", "", *(f"| {' | '.join(line)} |" for line in cells)]))


def picture_block(path: str, caption: str, alternative: str) -> Block:
    """Write a picture with its caption below it.

    Args:
        path: The path of the picture, relative to the page.
        caption: What it shows, in whole sentences.
        alternative: The same for people who cannot see it.

    Returns:
        The picture.
    """
    return Block(f"![{escape(alternative)}]({quote(path)})\n\n*{escape(caption)}*")


def render_markdown(template: str, context: Mapping[str, Any]) -> str:
    """Fill a template of this folder.

    Args:
        template: The name of the file. Every value that it prints is escaped, unless it is a `Block`.
        context: The values.

    Returns:
        A page of Markdown.
    """
    environment = Environment(
        autoescape=False,  # noqa: S701  # of HTML; `finalize` escapes for Markdown
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        finalize=lambda value: value if isinstance(value, Block) else _escape_beginning(escape(str(value))),
    )
    page = environment.from_string(_read(template)).render(context)
    return re.sub(r"\n{3,}", "\n\n", page)


def render_html(title: str, page: str, pictures: Mapping[str, str]) -> str:
    """Make a single HTML file of a page of Markdown.

    A paragraph of emphasised text is the caption of the table below it or the picture above it; a quotation is a box.

    Args:
        title: The title of the window.
        page: The page, as `render_markdown` gives it.
        pictures: A data URI of each picture that the page shows, by its path.

    Returns:
        The file, which loads nothing from elsewhere.
    """
    converted = markdown.markdown(page, extensions=["tables"], output_format="xhtml")
    root = ElementTree.fromstring(f"<main>{converted}</main>")  # noqa: S314  # just made, without what users named as HTML
    _make_figures(root, {quote(path): source for path, source in pictures.items()})
    environment = Environment(autoescape=True, undefined=StrictUndefined, keep_trailing_newline=True)
    body = ElementTree.tostring(root, encoding="unicode", method="html")
    return environment.from_string(_read("page.html.j2")).render(title=title, body=body)


def _read(name: str) -> str:
    return (files("pcam.study") / name).read_text(encoding="utf-8")


def _make_figures(root: Element, pictures: Mapping[str, str]) -> None:
    """Put tables and pictures into figures with their captions, and pictures into the file itself."""
    waiting = list(root)
    for child in waiting:
        root.remove(child)
    while waiting:
        child = waiting.pop(0)
        if _is_only(child, "img"):
            figure, image = Element("figure"), child[0]
            image.set("src", pictures[image.get("src", "")])
            figure.append(image)
            if waiting and _is_only(waiting[0], "em"):
                figure.append(_caption(waiting.pop(0)))
            _row_of_pictures(root).append(figure)
        elif _is_only(child, "em") and waiting and waiting[0].tag == "table":
            root.append(_table(waiting.pop(0), child))
        else:
            if child.tag == "blockquote":
                child.set("class", "missing")
            root.append(child)


def _is_only(paragraph: Element, tag: str) -> bool:
    """Whether a paragraph holds one element and nothing else."""
    found = paragraph.tag == "p" and len(paragraph) == 1 and paragraph[0].tag == tag
    return found and not (paragraph.text or "").strip() and not (paragraph[0].tail or "").strip()


def _row_of_pictures(root: Element) -> Element:
    """Find the row that pictures which follow each other share, or begin one."""
    if len(root) and root[-1].get("class") == "pictures":
        return root[-1]
    row = Element("div", {"class": "pictures"})
    root.append(row)
    return row


def _table(table: Element, caption: Element) -> Element:
    figure, frame = Element("figure"), Element("div", {"class": "table", "tabindex": "0"})  # scrolls by keyboard too
    frame.append(table)
    for head in table.iter("th"):
        head.set("scope", "col")
    figure.extend([_caption(caption), frame])
    return figure


def _caption(paragraph: Element) -> Element:
    caption = paragraph[0]
    caption.tag, caption.tail = "figcaption", None
    return caption
