"""Probe sets: every kind of image a folder can hold, and every kind of damage."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.dead_leaves import draw_dead_leaves
from engine.errors import ProbeError
from engine.probes import checked_images, find_images, gather, open_image, read_folder


def gradient(width: int = 40, height: int = 30) -> Image.Image:
    x = np.linspace(0, 255, width)[None, :].repeat(height, 0)
    y = np.linspace(0, 255, height)[:, None].repeat(width, 1)
    return Image.fromarray(np.stack([x, y, np.full_like(x, 90)], axis=2).astype(np.uint8))


def test_folder_is_recursive_sorted_and_picky(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    for name in ("b/2.PNG", "a.jpeg", "b/1.webp", "c.bmp", "d.jpg"):
        path = tmp_path / name
        kind = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower(), path.suffix[1:].upper())
        gradient().save(path, format=kind)
    (tmp_path / "notes.txt").write_text("no image")
    names = [path.relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert names == ["a.jpeg", "b/1.webp", "b/2.PNG", "c.bmp", "d.jpg"]
    assert [probe.file for probe in read_folder(tmp_path).probes] == names


def test_fingerprint_is_over_ordered_contents(tmp_path: Path) -> None:
    for folder, names in (("x", "ab"), ("y", "cd"), ("z", "ba")):
        (tmp_path / folder).mkdir()
        for i, name in enumerate(names):
            gradient(10 + i).save(tmp_path / folder / f"{name}.png")
    x, y, z = (read_folder(tmp_path / name).fingerprint for name in "xyz")
    assert x == y  # other names, same contents in the same order
    assert x != z


@pytest.mark.parametrize("suffix", ["png", "webp"])
def test_alpha_is_laid_on_white(tmp_path: Path, suffix: str) -> None:
    image = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    image.putpixel((0, 0), (10, 20, 30, 255))
    image.save(tmp_path / f"a.{suffix}", lossless=True)
    got = open_image(tmp_path / f"a.{suffix}")
    assert got.mode == "RGB"
    assert got.getpixel((0, 0)) == (10, 20, 30)
    assert got.getpixel((3, 3)) == (255, 255, 255)


def test_palette_with_transparency_and_grey_with_alpha(tmp_path: Path) -> None:
    palette = Image.new("P", (2, 2), 0)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.putpixel((1, 1), 1)
    palette.save(tmp_path / "p.png", transparency=0)
    got = open_image(tmp_path / "p.png")
    assert got.getpixel((0, 0)) == (255, 255, 255)
    assert got.getpixel((1, 1)) == (9, 8, 7)
    Image.new("LA", (2, 2), (7, 0)).save(tmp_path / "la.png")
    assert open_image(tmp_path / "la.png").getpixel((0, 0)) == (255, 255, 255)


def test_exif_rotation_is_applied(tmp_path: Path) -> None:
    image = gradient(40, 20)
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to show
    image.save(tmp_path / "r.jpg", exif=exif, quality=95)
    got = open_image(tmp_path / "r.jpg")
    assert got.size == (20, 40)
    assert got.getpixel((19, 0))[0] < 30  # the left upper corner went to the right


def test_grey_16_bit_and_cmyk(tmp_path: Path) -> None:
    Image.fromarray(np.full((3, 3), 130, np.uint8)).save(tmp_path / "l.png")
    assert open_image(tmp_path / "l.png").getpixel((0, 0)) == (130, 130, 130)
    Image.fromarray(np.full((3, 3), 0x8000, np.uint16)).save(tmp_path / "deep.png")
    assert open_image(tmp_path / "deep.png").getpixel((0, 0)) == (127, 127, 127)
    Image.new("CMYK", (3, 3), (0, 255, 255, 0)).save(tmp_path / "c.jpg", quality=100)
    red, green, blue = open_image(tmp_path / "c.jpg").getpixel((1, 1))
    assert red > 200
    assert max(green, blue) < 60


def test_damage_names_the_file(tmp_path: Path) -> None:
    text = tmp_path / "text.jpg"
    text.write_text("hello, this is no image")
    with pytest.raises(ProbeError, match=r"text\.jpg is not an image"):
        open_image(text)
    gradient(300, 300).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    cut = tmp_path / "cut.jpg"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(ProbeError, match=r"cut\.jpg is damaged") as caught:
        open_image(cut)
    assert caught.value.path == cut
    with pytest.raises(ProbeError, match="missing"):
        open_image(tmp_path / "absent.jpg")
    empty = tmp_path / "empty.png"
    empty.write_bytes(b"")
    with pytest.raises(ProbeError, match="not an image"):
        open_image(empty)


def test_bombs_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gradient(100, 100).save(tmp_path / "bomb.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(ProbeError, match="too large to be safe"):
        open_image(tmp_path / "bomb.png")


def test_bad_images_stop_or_are_skipped(tmp_path: Path) -> None:
    for name in "ac":
        gradient().save(tmp_path / f"{name}.png")
    (tmp_path / "b.png").write_text("no")
    probes = read_folder(tmp_path)
    with pytest.raises(ProbeError, match="--skip-bad"):
        list(checked_images(probes))
    told: list[ProbeError] = []
    good = [probe.file for probe, _ in checked_images(probes, skip_bad=True, skipped=told.append)]
    assert good == ["a.png", "c.png"]
    assert len(told) == 1


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="holds 0 images"):
        read_folder(tmp_path)
    with pytest.raises(ProbeError, match="does not exist"):
        read_folder(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "spec", ["dead-leaves:x", "dead-leaves:1", "hf:nodataset", "hf:a/b:train:70000", "hf:a/b:train:"]
)
def test_malformed_sources(spec: str, tmp_path: Path) -> None:
    with pytest.raises(ProbeError, match="probes"):
        gather(spec, tmp_path / "new")


def test_dead_leaves_depend_on_the_seed_alone(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    first = gather("dead-leaves:3", tmp_path / "one", seed=4, progress=lambda done, total: seen.append((done, total)))
    longer = gather("dead-leaves:5", tmp_path / "two", seed=4)
    other = gather("dead-leaves:3", tmp_path / "three", seed=5)
    assert seen == [(1, 3), (2, 3), (3, 3)]
    assert [p.sha256 for p in first.probes] == [p.sha256 for p in longer.probes][:3]
    assert first.fingerprint != other.fingerprint
    assert first.source == "dead-leaves:3@seed=4"
    assert first.image(0).size == (256, 256)


def test_dead_leaves_have_the_spectrum_of_natural_images() -> None:
    """Power falls about with the square of the frequency (Lee, Mumford and Huang, 2001)."""
    slopes = []
    for seed in range(6):
        grey = np.asarray(draw_dead_leaves(np.random.default_rng(seed)).convert("L"), dtype=float)
        window = np.hanning(256)
        power = np.abs(np.fft.fft2((grey - grey.mean()) * window[:, None] * window)) ** 2
        f = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
        bins = np.geomspace(0.02, 0.2, 8)
        means = [power[(f >= low) & (f < high)].mean() for low, high in itertools.pairwise(bins)]
        slopes.append(np.polyfit(np.log(np.sqrt(bins[:-1] * bins[1:])), np.log(means), 1)[0])
    assert -3.2 < np.mean(slopes) < -1.4
