"""Small charts as inline SVG, readable in light and dark and by screen readers. Pure functions of numbers.

Colours come from the page's CSS variables ``--s0`` ... ``--s5``; text is escaped here.
"""

from collections.abc import Mapping, Sequence
from html import escape

Point = tuple[float, float]

_W, _H = 340, 210
_LEFT, _RIGHT, _TOP, _BOTTOM = 52, 12, 14, 36


def line_chart(
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    y_label: str,
    levels: Mapping[str, float] | None = None,
    pick: Point | None = None,
) -> str:
    """Lines with points, horizontal levels, and one marked point.

    Args:
        series: Label -> points, any order.
        x_label: Name and unit of x.
        y_label: Name and unit of y.
        levels: Label -> y of a dashed line across.
        pick: The point to mark.

    Returns:
        An ``<svg>`` element, or an empty string without points.
    """
    points = [point for line in series.values() for point in line]
    if not points:
        return ""
    levels = levels or {}
    x_min, x_max = _range([x for x, _ in points])
    y_min, y_max = _range([y for _, y in points] + list(levels.values()))

    def at(point: Point) -> tuple[float, float]:
        x = _LEFT + (point[0] - x_min) / (x_max - x_min) * (_W - _LEFT - _RIGHT)
        y = _H - _BOTTOM - (point[1] - y_min) / (y_max - y_min) * (_H - _TOP - _BOTTOM)
        return round(x, 1), round(y, 1)

    parts = [*_axes(x_min, x_max, y_min, y_max, x_label, y_label)]
    for label, value in levels.items():
        _, y = at((x_min, value))
        parts.append(f'<line class="level" x1="{_LEFT}" x2="{_W - _RIGHT}" y1="{y}" y2="{y}"/>')
        parts.append(f'<text x="{_W - _RIGHT}" y="{y - 3}" text-anchor="end">{escape(label)}</text>')
    for i, (label, line) in enumerate(series.items()):
        parts.extend(_line(f"var(--s{i % 6})", label, [at(point) for point in sorted(line)], sorted(line)))
    if pick:
        x, y = at(pick)
        parts.append(f'<circle class="pick" cx="{x}" cy="{y}" r="8"><title>the pick</title></circle>')
    name = escape(f"{y_label} against {x_label}", quote=True)
    return f'<svg class="chart" viewBox="0 0 {_W} {_H}" role="img" aria-label="{name}">{"".join(parts)}</svg>'


def _line(colour: str, label: str, placed: Sequence[tuple[float, float]], values: Sequence[Point]) -> list[str]:
    path = " ".join(f"{x},{y}" for x, y in placed)
    parts = [f'<polyline points="{path}" style="stroke:{colour}"/>']
    for (x, y), (vx, vy) in zip(placed, values, strict=True):
        title = escape(f"{label}: {number(vx)}, {number(vy)}")
        parts.append(f'<circle cx="{x}" cy="{y}" r="3.5" style="fill:{colour}"><title>{title}</title></circle>')
    return parts


def _axes(x_min: float, x_max: float, y_min: float, y_max: float, x_label: str, y_label: str) -> list[str]:
    right, bottom = _W - _RIGHT, _H - _BOTTOM
    parts = [f'<path class="axis" d="M{_LEFT} {_TOP}V{bottom}H{right}"/>']
    for i in range(3):
        x, y = _LEFT + i * (right - _LEFT) / 2, bottom - i * (bottom - _TOP) / 2
        anchor = ("start", "middle", "end")[i]
        parts.append(f'<text x="{x}" y="{bottom + 14}" text-anchor="{anchor}">{_tick(x_min, x_max, i)}</text>')
        parts.append(f'<text x="{_LEFT - 5}" y="{y + 4}" text-anchor="end">{_tick(y_min, y_max, i)}</text>')
    middle = (_LEFT + right) / 2
    parts.append(f'<text class="label" x="{middle}" y="{_H - 5}" text-anchor="middle">{escape(x_label)}</text>')
    parts.append(
        f'<text class="label" transform="translate(11 {(_TOP + bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{escape(y_label)}</text>"
    )
    return parts


def _tick(low: float, high: float, i: int) -> str:
    return number(low + i * (high - low) / 2)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """Limits with a margin, never of zero width."""
    low, high = min(values), max(values)
    margin = (high - low) * 0.08 or abs(high) * 0.1 or 1.0
    return low - margin, high + margin


def number(value: float) -> str:
    """A number with three significant digits, without an exponent where it is of everyday size."""
    if value == 0:
        return "0"
    if 0.001 <= abs(value) < 1000:
        text = f"{value:.3g}"
        return text if "e" not in text else f"{value:.0f}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.1e}"
