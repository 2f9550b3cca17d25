"""Tasks, profiles and performance of invented models, with numbers that only survive bit for bit."""

from __future__ import annotations

import hashlib
import struct

import numpy as np

from engine.schema import Performance, Profile, Task, TaskImage


def make_task(name: str = "pets", images: int = 3, **facts: object) -> Task:
    sample = tuple(
        TaskImage(file=f"{i:03d}.jpg", sha256=hashlib.sha256(f"{name}{i}".encode()).hexdigest()) for i in range(images)
    )
    fields = {"name": name, "images": sample, "fingerprint": "f" * 64, "drawn_from": 99, **facts}
    return Task.model_validate(fields)


def make_profile(
    model: str = "open_clip:a/b", task: str = "pets", blocks: int = 4, seed: int = 0, **facts: object
) -> Profile:
    rng = np.random.default_rng(seed)
    fields = {
        "model": model,
        "revision": "r1",
        "task": task,
        "task_fingerprint": "f" * 64,
        "blocks": tuple(f"visual.transformer.resblocks.{i}" for i in range(blocks)),
        "conductance": tuple((rng.random(blocks) * 10.0 ** rng.integers(-300, 300, blocks)).tolist()),
        "images": 3,
        "n_steps": 50,
        "completeness_gap": rng.random() / 3,
        **facts,
    }
    return Profile.model_validate(fields)


def bits(record: Task | Profile | Performance) -> object:
    """Everything in a record, its floating-point numbers as bytes: equal exactly where all bits are."""

    def exact(value: object) -> object:
        if isinstance(value, float):
            return struct.pack("<d", value)
        return tuple(map(exact, value)) if isinstance(value, tuple | list) else value

    return type(record), {name: exact(value) for name, value in record.model_dump().items()}
