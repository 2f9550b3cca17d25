"""Simple things and scenes, each drawn by a pen in colours of its own."""

from collections.abc import Callable

from query.demo.palette import lighter, shade
from query.demo.pen import Pen, arc

Scene = Callable[[Pen], None]
"""Draws one scene with a pen."""


def _house(pen: Pen) -> None:
    wall = pen.pick("white", "beige", "yellow", "pink", "grey")
    roof = pen.pick("red", "brown", "black", "orange", "blue", against=[wall])
    pen.box(-0.7, -0.1, 0.7, 0.95, wall)
    pen.polygon([(-0.95, -0.1), (0, -0.95), (0.95, -0.1)], roof)
    pen.box(-0.15, 0.35, 0.2, 0.95, roof)
    for x in (-0.48, 0.48):
        pen.box(x - 0.15, 0.15, x + 0.15, 0.45, lighter(roof, 0.4))


def _tree(pen: Pen) -> None:
    crown = pen.pick("green", "green", "orange", minimum=120)
    trunk = pen.pick("brown", "black", "beige", minimum=150, against=[crown])
    pen.box(-0.12, 0.1, 0.12, 0.98, trunk)
    for x, y, radius in ((-0.4, 0.0, 0.42), (0.4, 0.0, 0.42), (0.0, -0.45, 0.5), (0.0, -0.05, 0.45)):
        pen.disc(x, y, radius, lighter(crown, pen.vary(-0.12, 0.12)))


def _boat(pen: Pen) -> None:
    water = shade("blue", pen.rng)
    pen.box(-3, 0.55, 3, 3, water)
    hull = pen.pick("brown", "red", "black", "white", against=[water])
    sail = pen.pick("white", "yellow", "red", "orange", "beige", "pink")
    pen.box(-0.05, -0.95, 0.03, 0.4, hull)
    pen.polygon([(0.1, -0.9), (0.75, 0.25), (0.1, 0.25)], sail)
    pen.polygon([(-0.12, -0.75), (-0.6, 0.25), (-0.12, 0.25)], sail)
    pen.polygon([(-0.9, 0.38), (0.95, 0.38), (0.6, 0.8), (-0.55, 0.8)], hull)


def _sun(pen: Pen) -> None:
    gold = pen.pick("yellow", "orange", minimum=120)
    pen.disc(0, 0, 0.5, gold)
    rays = int(pen.rng.integers(8, 12))
    for i in range(rays):
        inner, outer = (arc(0, 0, r, r, 0, 360 * (rays - 1) / rays, rays)[i] for r in (0.64, 0.96))
        pen.stroke([inner, outer], 0.12, gold)


def _face(pen: Pen) -> None:
    skin = pen.pick("beige", "yellow", "pink", "brown", "orange")
    ink = lighter(shade("black", pen.rng), 0) if sum(skin) > 300 else shade("white", pen.rng)
    pen.disc(0, 0, 0.9, skin, 0.95)
    for x in (-0.35, 0.35):
        pen.disc(x, -0.22, 0.13, ink)
    if pen.chance(0.7):
        pen.stroke(arc(0, 0.15, 0.48, 0.4, 20, 160, 14), 0.13, ink)
    else:
        pen.stroke(arc(0, 0.75, 0.42, 0.35, 200, 340, 14), 0.13, ink)
    if pen.chance(0.5):
        pen.stroke([(0, -0.1), (0, 0.15)], 0.09, ink)


def _car(pen: Pen) -> None:
    body = pen.pick("red", "blue", "yellow", "green", "white", "orange", "purple")
    tyre = pen.pick("black", "grey", minimum=120, against=[body])
    pen.polygon([(-0.55, -0.02), (-0.35, -0.5), (0.35, -0.5), (0.6, -0.02)], body)
    pen.polygon([(-0.38, -0.05), (-0.26, -0.38), (-0.02, -0.38), (-0.02, -0.05)], lighter(body, 0.7))
    pen.polygon([(0.08, -0.05), (0.08, -0.38), (0.26, -0.38), (0.43, -0.05)], lighter(body, 0.7))
    pen.box(-0.97, -0.05, 0.97, 0.38, body)
    for x in (-0.52, 0.52):
        pen.disc(x, 0.4, 0.26, tyre)
        pen.disc(x, 0.4, 0.1, lighter(tyre, 0.6))


def _flower(pen: Pen) -> None:
    stalk = pen.pick("green", "brown", minimum=120)
    petal = pen.pick("red", "pink", "purple", "white", "orange", "blue")
    heart = pen.pick("yellow", "brown", "orange", minimum=120, against=[petal])
    pen.stroke([(0, -0.3), (0, 0.95)], 0.12, stalk)
    pen.disc(0.3, 0.6, 0.26, stalk, 0.12)
    for x, y in arc(0, -0.35, 0.36, 0.36, 0, 300, 6):
        pen.disc(x, y, 0.24, petal)
    pen.disc(0, -0.35, 0.2, heart)


def _fish(pen: Pen) -> None:
    body = pen.pick("orange", "red", "yellow", "turquoise", "grey", "pink")
    fin = lighter(body, -0.3)
    pen.polygon([(0.4, 0), (0.97, -0.5), (0.85, 0), (0.97, 0.5)], fin)
    pen.polygon([(-0.2, -0.3), (0.1, -0.72), (0.3, -0.25)], fin)
    pen.disc(-0.15, 0, 0.75, body, 0.45)
    pen.disc(-0.55, -0.1, 0.12, shade("white", pen.rng))
    pen.disc(-0.57, -0.1, 0.06, shade("black", pen.rng))


def _snowman(pen: Pen) -> None:
    snow = pen.pick("white", minimum=60)
    ink = shade("black", pen.rng)
    for y, radius in ((0.58, 0.4), (0.0, 0.3), (-0.45, 0.24)):
        pen.disc(0, y, radius, snow)
        pen.disc(0, y + 0.05, 0.05, ink)
    pen.box(-0.32, -0.72, 0.32, -0.62, ink)
    pen.box(-0.2, -0.97, 0.2, -0.65, ink)
    for x in (-0.09, 0.09):
        pen.disc(x, -0.5, 0.04, ink)
    pen.polygon([(0, -0.46), (0.4, -0.38), (0, -0.36)], shade("orange", pen.rng))


def _umbrella(pen: Pen) -> None:
    cloth = pen.pick("red", "blue", "yellow", "purple", "pink", "green", "turquoise")
    handle = pen.pick("black", "brown", "white")
    pen.stroke([(0, -0.95), (0, 0.7), *arc(0.17, 0.7, 0.17, 0.22, 180, 20, 8)], 0.1, handle)
    pen.polygon(arc(0, 0.1, 0.97, 0.9, 180, 360), cloth)
    pen.polygon(arc(0, 0.1, 0.33, 0.9, 180, 360), lighter(cloth, 0.4))


def _rocket(pen: Pen) -> None:
    body = pen.pick("white", "grey", "beige", "turquoise")
    fin = pen.pick("red", "blue", "black", "purple", minimum=150, against=[body])
    pen.polygon([(-0.2, 0.65), (0, 1.0), (0.2, 0.65)], shade("orange", pen.rng))
    pen.polygon([(-0.25, 0.15), (-0.62, 0.75), (-0.25, 0.62)], fin)
    pen.polygon([(0.25, 0.15), (0.62, 0.75), (0.25, 0.62)], fin)
    pen.box(-0.28, -0.4, 0.28, 0.65, body)
    pen.polygon([(-0.28, -0.4), (0, -1.0), (0.28, -0.4)], fin)
    pen.disc(0, -0.1, 0.16, fin)


def _clock(pen: Pen) -> None:
    rim = pen.pick("black", "brown", "blue", "red", "green")
    dial = lighter(shade("white", pen.rng), -pen.vary(0, 0.1))
    pen.disc(0, 0, 0.95, rim)
    pen.disc(0, 0, 0.78, dial)
    for x, y in arc(0, 0, 0.65, 0.65, 0, 330, 12):
        pen.disc(x, y, 0.05, rim)
    for length, width in ((0.34, 0.12), (0.55, 0.08)):
        tip = arc(0, 0, length, length, pen.vary(0, 360), 360, 2)[0]
        pen.stroke([(0, 0), tip], width, rim)


def _rainbow(pen: Pen) -> None:
    bands = ("red", "orange", "yellow", "green", "blue", "purple")
    for i, name in enumerate(bands):
        outer = 0.97 - 0.12 * i
        inner = outer - 0.125
        bow = arc(0, 0.5, outer, outer * 1.2, 180, 360) + arc(0, 0.5, inner, inner * 1.2, 360, 180)
        pen.polygon(bow, shade(name, pen.rng))


def _mountain(pen: Pen) -> None:
    rock = pen.pick("grey", "brown", "purple", "blue", minimum=150)
    for x, height in ((pen.vary(0.4, 0.6), 0.9), (pen.vary(-0.4, -0.2), 1.5)):
        half = 0.65 * height
        top = 0.8 - height
        pen.polygon([(x - half, 0.8), (x, top), (x + half, 0.8)], lighter(rock, pen.vary(-0.15, 0.1)))
        cap, snow = 0.3 * half, 0.3 * height
        zigzag = [(x + cap, top + snow), (x + 0.4 * cap, top + 0.7 * snow), (x, top + snow)]
        pen.polygon([(x, top), *zigzag, (x - 0.4 * cap, top + 0.7 * snow), (x - cap, top + snow)], (250, 250, 252))


def _mushroom(pen: Pen) -> None:
    cap = pen.pick("red", "brown", "orange", "purple")
    stem = pen.pick("white", "beige", minimum=120, against=[cap])
    pen.polygon([(-0.22, 0.0), (0.22, 0.0), (0.3, 0.95), (-0.3, 0.95)], stem)
    pen.polygon(arc(0, 0.15, 0.92, 1.0, 180, 360), cap)
    for x, y in ((-0.5, -0.15), (0.02, -0.5), (0.5, -0.12)):
        pen.disc(x, y, 0.14, stem)


def _traffic_light(pen: Pen) -> None:
    case = pen.pick("black", "grey", minimum=150)
    pen.box(-0.08, 0.5, 0.08, 1.0, case)
    pen.box(-0.38, -0.97, 0.38, 0.6, case)
    for y, name in ((-0.68, "red"), (-0.18, "yellow"), (0.32, "green")):
        pen.disc(0, y, 0.22, shade(name, pen.rng))


SCENES: dict[str, tuple[Scene, float]] = {
    "house": (_house, 8),
    "tree": (_tree, 8),
    "sailing boat": (_boat, 6),
    "sun": (_sun, 180),
    "face": (_face, 20),
    "car": (_car, 12),
    "flower": (_flower, 20),
    "fish": (_fish, 25),
    "snowman": (_snowman, 10),
    "umbrella": (_umbrella, 25),
    "rocket": (_rocket, 60),
    "clock": (_clock, 15),
    "rainbow": (_rainbow, 8),
    "mountain": (_mountain, 3),
    "mushroom": (_mushroom, 12),
    "traffic light": (_traffic_light, 8),
}
"""How each scene is drawn, and by how many degrees it may be turned either way."""


def draw_scene(pen: Pen, name: str) -> None:
    """Draws a scene.

    Args:
        pen: The pen, whose frame the scene fills.
        name: One of `SCENES`.
    """
    SCENES[name][0](pen)
