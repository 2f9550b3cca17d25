"""A contact sheet: the probes behind a hit, with the output's response and the concept's similarity under each."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, ImageOps

from engine.errors import InputError
from engine.files import write_atomic
from engine.probes import open_image

THUMBNAIL = 112
"""Side of a probe image, in pixels."""

ROW = 10
"""Thumbnails beside each other; more go on in the next row."""

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
"""Picture formats by suffix."""

RESPONSE, CONCEPT, BACKGROUND = (0, 114, 178), (230, 159, 0), (120, 120, 120)
"""Colours of the bars, told apart with every kind of colour vision (Okabe and Ito's blue and orange) and in grey."""

_PAPER, _INK, _FAINT, _TILE = (255, 255, 255), (25, 25, 25), (105, 105, 105), (222, 222, 222)
_MARGIN, _GAP, _LINE = 24, 12, 15
_BARS = 78  # width of the bars; the rest of a thumbnail's width is for the number
_LEAST = 4  # columns that the sheet is wide at least, so that titles have room
_SPAN = (-1.0, 4.0)  # the least that the bars' scale covers
_LONGEST_SIDE = {"JPEG": 65_500, "WEBP": 16_383}
_DRAWN = frozenset(map(chr, range(0x20, 0x7F))) | frozenset("°±·©™…“”«»")
# Letters that Unicode does not take apart, and dashes.
_SPELLED = {
    "ß": "ss", "æ": "ae", "Æ": "AE", "œ": "oe", "Œ": "OE", "ø": "o", "Ø": "O", "ł": "l", "Ł": "L", "đ": "d", "Đ": "D",
    "ð": "d", "þ": "th", "\u0131": "i", "\u2018": "'", "\u2019": "'",
    **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2212", "-"),
}  # fmt: skip


@dataclass(frozen=True)
class Tile:
    """One probe.

    Attributes:
        image: The probe's file; a missing or broken one is drawn as a cross with its name.
        response: Standardised response of the output, about -4..8.
        concept: Standardised similarity of the concept.
        background: Standardised similarity of the background concept.
    """

    image: Path
    response: float
    concept: float
    background: float


@dataclass(frozen=True)
class Panel:
    """One hit.

    Attributes:
        title: Such as "1. timm/resnet50.a1_in1k #207 golden retriever".
        subtitle: Such as "margin 2.80, percentile 0.2%".
        concept: What was asked for.
        background_name: The background concept nearest to the output.
        tiles: Its probes, in the order they are shown.
    """

    title: str
    subtitle: str
    concept: str
    background_name: str
    tiles: tuple[Tile, ...]


def contact_sheet(panels: Sequence[Panel], heading: str) -> Image.Image:
    """Draws a sheet: one panel a hit, below each other.

    All bars of a sheet have one scale, in standard deviations over all probes, so that they can be compared.

    Args:
        panels: The hits.
        heading: Above them all.

    Returns:
        RGB image, wide enough for the longest row of at most 10 thumbnails.
    """
    columns = max([_LEAST, *[min(ROW, len(panel.tiles)) for panel in panels]])
    width = 2 * _MARGIN + columns * (THUMBNAIL + _GAP) - _GAP
    top = _MARGIN + 50
    height = top + sum(_panel_height(panel) for panel in panels) + (0 if panels else 40) + _MARGIN // 2
    sheet = Image.new("RGB", (width, height), _PAPER)
    draw = ImageDraw.Draw(sheet)
    inner = width - 2 * _MARGIN
    _write(draw, (_MARGIN, _MARGIN - 6), heading, 20, _INK, inner)
    note = "Bars: standard deviations above or below the mean over all probes"
    _write(draw, (_MARGIN, _MARGIN + 22), note, 12, _FAINT, inner)
    span = _span(panels)
    thumbnail = cache(_thumbnail)  # hits for one concept share most of their probes
    y = top
    for panel in panels:
        _draw_panel(sheet, draw, panel, y, inner, span, thumbnail)
        y += _panel_height(panel)
    if not panels:
        _write(draw, (_MARGIN, y), "Nothing was found.", 14, _INK, inner)
    return sheet


def write_contact_sheet(path: Path, panels: Sequence[Panel], heading: str) -> None:
    """Writes a sheet as a picture, whole or not at all.

    Args:
        path: Ends in .png, .jpg, .jpeg or .webp; its folder must exist.
        panels: The hits.
        heading: Above them all.

    Raises:
        InputError: The suffix is another one, the folder does not exist, or the format cannot hold so tall a sheet.
        OSError: The file cannot be written.
    """
    form = check_sheet_path(path)
    sheet = contact_sheet(panels, heading)
    if max(sheet.size) > _LONGEST_SIDE.get(form, max(sheet.size)):
        raise InputError(
            f"{path}: {len(panels)} hits make a sheet of {sheet.height} pixels, too tall for {form}: use .png or fewer"
        )
    write_atomic(path, lambda file: sheet.save(file, form, quality=90))


def check_sheet_path(path: Path) -> str:
    """The format of a picture to be written; for asking before the work is done.

    Raises:
        InputError: The suffix is none of the formats, the folder does not exist, or the path is a folder.
    """
    form = FORMATS.get(path.suffix.lower())
    if form is None:
        raise InputError(f"{path} cannot be written: a picture's name ends in {', '.join(FORMATS)}")
    if not path.parent.is_dir():
        raise InputError(f"{path} cannot be written: the folder {path.parent} does not exist")
    if path.is_dir():
        raise InputError(f"{path} is a folder: name a picture to write")
    return form


def drawable(text: str) -> str:
    """A stranger's text in the letters that the font has: accents dropped, white space folded, the rest as "?"."""
    words = " ".join(text.split())
    return "".join(_spelled(c) for c in words)


def shortened(text: str, size: int, width: float) -> str:
    """A text that fits into so many pixels, cut with an ellipsis where it does not.

    Args:
        text: Drawable.
        size: Of the letters, in pixels.
        width: In pixels.
    """
    font = _font(size)
    if font.getlength(text) <= width:
        return text
    fits, too_long = 0, len(text)
    while too_long - fits > 1:
        middle = (fits + too_long) // 2
        if font.getlength(text[:middle].rstrip() + "…") <= width:
            fits = middle
        else:
            too_long = middle
    return text[:fits].rstrip() + "…"


def _spelled(letter: str) -> str:
    if letter in _DRAWN:
        return letter
    parts = unicodedata.normalize("NFKD", _SPELLED.get(letter, letter))
    return "".join(c if c in _DRAWN else "?" for c in parts if not unicodedata.combining(c))


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _write(
    draw: ImageDraw.ImageDraw,
    at: tuple[float, float],
    text: str,
    size: int,
    colour: tuple[int, int, int],
    width: float,
) -> float:
    """Draws a line of text and returns the width it took."""
    line = shortened(drawable(text), size, width)
    draw.text(at, line, fill=colour, font=_font(size))
    return float(_font(size).getlength(line))


def _tile_height() -> int:
    return THUMBNAIL + 6 + 3 * _LINE + _GAP


def _panel_height(panel: Panel) -> int:
    rows = max(1, math.ceil(len(panel.tiles) / ROW))
    return 68 + rows * _tile_height() + 10


def _span(panels: Sequence[Panel]) -> tuple[float, float]:
    values = [v for p in panels for t in p.tiles for v in (t.response, t.concept, t.background) if math.isfinite(v)]
    return min([_SPAN[0], *values]), max([_SPAN[1], *values])


def _draw_panel(
    sheet: Image.Image,
    draw: ImageDraw.ImageDraw,
    panel: Panel,
    y: int,
    inner: int,
    span: tuple[float, float],
    thumbnail: Callable[[Path], Image.Image],
) -> None:
    draw.line([(_MARGIN, y), (_MARGIN + inner, y)], fill=_TILE)
    taken = _write(draw, (_MARGIN, y + 9), panel.title, 16, _INK, inner * 0.7)
    _write(draw, (_MARGIN + taken + 14, y + 12), panel.subtitle, 13, _FAINT, inner - taken - 14)
    legend = (
        (RESPONSE, "response of the output"),
        (CONCEPT, f"similarity of “{panel.concept}”"),
        (BACKGROUND, f"nearest background: “{panel.background_name}”"),
    )
    x = float(_MARGIN)
    shares = (0.22, 0.33, 0.45)  # of the width at most: a long concept must not push the others out
    for (colour, text), share in zip(legend, shares, strict=True):
        draw.rectangle([x, y + 39, x + 10, y + 49], fill=colour)
        x += 16 + _write(draw, (x + 16, y + 36), text, 13, _INK, inner * share - 34) + 18
    if not panel.tiles:
        _write(draw, (_MARGIN, y + 70), "No probes to show.", 13, _FAINT, inner)
    for i, tile in enumerate(panel.tiles):
        left = _MARGIN + (i % ROW) * (THUMBNAIL + _GAP)
        top = y + 62 + (i // ROW) * _tile_height()
        sheet.paste(thumbnail(tile.image), (left, top))
        values = ((tile.response, RESPONSE), (tile.concept, CONCEPT), (tile.background, BACKGROUND))
        for j, (value, colour) in enumerate(values):
            _draw_bar(draw, left, top + THUMBNAIL + 6 + j * _LINE, value, colour, span)


def _draw_bar(
    draw: ImageDraw.ImageDraw,
    left: int,
    top: int,
    value: float,
    colour: tuple[int, int, int],
    span: tuple[float, float],
) -> None:
    low, high = span
    zero = left + _BARS * -low / (high - low)
    if math.isfinite(value):
        end = left + _BARS * (value - low) / (high - low)
        draw.rectangle([min(zero, end), top + 2, max(zero, end), top + _LINE - 4], fill=colour)
    draw.line([(zero, top), (zero, top + _LINE - 2)], fill=_FAINT)
    number = f"{round(value, 1) + 0.0:+.1f}" if math.isfinite(value) else "?"  # + 0.0: there is no -0.0
    draw.text((left + THUMBNAIL, top), number, fill=_INK, font=_font(12), anchor="ra")


def _thumbnail(path: Path) -> Image.Image:
    """The middle of an image as a square; a grey one with a cross where it cannot be read."""
    size = (THUMBNAIL, THUMBNAIL)
    try:
        return ImageOps.fit(open_image(path), size)
    except Exception:  # a broken image can make Pillow raise anything, and it is one tile of many
        tile = Image.new("RGB", size, _TILE)
        draw = ImageDraw.Draw(tile)
        edge = THUMBNAIL - 24
        draw.line([(24, 12), (edge, edge - 12)], fill=_FAINT, width=3)
        draw.line([(edge, 12), (24, edge - 12)], fill=_FAINT, width=3)
        _write(draw, (6, THUMBNAIL - 20), path.name, 12, _INK, THUMBNAIL - 12)
        return tile
