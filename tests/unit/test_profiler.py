"""Images shown to a model become profiles, each once."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import engine.conductance as conductance_module
import engine.path_memory as memory_module
import indexers.profiler as profiler_module
from engine.blocks import find_blocks
from engine.conductance import layer_conductance
from engine.conductance_cache import ConductanceCache
from engine.encoder import open_dual_encoder
from engine.errors import BlocksError, ConductanceError, IndexMismatchError, InputError, ProbeError
from engine.path_memory import free_bytes, inputs_that_fit
from engine.schema import Profile
from indexers.profiler import (
    ImageFile,
    ProfiledImages,
    Profiler,
    ProfileSettings,
    default_precision,
    make_profile,
)
from indexers.towers import TowerSource, expand_towers, load_tower
from tests.support.knowledge import make_profile as pretend_profile
from tests.support.knowledge import make_task
from tests.support.tiny_models import timm_model
from tests.support.tiny_vlm import BLOCKS, COCA_CONFIG, inputs_of, save_vlm, write_photos

STEPS = 4
SETTINGS = ProfileSettings(n_steps=STEPS)


def files(paths: list[Path]) -> list[ImageFile]:
    return [ImageFile(path, hashlib.sha256(path.read_bytes()).hexdigest()) for path in paths]


@pytest.fixture
def photos(tmp_path: Path) -> list[ImageFile]:
    return files(write_photos(tmp_path / "photos", 5, 0))


@pytest.fixture
def vlm(tmp_path: Path) -> TowerSource:
    return TowerSource(save_vlm(tmp_path / "clip"))


@pytest.fixture
def cache(tmp_path: Path) -> ConductanceCache:
    return ConductanceCache(tmp_path / "memory.sqlite")


@pytest.fixture
def make(vlm: TowerSource, cache: ConductanceCache) -> Callable[..., Profiler]:
    """Makes profilers that share a memory."""

    def made(settings: ProfileSettings = SETTINGS, recorded: Profile | None = None, **how: Any) -> Profiler:
        return Profiler(how.get("source", vlm), cache, "cpu", settings, recorded)

    return made


@pytest.fixture
def no_loading(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    def forbid() -> None:
        def load(*_: object) -> None:
            raise AssertionError("a model was loaded")

        monkeypatch.setattr(profiler_module, "load_tower", load)

    return forbid


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Images and largest pass of each computation, as they come."""
    seen: list[tuple[int, int]] = []

    def counted(forward: Any, module: Any, blocks: Any, images: Any, **how: Any) -> Any:
        seen.append((len(images), how["max_batch"]))
        return layer_conductance(forward, module, blocks, images, **how)

    monkeypatch.setattr(conductance_module, "layer_conductance", counted)
    return seen


def by_hand(name: str, images: list[ImageFile], n_steps: int = STEPS) -> Any:
    model, _, _ = open_dual_encoder(name)
    model.eval()
    inputs = torch.stack([inputs_of(image.path) for image in images])
    told = {"normalize": False}
    return layer_conductance(
        lambda x: model.encode_image(x, **told), model, find_blocks(model), inputs, n_steps=n_steps
    )


def recorded_of(found: ProfiledImages, source: TowerSource, settings: ProfileSettings = SETTINGS) -> Profile:
    return make_profile(source.name, make_task(), found, settings)


@pytest.mark.parametrize("config", [None, COCA_CONFIG])
def test_profiles_are_the_conductance_of_the_images(
    config: Any, make: Callable[..., Profiler], photos: list[ImageFile], tmp_path: Path
) -> None:
    name = save_vlm(tmp_path / "other", 3, config) if config else save_vlm(tmp_path / "other", 3)
    told: list[tuple[str, float, float]] = []
    found = make(source=TowerSource(name)).profile(photos, lambda *what: told.append(what))
    expected = by_hand(name, photos)
    np.testing.assert_allclose(found.rows, expected.mean_abs, rtol=1e-5)
    np.testing.assert_allclose(found.gaps, expected.completeness_gap, rtol=1e-3, atol=1e-5)
    assert found.rows.shape == (5, BLOCKS) and (found.rows > 0).all()
    assert found.blocks == expected.blocks and found.computed == 5
    assert told[0] == ("loading", 0, 0) and told[-1] == ("profiling", 5, 5)
    done = [part for what, part, _ in told if what == "profiling"]
    assert done == sorted(done) and set(done) == {1, 2, 3, 4, 5}


def test_parts_of_images_count_as_progress(make: Callable[..., Profiler], photos: list[ImageFile]) -> None:
    told: list[tuple[str, float, float]] = []
    make(replace(SETTINGS, max_batch=3)).profile(photos[:2], lambda *what: told.append(what))
    done = [part for what, part, _ in told if what == "profiling"]
    assert done == sorted(done) and 0 < done[0] < 1 < done[-3] < 2 and {of for _, _, of in told[1:]} == {2}


def test_a_classifier(make: Callable[..., Profiler], photos: list[ImageFile], tmp_path: Path) -> None:
    (source,) = expand_towers([str(timm_model(tmp_path / "org/a"))])
    found = make(source=source).profile(photos[:2])
    tower = load_tower(source, torch.device("cpu"))
    from engine.probes import open_image

    inputs = torch.stack([tower.preprocess(open_image(photo.path)) for photo in photos[:2]])
    expected = layer_conductance(tower.forward, tower.module, find_blocks(tower.module), inputs, n_steps=STEPS)
    np.testing.assert_allclose(found.rows, expected.mean_abs, rtol=1e-4)
    assert found.revision == tower.revision and found.parameters == tower.parameters


def test_the_number_of_steps_and_the_pattern_count(make: Callable[..., Profiler], photos: list[ImageFile]) -> None:
    usual = make().profile(photos[:1])
    more = make(replace(SETTINGS, n_steps=9)).profile(photos[:1])
    assert more.computed == 1 and not np.allclose(usual.rows, more.rows, rtol=1e-6)
    one = make(replace(SETTINGS, pattern="visual.transformer.resblocks.1")).profile(photos[:1])
    assert one.blocks == ("visual.transformer.resblocks.1",) and one.computed == 1
    np.testing.assert_allclose(one.rows[:, 0], usual.rows[:, 1], rtol=1e-5)
    half = make(replace(SETTINGS, precision="bfloat16")).profile(photos[:1])
    assert half.computed == 1
    assert not np.array_equal(half.rows, usual.rows)
    np.testing.assert_allclose(half.rows, usual.rows, rtol=0.1)


@pytest.mark.parametrize("max_batch", [2, 3, 5, 11, 100])
def test_max_batch_changes_no_number(
    max_batch: int, make: Callable[..., Profiler], photos: list[ImageFile], passes: list[tuple[int, int]], vlm: Any
) -> None:
    found = make(replace(SETTINGS, max_batch=max_batch)).profile(photos)
    np.testing.assert_allclose(found.rows, by_hand(vlm.name, photos).mean_abs, rtol=1e-5)
    at_once = max(1, max_batch // (STEPS + 1))
    assert passes[0] == (min(5, at_once), max_batch) and sum(images for images, _ in passes) == 5


def test_known_images_need_no_loading(
    make: Callable[..., Profiler], photos: list[ImageFile], vlm: TowerSource, no_loading: Callable[[], None]
) -> None:
    first = make().profile(photos)
    no_loading()
    again = make(recorded=recorded_of(first, vlm)).profile(photos[::-1])
    assert again.computed == 0 and again.parameters == first.parameters and again.revision == first.revision
    np.testing.assert_array_equal(again.rows, first.rows[::-1])
    np.testing.assert_array_equal(again.gaps, first.gaps[::-1])
    with pytest.raises(AssertionError, match="loaded"):
        make(recorded=recorded_of(first, vlm)).profile(files(write_photos(photos[0].path.parent / "new", 1, 9)))


def test_one_image_more_is_the_only_one_computed(
    make: Callable[..., Profiler], photos: list[ImageFile], passes: list[tuple[int, int]]
) -> None:
    first = make(replace(SETTINGS, max_batch=5)).profile(photos[:3])
    passes.clear()
    all_of_them = make(replace(SETTINGS, max_batch=5)).profile(photos)
    assert all_of_them.computed == 2 and [images for images, _ in passes] == [1, 1]
    np.testing.assert_array_equal(all_of_them.rows[:3], first.rows)


def test_equal_images_are_computed_once(make: Callable[..., Profiler], photos: list[ImageFile], tmp_path: Path) -> None:
    shutil.copy(photos[0].path, tmp_path / "copy.png")
    (copy,) = files([tmp_path / "copy.png"])
    found = make().profile([photos[0], photos[1], copy, photos[0]])
    assert found.computed == 2 and found.rows.shape == (4, BLOCKS)
    for i in (2, 3):
        np.testing.assert_array_equal(found.rows[i], found.rows[0])


@pytest.mark.parametrize("kind", [KeyboardInterrupt, SystemExit, ZeroDivisionError])
def test_what_was_done_before_an_interruption_is_kept(
    kind: type[BaseException],
    make: Callable[..., Profiler],
    photos: list[ImageFile],
    passes: list[tuple[int, int]],
    vlm: TowerSource,
) -> None:
    def interrupt(what: str, done: float, total: float) -> None:
        if what == "profiling" and done > 2:
            raise kind

    settings = replace(SETTINGS, max_batch=5)
    with pytest.raises(kind):
        make(settings).profile(photos, interrupt)
    passes.clear()
    found = make(settings).profile(photos)
    assert found.computed == 3 and len(passes) == 3
    np.testing.assert_allclose(found.rows, by_hand(vlm.name, photos).mean_abs, rtol=1e-5)


def test_a_bad_image_keeps_what_was_done(
    make: Callable[..., Profiler], photos: list[ImageFile], passes: list[tuple[int, int]]
) -> None:
    photos[3].path.write_bytes(b"no image")
    settings = replace(SETTINGS, max_batch=5)
    with pytest.raises(ProbeError, match=r"03\.png"):
        make(settings).profile(photos)
    passes.clear()
    assert make(settings).profile([*photos[:3], photos[4]]).computed == 1


def test_no_image_is_an_error(make: Callable[..., Profiler], no_loading: Callable[[], None]) -> None:
    no_loading()
    with pytest.raises(InputError, match="no image"):
        make().profile([])


def test_changed_weights_are_noticed(make: Callable[..., Profiler], photos: list[ImageFile], vlm: TowerSource) -> None:
    first = make().profile(photos[:1])
    save_vlm(Path(vlm.name.removeprefix("open_clip:local-dir:")), seed=1)
    recorded = recorded_of(first, vlm)
    np.testing.assert_array_equal(make(recorded=recorded).profile(photos[:1]).rows, first.rows)
    with pytest.raises(IndexMismatchError, match="weights of") as caught:
        make(recorded=recorded).profile(photos)
    assert f"hubhound profile {vlm.name} --again" in str(caught.value)
    assert caught.value.part == "weights" and caught.value.expected == first.revision
    anew = make().profile(photos[:1])
    assert anew.computed == 1 and anew.revision != first.revision and not np.allclose(anew.rows, first.rows)


def test_blocks_that_are_gone_are_named(make: Callable[..., Profiler], photos: list[ImageFile], vlm: Any) -> None:
    recorded = recorded_of(make().profile(photos[:1]), vlm)
    gone = recorded.model_copy(update={"blocks": ("visual.nothing", "visual.transformer")})
    with pytest.raises(IndexMismatchError, match=r"visual\.nothing.*--again") as caught:
        make(recorded=gone).profile(photos)
    assert caught.value.part == "blocks"


def test_recorded_blocks_are_used_again(make: Callable[..., Profiler], photos: list[ImageFile], vlm: Any) -> None:
    settings = replace(SETTINGS, pattern="visual.transformer.resblocks.1")
    recorded = recorded_of(make(settings).profile(photos[:1]), vlm)
    found = make(recorded=recorded).profile(photos)
    assert found.blocks == ("visual.transformer.resblocks.1",) and found.computed == 4
    np.testing.assert_allclose(found.rows[:, 0], by_hand(vlm.name, photos).mean_abs[:, 1], rtol=1e-5)
    make(settings, recorded).check_blocks()
    with pytest.raises(InputError, match=r"resblocks\.1, and --blocks .*resblocks\.\*.* names others"):
        make(replace(SETTINGS, pattern="visual.transformer.resblocks.*"), recorded).check_blocks()


def test_a_pattern_that_names_nothing(make: Callable[..., Profiler], photos: list[ImageFile]) -> None:
    with pytest.raises(BlocksError, match="nowhere"):
        make(replace(SETTINGS, pattern="nowhere.*")).profile(photos)


def starving(limit: int, message: str = "CUDA out of memory. Tried to allocate 2 GiB.\nmore") -> Any:
    def compute(forward: Any, module: Any, blocks: Any, images: Any, **how: Any) -> Any:
        if how["max_batch"] > limit:
            raise RuntimeError(message)
        return layer_conductance(forward, module, blocks, images, **how)

    return compute


@pytest.mark.parametrize("message", ["CUDA out of memory", "DefaultCPUAllocator: can't allocate memory: 5 bytes"])
def test_smaller_passes_where_memory_ends(
    message: str, make: Callable[..., Profiler], photos: list[ImageFile], monkeypatch: pytest.MonkeyPatch, vlm: Any
) -> None:
    expected = by_hand(vlm.name, photos).mean_abs
    for limit, reached in ((3, 2), (8, 5), (10, 10)):  # 20, 10, 5, 2
        monkeypatch.setattr(conductance_module, "layer_conductance", starving(limit, message))
        source = replace(vlm, name=save_vlm(photos[0].path.parent / f"{limit}/clip"))
        profiler = make(replace(SETTINGS, max_batch=20), source=source)
        found = profiler.profile(photos)
        assert profiler._max_batch == reached
        np.testing.assert_allclose(found.rows, expected, rtol=1e-5)


def test_no_memory_even_for_two_inputs(
    make: Callable[..., Profiler], photos: list[ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conductance_module, "layer_conductance", starving(1))
    with pytest.raises(ConductanceError, match=r"two inputs.*Tried to allocate 2 GiB\.$"):
        make(replace(SETTINGS, max_batch=20)).profile(photos)
    monkeypatch.setattr(memory_module, "layer_conductance", starving(1))
    with pytest.raises(ConductanceError, match="two inputs"):
        make().profile(photos)


@pytest.mark.parametrize("kind", [RuntimeError, ValueError, AssertionError, TypeError])
@pytest.mark.parametrize("where", [conductance_module, memory_module])
def test_a_network_that_cannot_run(
    kind: type[Exception],
    where: Any,
    make: Callable[..., Profiler],
    photos: list[ImageFile],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise kind("shapes do not fit\nmuch more")

    monkeypatch.setattr(where, "layer_conductance", fail)
    with pytest.raises(ConductanceError) as caught:
        make().profile(photos)
    assert str(caught.value).endswith("cannot be profiled: shapes do not fit")


def test_a_device_without_room(
    make: Callable[..., Profiler], photos: list[ImageFile], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.\nmore")

    monkeypatch.setattr(profiler_module, "load_tower", load)
    with pytest.raises(ConductanceError, match=r"cannot be moved to cpu: CUDA out of memory\.$"):
        make().profile(photos)


def test_the_record_is_the_mean_over_the_images(
    make: Callable[..., Profiler], photos: list[ImageFile], vlm: TowerSource
) -> None:
    found = make().profile(photos)
    record = make_profile(vlm.name, make_task("pets", 5), found, SETTINGS)
    np.testing.assert_allclose(record.conductance, by_hand(vlm.name, photos).mean_abs.mean(axis=0), rtol=1e-5)
    assert record.completeness_gap == pytest.approx(float(found.gaps.mean()))
    facts = (record.model, record.task, record.images, record.n_steps, record.precision, record.task_fingerprint)
    assert facts == (vlm.name, "pets", 5, STEPS, "float32", "f" * 64)


def test_how_many_inputs_fit(vlm: TowerSource, photos: list[ImageFile], monkeypatch: pytest.MonkeyPatch) -> None:
    tower = load_tower(vlm, torch.device("cpu"))
    blocks, image = find_blocks(tower.module), inputs_of(photos[0].path)[None]

    def fit(n_steps: int = 50) -> int:
        return inputs_that_fit(tower.forward, tower.module, blocks, image, n_steps)

    assert fit() == 17 and fit(1) == 2 and fit(9) == 10  # a CPU is busy with seventeen
    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 0)
    assert fit() == 2
    sizes = []
    for free in (10**5, 10**6, 10**7, 10**12):
        monkeypatch.setattr(memory_module, "free_bytes", lambda device, free=free: free)
        sizes.append(fit())
    assert sizes == sorted(sizes) and 2 <= sizes[0] < 17 and sizes[-1] == 17


def test_a_wider_network_keeps_more(tmp_path: Path, photos: list[ImageFile], monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.support.tiny_vlm import CLIP_CONFIG

    monkeypatch.setattr(memory_module, "free_bytes", lambda device: 10**6)
    monkeypatch.setattr(memory_module, "_CPU", 1001)
    fits = []
    for width in (16, 64):
        config = {**CLIP_CONFIG, "vision_cfg": {**CLIP_CONFIG["vision_cfg"], "width": width}}
        tower = load_tower(TowerSource(save_vlm(tmp_path / str(width), config=config)), torch.device("cpu"))
        image = inputs_of(photos[0].path)[None]
        fits.append(inputs_that_fit(tower.forward, tower.module, find_blocks(tower.module), image, 1000))
    assert 2.5 < fits[0] / fits[1] < 6  # four times as wide


def test_free_memory_is_a_number_of_bytes() -> None:
    import psutil

    free = free_bytes(torch.device("cpu"))
    assert 0 < free <= psutil.virtual_memory().total


def test_files_that_were_read_do_not_take_memory_from_a_control_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text("MemTotal: 99999 kB\nMemAvailable:    8000 kB\n")
    group = tmp_path / "group"
    group.mkdir()
    real = {"/proc/meminfo": tmp_path / "meminfo", "/sys/fs/cgroup": group}
    monkeypatch.setattr(memory_module, "Path", lambda path: real[path])
    cpu = torch.device("cpu")
    assert free_bytes(cpu) == 8_192_000  # no group
    (group / "memory.max").write_text("1000000\n")
    (group / "memory.current").write_text("900000\n")
    (group / "memory.stat").write_text("anon 400000\ninactive_file 300000\nactive_file 200000\n")
    assert free_bytes(cpu) == 600_000
    (group / "memory.max").write_text("max\n")
    assert free_bytes(cpu) == 8_192_000


def test_precision_by_device() -> None:
    assert default_precision(torch.device("cuda")) == "float16"
    assert default_precision(torch.device("cpu")) == default_precision(torch.device("mps")) == "float32"


def test_a_profile_may_stand_for_its_key(
    make: Callable[..., Profiler], photos: list[ImageFile], no_loading: Callable[[], None], vlm: TowerSource
) -> None:
    first = make().profile(photos)
    no_loading()
    recorded = pretend_profile(
        vlm.name, revision=first.revision, blocks=BLOCKS, n_steps=STEPS, parameters=first.parameters
    )
    assert make(recorded=recorded).profile(photos).computed == 0
