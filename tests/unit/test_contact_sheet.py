"""The contact sheet: what is drawn, where, and that nothing a stranger wrote can stop it."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFont

from engine.errors import InputError
from query.contact_sheet import (
    BACKGROUND,
    CONCEPT,
    RESPONSE,
    ROW,
    THUMBNAIL,
    Panel,
    Tile,
    contact_sheet,
    drawable,
    shortened,
    write_contact_sheet,
)

RED, GREEN = (200, 30, 30), (20, 160, 60)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("images")
    Image.new("RGB", (300, 200), RED).save(folder / "red.png")
    wide = Image.new("RGB", (600, 100), GREEN)  # only its middle sixth is shown
    wide.paste(RED, (240, 0, 360, 100))
    wide.save(folder / "wide.png")
    Image.new("RGBA", (50, 50), (0, 0, 0, 0)).save(folder / "clear.png")
    (folder / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    return folder


def panel(*tiles: Tile, **words: str) -> Panel:
    texts = {
        "title": "1. org/x #7 dog",
        "subtitle": "margin 2.80",
        "concept": "dog",
        "background_name": "wolf",
        **words,
    }
    return Panel(texts["title"], texts["subtitle"], texts["concept"], texts["background_name"], tiles)


def pixels(sheet: Image.Image, colour: tuple[int, int, int]) -> np.ndarray:
    """Where a colour is: rows and columns ``[p, 2]``."""
    return np.argwhere((np.asarray(sheet) == colour).all(axis=2))


def widths(sheet: Image.Image, colour: tuple[int, int, int]) -> list[int]:
    """Widths of the bars in a colour, row by row: what is below the first red tile and wider than a legend's square."""
    rows = pixels(sheet, colour)[:, 0]
    below = rows[rows > pixels(sheet, RED)[:, 0].min() + THUMBNAIL]
    return [int((below == y).sum()) for y in np.unique(below) if (below == y).sum() > 11]


def test_images_are_shown_in_the_middle_and_in_order(images: Path) -> None:
    sheet = contact_sheet([panel(Tile(images / "red.png", 1, 1, 1), Tile(images / "wide.png", 1, 1, 1))], "dog")
    found = pixels(sheet, RED)
    assert len(found) == 2 * THUMBNAIL**2
    assert not len(pixels(sheet, GREEN))
    left, right = found[:, 1].min(), found[:, 1].max()
    assert right - left + 1 == 2 * THUMBNAIL + 12


def test_bars_are_as_long_as_the_values(images: Path) -> None:
    sheet = contact_sheet([panel(Tile(images / "red.png", 6.0, 3.0, 1.5))], "dog")
    long, middle, short = (max(widths(sheet, colour)) for colour in (RESPONSE, CONCEPT, BACKGROUND))
    assert long > 50
    assert middle == pytest.approx(long / 2, abs=2)
    assert short == pytest.approx(long / 4, abs=2)


def test_negative_bars_go_to_the_left_of_zero(images: Path) -> None:
    sheet = contact_sheet([panel(Tile(images / "red.png", 4.0, -4.0, 4.0))], "dog")
    first = pixels(sheet, RED)[:, 0].max()
    bars = {colour: pixels(sheet, colour) for colour in (RESPONSE, CONCEPT)}
    below = {colour: where[where[:, 0] > first] for colour, where in bars.items()}
    assert below[CONCEPT][:, 1].max() <= below[RESPONSE][:, 1].min()
    assert len(below[CONCEPT]) == pytest.approx(len(below[RESPONSE]), rel=0.1)


def test_all_panels_have_one_scale(images: Path) -> None:
    tile = images / "red.png"
    sheet = contact_sheet([panel(Tile(tile, 8, 0, 0)), panel(Tile(tile, 4, 0, 0))], "dog")
    both = widths(sheet, RESPONSE)
    assert len(both) > 10
    assert max(both) == pytest.approx(2 * min(both), abs=2)


def test_every_hit_and_row_has_its_place(images: Path) -> None:
    tile = Tile(images / "red.png", 1, 1, 1)
    one = contact_sheet([panel(*[tile] * ROW)], "x")
    two = contact_sheet([panel(*[tile] * (ROW + 1))], "x")
    three = contact_sheet([panel(*[tile] * ROW), panel(tile)], "x")
    assert one.width == two.width == three.width
    assert one.height < two.height < three.height
    for sheet, count in ((one, ROW), (two, ROW + 1), (three, ROW + 1)):
        assert len(pixels(sheet, RED)) == count * THUMBNAIL**2


@pytest.mark.parametrize("name", ["absent.png", "broken.jpg", ".", "bad\0name.png", "x" * 300 + ".png"])
def test_an_image_that_cannot_be_read_is_a_grey_tile(images: Path, name: str) -> None:
    good = contact_sheet([panel(Tile(images / "red.png", 1, 1, 1), Tile(images / "red.png", 1, 1, 1))], "x")
    sheet = contact_sheet([panel(Tile(images / name, 1, 1, 1), Tile(images / "red.png", 1, 1, 1))], "x")
    assert sheet.size == good.size
    assert len(pixels(sheet, RED)) == THUMBNAIL**2
    grey = pixels(sheet, (222, 222, 222))
    assert len(grey) > THUMBNAIL**2 * 0.7
    assert len(grey) < THUMBNAIL**2 + sheet.width  # the cross and the name are drawn on it


def test_transparent_images_lie_on_white(images: Path) -> None:
    sheet = contact_sheet([panel(Tile(images / "clear.png", 1, 1, 1))], "x")
    assert not len(pixels(sheet, (0, 0, 0)))


def test_values_that_are_no_numbers_have_no_bar(images: Path) -> None:
    sheet = contact_sheet([panel(Tile(images / "red.png", math.nan, math.inf, -math.inf))], "x")
    for colour in (RESPONSE, CONCEPT, BACKGROUND):
        assert not widths(sheet, colour)


def test_nothing_to_show() -> None:
    assert contact_sheet([], "nothing").size[1] > 50
    assert contact_sheet([panel()], "no probes").size[1] > 100


@pytest.mark.parametrize(
    ("text", "drawn"),
    [
        ("Käse für Ærø", "Kase fur AEro"),
        ("a\tb\n c\x1b[31m\x00", "a b c?[31m?"),
        ("拉布拉多 dog", "???? dog"),
        ("“x”… 20 °C", "“x”… 20 °C"),
        ("one\N{EN DASH}two", "one-two"),
        ("ﬁn", "fin"),
    ],
)
def test_texts_of_strangers(text: str, drawn: str) -> None:
    assert drawable(text) == drawn


def test_the_font_has_every_letter_that_is_drawn() -> None:
    font = ImageFont.load_default(14)
    assert isinstance(font, ImageFont.FreeTypeFont)
    missing = bytes(font.getmask("\uffff"))
    letters = [chr(c) for c in range(0x21, 0x2200) if drawable(chr(c)) == chr(c)]
    assert len(letters) > 100
    assert not [c for c in letters if c != "?" and bytes(font.getmask(c)) == missing]


def test_long_texts_are_cut() -> None:
    font = ImageFont.load_default(14)
    text = "a label that goes on and on " * 20
    for width in (40, 200, 333):
        cut = shortened(text, 14, width)
        assert cut.endswith("…")
        assert font.getlength(cut) <= width
        longer = text[: len(cut) + 2]
        assert font.getlength(longer + "…") > width
    assert shortened("short", 14, 200) == "short"
    assert shortened("short", 14, 1) == "…"


def test_long_texts_stay_on_the_sheet(images: Path) -> None:
    tile = Tile(images / "red.png", 1, 1, 1)
    words = dict.fromkeys(("title", "subtitle", "concept", "background_name"), "wide " * 200)
    sheet = np.asarray(contact_sheet([panel(tile, **words)], "wide " * 200))
    assert (sheet[:, -20:] == 255).all()


@pytest.mark.parametrize(("suffix", "form"), [(".png", "PNG"), (".jpg", "JPEG"), (".JPEG", "JPEG"), (".webp", "WEBP")])
def test_written_pictures(tmp_path: Path, images: Path, suffix: str, form: str) -> None:
    path = tmp_path / f"sheet{suffix}"
    panels = [panel(Tile(images / "red.png", 1, 1, 1))]
    write_contact_sheet(path, panels, "dog")
    with Image.open(path) as image:
        assert image.format == form
        assert image.size == contact_sheet(panels, "dog").size
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_pictures_that_cannot_be_written(tmp_path: Path) -> None:
    for name, part in (("sheet.gif", r"\.png, \.jpg"), ("sheet", "ends in"), ("absent/sheet.png", "does not exist")):
        with pytest.raises(InputError, match=part):
            write_contact_sheet(tmp_path / name, [], "x")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(InputError, match="is a folder"):
        write_contact_sheet(tmp_path / "folder.png", [], "x")
    with pytest.raises(InputError, match=r"use \.png"):
        write_contact_sheet(tmp_path / "tall.webp", [panel()] * 70, "x")
    assert [p.name for p in tmp_path.iterdir()] == ["folder.png"]


def test_what_was_there_stays_when_writing_fails(tmp_path: Path, images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "sheet.png"
    path.write_bytes(b"before")

    def fails(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(Image.Image, "save", fails)
    with pytest.raises(OSError, match="no space"):
        write_contact_sheet(path, [panel(Tile(images / "red.png", 1, 1, 1))], "x")
    assert path.read_bytes() == b"before"
    assert len(list(tmp_path.iterdir())) == 1
