"""The elements of the charts. Colours are CSS classes of templates/style.css, so that one chart is light and dark.

Every style is a colour and a shape, so that nothing is distinguished by colour alone.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from markupsafe import Markup, escape

STYLES = 6
WIDTH, HEIGHT = 480, 300


def svg(parts: Iterable[str], alt: str, width: float = WIDTH, height: float = HEIGHT) -> Markup:
    """Return a whole <svg> element whose parts are escaped."""
    return Markup(
        f'<svg viewBox="0 0 {width:g} {height:g}" role="img" aria-label="{escape(alt)}" '
        f'preserveAspectRatio="xMidYMid meet">{"".join(parts)}</svg>'
    )


def text(x: float, y: float, words: str, anchor: str = "start", css: str = "") -> str:
    """Return a line of text; `css` names further classes."""
    kind = f' class="{css}"' if css else ""
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{kind}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, css: str) -> str:
    """Return a straight line."""
    return f'<path d="M{x1:.1f} {y1:.1f}L{x2:.1f} {y2:.1f}" class="{css}"/>'


def path(xs: Iterable[float], ys: Iterable[float], css: str) -> str:
    """Return a line through points."""
    points = "L".join(f"{x:.1f} {y:.1f}" for x, y in zip(xs, ys, strict=True))
    return f'<path d="M{points}" class="{css}"/>'


@dataclass(frozen=True)
class Area:
    """A rectangle in pixels: its upper left corner, its width and its height."""

    x: float
    y: float
    width: float
    height: float


def box(area: Area, css: str, tip: str = "") -> str:
    """Return a rectangle; the pointer shows `tip`."""
    told = f' data-tip="{escape(tip)}"' if tip else ""
    place = f'x="{area.x:.1f}" y="{area.y:.1f}" width="{max(area.width, 0):.1f}" height="{area.height:.1f}"'
    return f'<rect {place} class="{css}"{told}/>'


def marker(x: float, y: float, style: int, tip: str = "", size: float = 4.0) -> str:
    """Return the mark of a style: disc, square, triangle, diamond, triangle down, cross; the pointer shows `tip`."""
    told = f' data-tip="{escape(tip)}"' if tip else ""
    shapes = (
        f"M{x - size:.1f} {y:.1f}a{size:g} {size:g} 0 1 0 {2 * size:g} 0a{size:g} {size:g} 0 1 0 {-2 * size:g} 0z",
        f"M{x - size:.1f} {y - size:.1f}h{2 * size:g}v{2 * size:g}h{-2 * size:g}z",
        f"M{x:.1f} {y - 1.2 * size:.1f}l{1.2 * size:g} {2 * size:g}h{-2.4 * size:g}z",
        f"M{x:.1f} {y - 1.3 * size:.1f}l{1.3 * size:g} {1.3 * size:g}l{-1.3 * size:g} {1.3 * size:g}"
        f"l{-1.3 * size:g} {-1.3 * size:g}z",
        f"M{x:.1f} {y + 1.2 * size:.1f}l{1.2 * size:g} {-2 * size:g}h{-2.4 * size:g}z",
        f"M{x - size:.1f} {y - size / 3:.1f}h{2 * size / 3:g}v{-2 * size / 3:g}h{2 * size / 3:g}v{2 * size / 3:g}"
        f"h{2 * size / 3:g}v{2 * size / 3:g}h{-2 * size / 3:g}v{2 * size / 3:g}h{-2 * size / 3:g}v{-2 * size / 3:g}"
        f"h{-2 * size / 3:g}z",
    )
    return f'<path d="{shapes[style % STYLES]}" class="m s{style % STYLES}"{told}/>'


def target(x: float, y: float, tip: str) -> str:
    """Return a point that is not seen; the pointer shows `tip` over it."""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="5" class="hit" data-tip="{escape(tip)}"/>'


def sample(style: int, level: bool, block: bool) -> Markup:
    """Return the sample of a legend's entry."""
    if block:
        inside = box(Area(2, 1, 22, 10), f"b s{style % STYLES}")
    elif level:
        inside = line(0, 6, 26, 6, f"level d{style % STYLES}")
    else:
        inside = line(0, 6, 26, 6, f"l s{style % STYLES}") + marker(13, 6, style)
    return Markup(f'<svg class="key" viewBox="0 0 26 12" aria-hidden="true" focusable="false">{inside}</svg>')
