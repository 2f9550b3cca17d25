"""Thumbnails of probes: their shape, what clients may keep, what is remembered, and files that are not the probes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engine.index import Index
from query.api.errors import ApiError, ProblemKind
from query.api.thumbnails import Thumbnails
from tests.support.service import Asked, asking, small_app
from tests.support.small_index import make_filled_index


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """Left half red, right half blue, with a little noise."""
    pixels = np.random.default_rng(seed).integers(0, 10, (height, width, 3), dtype=np.uint8)
    pixels[:, : width // 2, 0] += 240
    pixels[:, width // 2 :, 2] += 240
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Probes of several shapes: 0 is wide, 1 tall, 2 small, 3 huge, the rest are tiny squares."""
    import tests.support.small_index as small

    place = tmp_path_factory.mktemp("thumbnails")
    written = small.write_probe_images

    def with_shapes(images: Path, n: int = small.N) -> Path:
        written(images, n)
        for number, shape in enumerate([(600, 300), (100, 400), (40, 20), (3000, 10)]):
            picture(*shape).save(images / f"{number:03d}.png")
        return images

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(small, "write_probe_images", with_shapes)
        make_filled_index(place / "zoo")
    return place / "zoo"


@pytest.fixture(scope="module")
def service(folder: Path) -> Iterator[Asked]:
    with asking(small_app(folder, thumbnail_px=192)) as asked:
        yield asked


def shown(content: bytes) -> Image.Image:
    image = Image.open(BytesIO(content))
    assert image.format == "WEBP"
    return image.convert("RGB")


@pytest.mark.parametrize(
    ("probe", "asked", "size"),
    [
        (0, "", (192, 96)),
        (0, "?size=100", (100, 50)),
        (1, "?size=100", (25, 100)),
        (2, "?size=100", (40, 20)),  # never larger than it is
        (3, "?size=64", (64, 1)),  # but never without a pixel
        (0, "?size=1", (32, 16)),
        (0, "?size=-5", (32, 16)),
        (0, "?size=100000", (512, 256)),
    ],
)
def test_a_probe_is_fitted_into_a_square(service: Asked, probe: int, asked: str, size: tuple[int, int]) -> None:
    answer = service.get(f"/v1/probes/{probe}/image{asked}")
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/webp"
    image = shown(answer.content)
    assert image.size == size
    if size[1] >= 16:
        left, right = np.asarray(image)[size[1] // 2, [2, size[0] - 3]].astype(int)
        assert left[0] - left[2] > 140
        assert right[2] - right[0] > 140


def test_what_a_client_has_is_not_sent_again(service: Asked) -> None:
    first = service.get("/v1/probes/0/image?size=64")
    tag = first.headers["etag"]
    assert first.headers["cache-control"] == "private, max-age=31536000, immutable"
    for given in (tag, f"W/{tag}", f'"other", {tag}', "*"):
        again = service.get("/v1/probes/0/image?size=64", headers={"If-None-Match": given})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["etag"] == tag
        assert again.headers["cache-control"] == first.headers["cache-control"]
    assert service.get("/v1/probes/0/image?size=64", headers={"If-None-Match": '"other"'}).status_code == 200
    tags = {
        service.get(f"/v1/probes/{probe}/image?size={size}").headers["etag"] for probe in (0, 1, 2) for size in (64, 65)
    }
    assert len(tags) == 6


@pytest.mark.parametrize("number", ["80", "-1", "99999999999999999999999999"])
def test_a_probe_that_there_is_not(service: Asked, number: str) -> None:
    answer = service.get(f"/v1/probes/{number}/image")
    assert answer.status_code == 404
    assert answer.json()["type"] == "urn:hubhound:problem:probe-not-found"
    assert "probes 0 to 79" in answer.json()["detail"]


@pytest.mark.parametrize("path", ["x/image", "1.5/image", "1/image?size=big", "%2e%2e%2fmanifest.json/image"])
def test_numbers_that_are_none(service: Asked, path: str) -> None:
    answer = service.get(f"/v1/probes/{path}")
    assert answer.status_code in {404, 422}
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.fixture
def own(tmp_path: Path) -> Index:
    return make_filled_index(tmp_path / "zoo")


def refused(thumbnails: Thumbnails, index: Index, probe: int) -> str:
    with pytest.raises(ApiError) as caught:
        thumbnails.get(index, probe, 64)
    assert caught.value.kind is ProblemKind.PROBE_NOT_FOUND
    assert str(index.probe_folder) not in caught.value.detail
    return caught.value.detail


def test_another_image_under_the_same_name_is_not_shown(own: Index) -> None:
    thumbnails = Thumbnails(kept_bytes=0)  # so that nothing is remembered
    path = own.probe_folder / own.probe_files[5][0]
    original = path.read_bytes()
    assert thumbnails.get(own, 5, 64).content
    picture(9, 9).save(path)
    assert "changed since the index was made" in refused(thumbnails, own, 5)
    path.write_bytes(original)
    assert thumbnails.get(own, 5, 64).content
    path.unlink()
    assert "can no longer be read" in refused(thumbnails, own, 5)


def test_a_file_is_read_whole_once(own: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    import query.api.thumbnails as module

    hashed: list[Path] = []
    hash_file = module.hash_file
    monkeypatch.setattr(module, "hash_file", lambda path: (hashed.append(path), hash_file(path))[1])
    thumbnails = Thumbnails(kept_bytes=0)
    for size in (32, 64, 64, 128):
        thumbnails.get(own, 5, size)
    assert len(hashed) == 1
    os.utime(own.probe_folder / own.probe_files[5][0])  # touched: it may be another one
    thumbnails.get(own, 5, 64)
    assert len(hashed) == 2


def test_a_damaged_image_is_not_shown(tmp_path: Path) -> None:
    """The bytes are those that were hashed, but no image can be made of them."""
    index = make_filled_index(tmp_path / "zoo")
    path = index.probe_folder / index.probe_files[5][0]
    path.write_bytes(path.read_bytes()[:40])
    files = [*index.probe_files]
    files[5] = files[5][0], hashlib.sha256(path.read_bytes()).hexdigest()
    index.__dict__["probe_files"] = tuple(files)
    assert "can no longer be read" in refused(Thumbnails(), index, 5)


def test_no_more_is_remembered_than_is_allowed(own: Index, monkeypatch: pytest.MonkeyPatch) -> None:
    import query.api.thumbnails as module

    opened: list[Path] = []
    open_image = module.open_image
    monkeypatch.setattr(module, "open_image", lambda path: (opened.append(path), open_image(path))[1])
    sizes = [len(Thumbnails().get(own, probe, 64).content) for probe in range(4)]
    opened.clear()
    thumbnails = Thumbnails(kept_bytes=sum(sizes[:3]))
    for probe in (0, 1, 2, 0, 1, 2):
        thumbnails.get(own, probe, 64)
    assert len(opened) == 3
    thumbnails.get(own, 0, 64)
    thumbnails.get(own, 3, 64)  # one that was not asked for for longest has to go: 1
    opened.clear()
    thumbnails.get(own, 0, 64)
    assert not opened
    thumbnails.get(own, 1, 64)
    assert len(opened) == 1
    assert sum(map(len, thumbnails._kept.values())) == thumbnails._kept_bytes <= sum(sizes[:3])
