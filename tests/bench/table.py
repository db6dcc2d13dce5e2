"""Figures as Markdown tables, which read well on a terminal too."""

from collections.abc import Iterable, Sequence

from tests.bench.figures import Figure, number


def shown(figure: Figure) -> str:
    """The median, and the spread where it was measured more than once."""
    if len(figure.values) == 1 or figure.low == figure.high:
        return number(figure.median)
    return f"{number(figure.median)} ({number(figure.low)} to {number(figure.high)})"


def table(figures: Iterable[Figure]) -> str:
    """One line for each case and contender, one column for each unit."""
    figures = list(figures)
    units = list(dict.fromkeys(figure.unit for figure in figures))
    cells: dict[tuple[str, str], dict[str, str]] = {}
    for figure in figures:
        cells.setdefault((figure.case, figure.who), {})[figure.unit] = shown(figure)
    lines = [
        [case, who, *(found.get(unit, "") for unit in units)]
        for (case, who), found in cells.items()
    ]
    return render(["case", "who", *units], lines)


def render(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Columns padded to one width; all but the first two are numbers, to the right."""
    every = [list(head), *map(list, lines)]
    widths = [max(len(line[column]) for line in every) for column in range(len(head))]
    rule = [
        "-" * width if column < 2 else "-" * (width - 1) + ":"
        for column, width in enumerate(widths)
    ]
    padded = [
        [
            cell.ljust(width) if column < 2 else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        for line in [every[0], rule, *every[1:]]
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in padded)
