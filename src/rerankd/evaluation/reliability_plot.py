"""(pure) A reliability plot as SVG: scores against the share of relevant documents, before and after.

A calibrated score of 0.7 is relevant in 7 of 10 cases, so good scores lie on the diagonal. The area of a
circle is proportional to its number of documents.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from xml.sax.saxutils import escape

from rerankd.evaluation.calibration_quality import Bin

_SIDE = 320
_LEFT, _TOP = 56, 44
_WIDTH, _HEIGHT = _LEFT + _SIDE + 24, _TOP + _SIDE + 52
_LARGEST = 12.0
_STYLES = (("own scores", "#8b938e"), ("calibrated", "#17694f"))


def svg(title: str, before: Sequence[Bin], after: Sequence[Bin]) -> str:
    """The plot; `title` names the model and the collection."""
    most = max(count for _, _, count in (*before, *after))
    ticks = [at / 5 for at in range(6)]
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" '
        f'height="{_HEIGHT}" font-family="system-ui, sans-serif" font-size="12" fill="#1c1f1e">',
        f"<title>Reliability: {escape(title)}</title>",
        '<rect width="100%" height="100%" fill="#ffffff"/>',
        f'<text x="{_LEFT}" y="18" font-weight="600">{escape(title)}</text>',
        *_grid(ticks),
        f'<path d="M{_x(0)} {_y(0)}L{_x(1)} {_y(1)}" stroke="#59625d" stroke-dasharray="4 4"/>',
        f'<text x="{_x(0.5)}" y="{_HEIGHT - 10}" text-anchor="middle">score</text>',
        f'<text transform="translate(14 {_y(0.5)}) rotate(-90)" text-anchor="middle">share of relevant '
        "documents</text>",
    ]
    for at, ((name, colour), bins) in enumerate(zip(_STYLES, (before, after), strict=True)):
        points = " ".join(f"{_x(score)},{_y(share)}" for score, share, _ in bins)
        parts.append(f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="1.5"/>')
        for score, share, count in bins:
            radius = max(_LARGEST * math.sqrt(count / most), 2.0)
            parts.append(
                f'<circle cx="{_x(score)}" cy="{_y(share)}" r="{radius:.1f}" fill="{colour}" '
                f'fill-opacity="0.6"><title>{name} {score:.2f}: {share:.2f} of {count}</title></circle>'
            )
        x = _LEFT + 110 * at
        parts.append(f'<rect x="{x}" y="26" width="10" height="10" fill="{colour}"/>')
        parts.append(f'<text x="{x + 15}" y="35">{name}</text>')
    return "\n".join((*parts, "</svg>", ""))


def _grid(ticks: Sequence[float]) -> list[str]:
    parts = []
    for tick in ticks:
        parts.append(f'<path d="M{_x(tick)} {_y(0)}V{_y(1)}M{_x(0)} {_y(tick)}H{_x(1)}" stroke="#e2e0d9"/>')
        parts.append(f'<text x="{_x(tick)}" y="{_y(0) + 18}" text-anchor="middle">{tick:g}</text>')
        parts.append(f'<text x="{_LEFT - 8}" y="{_y(tick) + 4}" text-anchor="end">{tick:g}</text>')
    return parts


def _x(score: float) -> float:
    return round(_LEFT + score * _SIDE, 1)


def _y(share: float) -> float:
    return round(_TOP + (1 - share) * _SIDE, 1)
