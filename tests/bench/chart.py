"""A bar chart as plain SVG: no script, no font to load, readable on light and dark pages."""

from collections.abc import Sequence
from xml.sax.saxutils import escape

from tests.bench.figures import Figure, number

LABEL, BARS, VALUE = 300, 420, 110  # widths in pixels
ROW, HEAD, MARGIN = 22, 44, 12
COLOURS = ("#2a78d6", "#c7641b", "#2c8f5b", "#8a5cd0", "#b8448c", "#7a8794", "#a58a16", "#3b9aa8")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328; }
.title { font-weight: 600; font-size: 15px; }
.group { font-weight: 600; }
.spread { stroke: #1f2328; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; }
  .spread { stroke: #e6edf3; }
}
"""


def chart(title: str, figures: Sequence[Figure]) -> str:
    """Horizontal bars of one unit, grouped by case; the line on a bar is its spread."""
    most = max([figure.high for figure in figures], default=0) or 1.0
    names = list(dict.fromkeys(figure.who for figure in figures))
    colours = {name: COLOURS[place % len(COLOURS)] for place, name in enumerate(names)}
    alone = len(names) == 1
    parts, top, case = [], HEAD, ""
    for figure in figures:
        if not alone and figure.case != case:
            parts.append(_text(MARGIN, top + 15, figure.case, "group"))
            top += ROW
        case = figure.case
        label = figure.case if alone else figure.who
        parts += _bar(figure, label, top, BARS / most, colours[figure.who])
        top += ROW
    width, height = LABEL + BARS + VALUE, top + MARGIN
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
            f' width="{width}" height="{height}" role="img">',
            f"<title>{escape(title)}</title>",
            f"<style>{STYLE}</style>",
            _text(MARGIN, 24, title, "title"),
            *parts,
            "</svg>\n",
        ]
    )


def _bar(figure: Figure, label: str, top: int, scale: float, colour: str) -> list[str]:
    end, low, high = (LABEL + v * scale for v in (figure.median, figure.low, figure.high))
    middle = top + ROW / 2
    parts = [
        _text(LABEL - 8, top + 15, label, "label", anchor="end"),
        f'<rect x="{LABEL}" y="{top + 3}" width="{max(1.0, end - LABEL):.1f}"'
        f' height="{ROW - 6}" rx="2" fill="{colour}"/>',
    ]
    if high > low:
        parts.append(
            f'<line class="spread" x1="{low:.1f}" x2="{high:.1f}" y1="{middle}" y2="{middle}"/>'
        )
    parts.append(_text(max(end, high) + 6, top + 15, number(figure.median), "value"))
    return parts


def _text(x: float, y: float, text: str, kind: str, anchor: str = "start") -> str:
    where = f'x="{x:.1f}" y="{y}" text-anchor="{anchor}"'
    return f'<text class="{kind}" {where}>{escape(text)}</text>'
