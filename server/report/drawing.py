"""Turns a matplotlib figure into an SVG element that can stand inside a page: no ids shared with another figure, no
style that reaches beyond it, no address of any kind, and a title and a description for those who cannot see it.
"""

import io
import re
import xml.etree.ElementTree as ET

import matplotlib
from markupsafe import Markup
from matplotlib.figure import Figure

NECROSIS, RECURRENCE = "#c24e00", "#0067a5"
INK, SOFT, GRID, PAPER = "#1b2733", "#5b6875", "#d9dfe5", "#ffffff"
ACCENT, BAND = "#0067a5", "#9cc7e3"
LINE_COLORS = ("#0067a5", "#c24e00", "#00795a", "#8a4f9e", "#8f6a00", "#3b3f46")
"""Dark enough on white, and told apart by colour-blind eyes (after Okabe and Ito, 2008); lines differ in dashes too."""
LINE_STYLES = ((0, ()), (0, (5, 2)), (0, (1, 1.4)), (0, (5, 1.5, 1, 1.5)))

_STYLE: dict[str, object] = {
    "svg.fonttype": "none",
    "font.family": "sans-serif",
    "font.size": 11,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.7,
    "text.color": INK,
    "text.parse_math": False,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.labelsize": 10,
    "ytick.labelsize": 10,
    "legend.fontsize": 10,
    "legend.frameon": False,
    "figure.facecolor": "none",
    "savefig.facecolor": "none",
}

_HREF = "{http://www.w3.org/1999/xlink}href"
_REFERENCE = re.compile(r"url\(#([^)]*)\)")


def new_figure(width: float, height: float) -> Figure:
    """An empty figure; width and height in CSS pixels at full size."""
    return Figure(figsize=(width / 72, height / 72), layout="constrained")


def style() -> dict[str, object]:
    """The look of every figure, for `matplotlib.rc_context`."""
    return _STYLE


def svg_of(figure: Figure, *, key: str, title: str, description: str) -> Markup:
    """The figure as an `<svg>` element.

    Args:
        figure: Drawn within `matplotlib.rc_context(style())`.
        key: A name of its own within the page: ids begin with it.
        title: What the figure shows, in a few words.
        description: What it says, for those who cannot see it.
    """
    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": key}):
        figure.savefig(buffer, format="svg", metadata=nothing)
    drawn = ET.fromstring(buffer.getvalue())
    width, height = (round(72 * inches, 1) for inches in figure.get_size_inches())
    svg = ET.Element("svg", viewBox=f"0 0 {width:g} {height:g}", role="img", id=key)
    svg.set("aria-labelledby", f"{key}-title {key}-description")
    svg.set("style", f"max-width:{1.15 * width:.0f}px")
    for tag, text in (("title", title), ("desc", description)):
        ET.SubElement(svg, tag, id=f"{key}-{'title' if tag == 'title' else 'description'}").text = text
    svg.extend(_adopted(child, key) for child in drawn if not _is_page_wide(child))
    return Markup(ET.tostring(svg, encoding="unicode"))  # escaped by ElementTree


def _is_page_wide(element: ET.Element) -> bool:
    """Matplotlib's own style rule would hold for the whole page; what it sets stands in the report's style sheet."""
    return any(child.tag.endswith("}style") for child in element) or element.tag.endswith("}metadata")


def _adopted(element: ET.Element, key: str) -> ET.Element:
    """A copy without namespaces, which inline SVG does not need, and with ids and references under the figure's key."""
    copy = ET.Element(element.tag.rpartition("}")[2])
    copy.text, copy.tail = (text.strip() if text else None for text in (element.text, element.tail))
    for name, value in element.attrib.items():
        if name == "id":
            # matplotlib numbers its groups from 1 in every figure; only what is referred to keeps an id.
            if element.tag.endswith(("}path", "}clipPath")):
                copy.set("id", f"{key}-{value}")
        elif name == _HREF:
            copy.set("href", f"#{key}-{value.removeprefix('#')}")
        else:
            copy.set(name, _REFERENCE.sub(rf"url(#{key}-\1)", value.replace("\n", " ")))
    copy.extend(_adopted(child, key) for child in element)
    return copy
