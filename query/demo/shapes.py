"""Plain shapes of one colour, each drawn by a pen within its square."""

import math
from collections.abc import Callable

from query.demo.palette import RGB
from query.demo.pen import Pen, Point, arc

Shape = Callable[[Pen, RGB], None]
"""Draws one shape with a pen in a colour."""


def _corners(n: int, turn: float = -90.0) -> list[Point]:
    angles = [math.radians(turn + 360 * i / n) for i in range(n)]
    return [(math.cos(a), math.sin(a)) for a in angles]


def _circle(pen: Pen, fill: RGB) -> None:
    pen.disc(0, 0, 0.9, fill)


def _square(pen: Pen, fill: RGB) -> None:
    pen.box(-0.8, -0.8, 0.8, 0.8, fill)


def _triangle(pen: Pen, fill: RGB) -> None:
    top = pen.vary(-0.4, 0.4)
    pen.polygon([(top, -0.95), (0.95, 0.8), (-0.95, 0.8)], fill)


def _star(pen: Pen, fill: RGB) -> None:
    inner = pen.vary(0.36, 0.46)
    outer, dents = _corners(5), _corners(5, -54.0)
    pen.polygon(
        [p for tip, (x, y) in zip(outer, dents, strict=True) for p in (tip, (inner * x, inner * y))],
        fill,
    )


def _ring(pen: Pen, fill: RGB) -> None:
    inner = pen.vary(0.45, 0.68)
    pen.polygon(arc(0, 0, 0.95, 0.95, 0, 360, 40) + arc(0, 0, inner, inner, 360, 0, 40), fill)


def _cross(pen: Pen, fill: RGB) -> None:
    arm = pen.vary(0.2, 0.32)
    pen.box(-arm, -0.95, arm, 0.95, fill)
    pen.box(-0.95, -arm, 0.95, arm, fill)


def _arrow(pen: Pen, fill: RGB) -> None:
    shaft, head = pen.vary(0.14, 0.22), pen.vary(0.0, 0.3)
    pen.box(-0.95, -shaft, head + 0.1, shaft, fill)
    pen.polygon([(0.98, 0), (head, -0.62), (head, 0.62)], fill)


def _heart(pen: Pen, fill: RGB) -> None:
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((math.sin(t) ** 3 * 0.98, -(y + 2.5) / 15))
    pen.polygon(points, fill)


def _hexagon(pen: Pen, fill: RGB) -> None:
    pen.polygon(_corners(6), fill)


def _crescent(pen: Pen, fill: RGB) -> None:
    depth = pen.vary(0.3, 0.5)
    outer = arc(0, 0, 0.95, 0.95, 70, 290, 30)
    (_, low), (x_high, high) = outer[0], outer[-1]
    inner = [
        (x_high - depth * math.cos(math.radians(a)), high + (low - high) * (a + 90) / 180) for a in range(-90, 91, 9)
    ]
    pen.polygon([(x + 0.3, y) for x, y in outer + inner], fill)


def _spiral(pen: Pen, fill: RGB) -> None:
    turns = pen.vary(2.1, 2.7)
    points = []
    for i in range(70):
        t = i / 69
        radius, angle = 0.04 + 0.86 * t, 2 * math.pi * turns * t
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    pen.stroke(points, pen.vary(0.13, 0.18), fill)


def _bolt(pen: Pen, fill: RGB) -> None:
    pen.polygon([(0.25, -1), (-0.55, 0.12), (-0.05, 0.12), (-0.3, 1), (0.55, -0.25), (0.02, -0.25)], fill)


def _diamond(pen: Pen, fill: RGB) -> None:
    half = pen.vary(0.48, 0.62)
    pen.polygon([(0, -1), (half, 0), (0, 1), (-half, 0)], fill)


def _half_circle(pen: Pen, fill: RGB) -> None:
    pen.polygon([(x, y + 0.4) for x, y in arc(0, 0, 0.95, 0.95, 180, 360)], fill)


def _gear(pen: Pen, fill: RGB) -> None:
    teeth = int(pen.rng.integers(8, 11))
    points: list[Point] = []
    for i in range(4 * teeth):
        radius = 0.97 if i % 4 in (0, 1) else 0.72
        angle = 2 * math.pi * i / (4 * teeth)
        points.append((radius * math.cos(angle), radius * math.sin(angle)))
    hole = pen.vary(0.24, 0.34)
    points.append(points[0])
    pen.polygon(points + arc(0, 0, hole, hole, 360, 0), fill)


SHAPES: dict[str, tuple[Shape, float]] = {
    "circle": (_circle, 180),
    "square": (_square, 20),
    "triangle": (_triangle, 25),
    "star": (_star, 36),
    "ring": (_ring, 180),
    "cross": (_cross, 20),
    "arrow": (_arrow, 180),
    "heart": (_heart, 25),
    "hexagon": (_hexagon, 30),
    "crescent": (_crescent, 60),
    "spiral": (_spiral, 180),
    "lightning bolt": (_bolt, 20),
    "diamond": (_diamond, 10),
    "half circle": (_half_circle, 45),
    "gear": (_gear, 180),
}
"""How each shape is drawn, and by how many degrees it may be turned either way."""


def draw_shape(pen: Pen, name: str, fill: RGB) -> None:
    """Draws a shape.

    Args:
        pen: The pen, whose frame the shape fills.
        name: One of `SHAPES`.
        fill: The shape's colour.
    """
    SHAPES[name][0](pen, fill)
