"""What a model's process may take, and what it is started with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from engine.placement import Placement  # imports torch, which a daemon does without

GIGABYTE = 10**9
SCRATCH_ENTRIES = 2000
"""So many files and folders may lie in a scratch folder: an honest model makes a dozen."""

MAX_OPEN_FILES = 512


@dataclass(frozen=True)
class Limits:
    """What one model's process may take.

    Attributes:
        memory_bytes: Memory of its own (files it has mapped do not count), beyond what it is born with.
        time_s: From the start of a job to its answer.
        models_per_child: So many models, and the process is replaced.
        growth_bytes: Grown by so much after a model, and the process is replaced.
        scratch_bytes: Of files in its scratch folder, and of each of them.
    """

    memory_bytes: int = 8 * GIGABYTE
    time_s: float = 900.0
    models_per_child: int = 100
    growth_bytes: int = 2 * GIGABYTE
    scratch_bytes: int = 8 * GIGABYTE


@dataclass(frozen=True)
class Setup:
    """What models are loaded and probed with.

    Attributes:
        index: Folder of the index, whose probes they are shown.
        probes: Where the probe images are now, None for where the index says.
        cache: Folder of the preprocessed probes.
        cache_bytes: Size beyond which the oldest of them are removed.
        device: Where models run: ``auto``, ``cpu``, ``cuda`` ...
        allow_pickle: Also open pickled weights, restricted to tensors.
        towers: They are vision-language models, whose towers are shown images of tasks, and no probes.
        autocast: What half precision models are tried in, as ``engine.placement.place`` takes it.
        compiler: Backend of torch.compile, ``off`` for none; only one that starts no compiler can work.
        max_batch: Images at once, at most.
        memory_share: Of a GPU's memory that each process may take, in (0, 1].
    """

    index: Path
    probes: Path | None
    cache: Path
    cache_bytes: int
    device: str = "cpu"
    allow_pickle: bool = False
    towers: bool = False
    autocast: str = "auto"
    compiler: str = "off"
    max_batch: int = 512
    memory_share: float = 1.0

    def place(self) -> Placement:
        """Where and how models run; on a GPU its driver is started, so that this process can no longer be forked.

        Raises:
            InputError: The device or something else is unknown or absent.
        """
        from engine.placement import place

        return place(
            self.device,
            autocast=self.autocast,
            compiler=self.compiler,
            max_batch=self.max_batch,
            memory_share=self.memory_share,
        )

    @property
    def on_gpu(self) -> bool:
        """Whether a model may run on an NVIDIA device: its driver reserves far more address space than memory."""
        return self.device.startswith("cuda") or (self.device == "auto" and Path("/dev/nvidiactl").exists())
