"""Capital letters, written in the font that Pillow brings along."""

from functools import lru_cache

from PIL import Image, ImageDraw, ImageFont

from query.demo.palette import RGB
from query.demo.pen import Pen

LETTERS: tuple[str, ...] = ("B", "E", "G", "H", "K", "M", "R", "S", "T", "Z")
"""The letters of the world. None of them looks like one of its shapes."""

_EM_PX = 96


@lru_cache(maxsize=64)
def _stencil(letter: str, stroke_px: int) -> Image.Image:
    font = ImageFont.load_default(size=_EM_PX)
    scratch = Image.new("L", (2 * _EM_PX, 2 * _EM_PX))
    ImageDraw.Draw(scratch).text((_EM_PX // 2, _EM_PX // 4), letter, fill=255, font=font, stroke_width=stroke_px)
    bounds = scratch.getbbox()
    return scratch.crop(bounds) if bounds else scratch


def draw_letter(pen: Pen, letter: str, fill: RGB) -> None:
    """Writes one letter over a pen's square, upright but for a slant of a few degrees.

    Args:
        pen: The pen. Its frame's angle is not used.
        letter: One of `LETTERS`.
        fill: The letter's colour.
    """
    stencil = _stencil(letter, int(pen.rng.integers(0, 6)))
    height = max(4, round(2 * pen.radius))
    width = max(3, round(height * stencil.width / stencil.height * pen.vary(0.75, 1.25)))
    mask = stencil.resize((width, height), Image.Resampling.BILINEAR)
    mask = mask.rotate(pen.vary(-14, 14), Image.Resampling.BILINEAR, expand=True)
    x, y = pen.centre
    pen.canvas.paste(fill, (round(x - mask.width / 2), round(y - mask.height / 2)), mask)
