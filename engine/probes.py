"""Probe sets: the ordered images that every model is shown."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from engine.descriptors import MAX_PROBES
from engine.errors import ProbeError

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".webp", ".bmp"})
"""File names that a folder of probes is searched for; what a file holds is decided by its bytes."""

FORMATS = ("JPEG", "PNG", "WEBP", "BMP")
"""What Pillow may decode; other formats have decoders that nobody needs here and that have had holes."""

MIN_PROBES = 2

Progress = Callable[[int, int], None]
"""Called with (done, total)."""


def open_image(path: Path) -> Image.Image:
    """Reads an image whole: EXIF rotation applied, alpha laid on white, CMYK, greyscale and palettes as RGB.

    Args:
        path: JPEG, PNG, WebP or BMP of any size.

    Returns:
        An RGB image.

    Raises:
        ProbeError: The file is missing, no image, truncated, corrupt or larger than Pillow's limit against bombs.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            image.load()
            return _to_rgb(ImageOps.exif_transpose(image))
    except FileNotFoundError as error:
        raise ProbeError(f"the image {path} is missing", path) from error
    except UnidentifiedImageError as error:
        raise ProbeError(f"{path} is not an image that can be read (JPEG, PNG, WebP, BMP)", path) from error
    except Image.DecompressionBombError as error:
        raise ProbeError(f"the image {path} is too large to be safe: {error}", path) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ProbeError(f"the image {path} is damaged: {error}", path) from error


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image
    if image.mode.startswith("I;16") or image.mode == "I":  # 16 bits a grey value: Pillow would clip, not scale
        grey = np.asarray(image, dtype=np.float64)
        return Image.fromarray((grey / (65_535 if grey.max() > 255 else 255) * 255).astype(np.uint8)).convert("RGB")
    if image.mode in {"RGBA", "LA", "PA", "RGBa", "La"} or "transparency" in image.info:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, "white")
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image.convert("RGB")


@dataclass(frozen=True)
class Probe:
    """One probe.

    Attributes:
        file: Its name, relative to the probe set's folder.
        sha256: Of the file's bytes, hexadecimal.
    """

    file: str
    sha256: str


@dataclass(frozen=True)
class ProbeSet:
    """An ordered set of images on this disk.

    Attributes:
        source: As the user named it: a folder, ``hf:ORG/DATASET:SPLIT:N`` or ``dead-leaves:N``.
        folder: Where the files are.
        probes: In order; at most 65,535.
    """

    source: str
    folder: Path
    probes: tuple[Probe, ...]

    def __post_init__(self) -> None:
        if len(self.probes) < MIN_PROBES:
            raise ProbeError(
                f"{self.folder} holds {len(self.probes)} images (JPEG, PNG, WebP, BMP): "
                f"a probe set needs at least {MIN_PROBES}, better some hundreds",
                self.folder,
            )
        if len(self.probes) > MAX_PROBES:
            raise ProbeError(
                f"{self.folder} holds {len(self.probes)} images: at most {MAX_PROBES} are possible", self.folder
            )

    def __len__(self) -> int:
        return len(self.probes)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the ordered contents, hexadecimal; names do not count."""
        return probes_fingerprint(probe.sha256 for probe in self.probes)

    def path(self, i: int) -> Path:
        """Path of probe i."""
        return self.folder / self.probes[i].file

    def image(self, i: int) -> Image.Image:
        """Probe i as an RGB image.

        Raises:
            ProbeError: It cannot be read.
        """
        return open_image(self.path(i))


def probes_fingerprint(hashes: Iterable[str]) -> str:
    """SHA-256 over the hashes of the ordered probes, hexadecimal."""
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def find_images(folder: Path) -> list[Path]:
    """Image files below a folder, recursive, sorted by their path.

    Raises:
        ProbeError: There is no such folder.
    """
    if not folder.is_dir():
        raise ProbeError(f"the probe folder {folder} does not exist", folder)
    found = (path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    return sorted(found, key=lambda path: path.relative_to(folder).parts)


def read_folder(folder: Path, source: str | None = None) -> ProbeSet:
    """The images of a folder as a probe set, without decoding them.

    Args:
        folder: Searched recursively; the order is that of the sorted paths.
        source: What to record as the source; the folder's absolute path by default.

    Raises:
        ProbeError: The folder is missing, unreadable or holds fewer than two images.
    """
    paths = find_images(folder)
    with ThreadPoolExecutor() as pool:
        try:
            hashes = list(pool.map(hash_file, paths))
        except OSError as error:
            raise ProbeError(f"a probe cannot be read: {error}", folder) from error
    probes = (Probe(path.relative_to(folder).as_posix(), sha) for path, sha in zip(paths, hashes, strict=True))
    return ProbeSet(source or str(folder.resolve()), folder.resolve(), tuple(probes))


def hash_file(path: Path) -> str:
    """SHA-256 of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked_images(
    probes: ProbeSet, skip_bad: bool = False, skipped: Callable[[ProbeError], None] | None = None
) -> Iterator[tuple[Probe, Image.Image]]:
    """Decodes every probe in order.

    Args:
        probes: The set.
        skip_bad: Leave out what cannot be read instead of stopping.
        skipped: Called with the error of each probe left out.

    Yields:
        Probes with their images.

    Raises:
        ProbeError: An image cannot be read and ``skip_bad`` is off; ``path`` says which.
    """
    for i, probe in enumerate(probes.probes):
        try:
            image = probes.image(i)
        except ProbeError as error:
            if not skip_bad:
                raise ProbeError(f"{error} (--skip-bad leaves such images out)", error.path) from error
            if skipped:
                skipped(error)
            continue
        yield probe, image


_HUB = re.compile(r"hf:(?P<dataset>[\w.-]+/[\w.-]+):(?P<split>[\w.-]+):(?P<count>\d+)")
_LEAVES = re.compile(r"dead-leaves:(?P<count>\d+)")


def is_folder_spec(spec: str) -> bool:
    """Whether a probe source is a folder, whose images stay where they are."""
    return not spec.startswith(("hf:", "dead-leaves:"))


def gather(spec: str, folder: Path, seed: int = 0, progress: Progress | None = None) -> ProbeSet:
    """The probe set that a specification names.

    Args:
        spec: A folder; ``hf:ORG/DATASET:SPLIT:N``, N rows of a parquet image dataset on the Hub, drawn with the seed;
            or ``dead-leaves:N``, N generated images.
        folder: Where images are written that do not lie in a folder yet; must be empty or absent.
        seed: Of the draw or the generator.
        progress: Called with (done, total) while images are fetched or generated.

    Raises:
        ProbeError: The specification is malformed or its images cannot be had.
    """
    if is_folder_spec(spec):
        return read_folder(Path(spec).expanduser())
    hub, leaves = _HUB.fullmatch(spec), _LEAVES.fullmatch(spec)
    if not hub and not leaves:
        raise ProbeError(
            f"probes {spec!r}: use a folder, hf:ORG/DATASET:SPLIT:N or dead-leaves:N, N the number of images", spec
        )
    count = int((hub or leaves)["count"])  # type: ignore[index]
    if not MIN_PROBES <= count <= MAX_PROBES:
        raise ProbeError(f"probes {spec!r}: the number of images must lie between {MIN_PROBES} and {MAX_PROBES}", spec)
    folder.mkdir(parents=True, exist_ok=True)
    if hub:
        from engine.hub_dataset import sample_hub_dataset

        sample_hub_dataset(hub["dataset"], hub["split"], count, seed, folder, progress)
    else:
        from engine.dead_leaves import write_dead_leaves

        write_dead_leaves(folder, count, seed, progress)
    return read_folder(folder, f"{spec}@seed={seed}")
