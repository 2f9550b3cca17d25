"""A pen that draws in its own unit square, wherever that lies on the canvas, however it is turned and stretched."""

import math
from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image, ImageDraw

from query.demo.palette import RGB, contrasting

Point = tuple[float, float]
"""A place in the pen's square: x to the right and y down, both from -1 to 1."""


def arc(x: float, y: float, radius_x: float, radius_y: float, start: float, stop: float, n: int = 24) -> list[Point]:
    """Lists points along an elliptic arc.

    Args:
        x: Centre, to the right.
        y: Centre, down.
        radius_x: Half the width.
        radius_y: Half the height.
        start: First angle in degrees, clockwise from the right.
        stop: Last angle in degrees.
        n: Number of points.

    Returns:
        The points, in order.
    """
    angles = [math.radians(start + (stop - start) * i / (n - 1)) for i in range(n)]
    return [(x + radius_x * math.cos(a), y + radius_y * math.sin(a)) for a in angles]


class Pen:
    """Draws on a canvas through an affine frame.

    Args:
        canvas: The RGB image to draw on.
        rng: Source of randomness for whoever draws with this pen.
        ground: The colour that the drawing must stand out from.
        centre: The frame's centre in canvas pixels.
        radius: Half the side of the frame in canvas pixels.
        angle: Clockwise rotation in degrees.
        stretch: Width over height.
        mirrored: Whether left and right are exchanged.
    """

    def __init__(
        self,
        canvas: Image.Image,
        rng: np.random.Generator,
        ground: RGB,
        centre: Point | None = None,
        radius: float | None = None,
        angle: float = 0.0,
        stretch: float = 1.0,
        mirrored: bool = False,
    ) -> None:
        self.canvas = canvas
        self.rng = rng
        self.ground = ground
        self.centre = centre if centre is not None else (canvas.width / 2, canvas.height / 2)
        self.radius = radius if radius is not None else canvas.width / 2
        self._draw = ImageDraw.Draw(canvas)
        turn = math.radians(angle)
        wide, high = math.sqrt(stretch) * (-1 if mirrored else 1), 1 / math.sqrt(stretch)
        self._xx, self._xy = self.radius * wide * math.cos(turn), -self.radius * high * math.sin(turn)
        self._yx, self._yy = self.radius * wide * math.sin(turn), self.radius * high * math.cos(turn)

    def at(self, points: Iterable[Point]) -> list[Point]:
        """Maps points of the frame to canvas pixels.

        Args:
            points: Points of the frame.

        Returns:
            The same points in pixels.
        """
        x0, y0 = self.centre
        return [(x0 + self._xx * x + self._xy * y, y0 + self._yx * x + self._yy * y) for x, y in points]

    def polygon(self, points: Iterable[Point], fill: RGB) -> None:
        """Fills a polygon.

        Args:
            points: Its corners.
            fill: Its colour.
        """
        self._draw.polygon(self.at(points), fill=fill)

    def box(self, left: float, top: float, right: float, bottom: float, fill: RGB) -> None:
        """Fills a rectangle that lies along the frame.

        Args:
            left: Smallest x.
            top: Smallest y.
            right: Largest x.
            bottom: Largest y.
            fill: Its colour.
        """
        self.polygon([(left, top), (right, top), (right, bottom), (left, bottom)], fill)

    def disc(self, x: float, y: float, radius: float, fill: RGB, radius_y: float | None = None) -> None:
        """Fills a circle or an ellipse.

        Args:
            x: Centre, to the right.
            y: Centre, down.
            radius: Half the width.
            fill: Its colour.
            radius_y: Half the height; the width's half if left out.
        """
        self.polygon(arc(x, y, radius, radius if radius_y is None else radius_y, 0, 360), fill)

    def stroke(self, points: Sequence[Point], width: float, fill: RGB) -> None:
        """Draws a line with round ends through points.

        Args:
            points: The points.
            width: The line's width, in units of the frame.
            fill: Its colour.
        """
        pixels = self.at(points)
        thick = max(1.0, width * self.radius)
        self._draw.line(pixels, fill=fill, width=round(thick), joint="curve")
        for x, y in (pixels[0], pixels[-1]):
            half = thick / 2
            self._draw.ellipse((x - half, y - half, x + half, y + half), fill=fill)

    def pick(self, *names: str, minimum: float = 200.0, against: Sequence[RGB] = ()) -> RGB:
        """Picks a shade among named colours that stands out from the ground.

        Args:
            names: The colours to choose from.
            minimum: The difference that is enough.
            against: More colours to stand out from.

        Returns:
            The shade.
        """
        return contrasting(self.rng, [self.ground, *against], names, minimum)[1]

    def vary(self, low: float, high: float) -> float:
        """Draws one number between two bounds.

        Args:
            low: The smallest value.
            high: The largest value.

        Returns:
            The number.
        """
        return float(self.rng.uniform(low, high))

    def chance(self, probability: float) -> bool:
        """Tosses a coin.

        Args:
            probability: How likely the answer is yes.

        Returns:
            Whether it is.
        """
        return bool(self.rng.random() < probability)
