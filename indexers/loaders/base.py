"""What a loader gets and what it gives back, whatever library the model came from.

Importing this module imports neither torch nor Pillow: whoever lists and fetches repositories needs only the records.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from PIL import Image


@dataclass(frozen=True)
class Metadata:
    """What the Hub or a model card says about a repository; nothing of it is verified.

    Attributes:
        licence: Licence id, several joined by ", ".
        tags: As stated.
        downloads: Of the last 30 days, None for a local folder.
        likes: None for a local folder.
        library: ``timm``, ``transformers``, ``onnx``, ...
    """

    licence: str | None = None
    tags: tuple[str, ...] = ()
    downloads: int | None = None
    likes: int | None = None
    library: str | None = None


@dataclass(frozen=True)
class Repository:
    """A model repository whose files lie on this disk.

    Attributes:
        repo: Id, ``org/name``.
        revision: Commit sha, or content hash of a local folder.
        folder: Where the files are.
        metadata: What the Hub or the card states.
    """

    repo: str
    revision: str
    folder: Path
    metadata: Metadata = field(default_factory=Metadata)


@dataclass(frozen=True)
class Preprocessing:
    """A model's own preprocessing, split at the last point where pixels are still bytes.

    The first part (resize, crop) is expensive and shared by every model with the same ``key``; its result is kept on
    disk. The second part (scale, normalise) is a cheap affine map per channel.

    Attributes:
        key: Names the first part: equal keys give equal bytes.
        size: Height and width after the first part, in pixels.
        to_pixels: Image of any size -> uint8 tensor ``[3, height, width]``; safe to call from several threads.
        mean: Three means, of the pixels scaled to 0..1.
        std: Three standard deviations, likewise.
        scale: Factor from bytes to the scaled pixels, 1/255 nearly always.
    """

    key: str
    size: tuple[int, int]
    to_pixels: Callable[[Image.Image], torch.Tensor]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    scale: float = 1.0 / 255.0

    def normalise(self, pixels: torch.Tensor) -> torch.Tensor:
        """The second part: ``(scale * pixels - mean) / std`` per channel.

        Args:
            pixels: Bytes of the first part, uint8 ``[..., 3, height, width]``, on any device.

        Returns:
            What the model takes, float32, same shape, device and memory format.
        """
        import torch  # see the module's docstring

        factors = [self.scale / std for std in self.std]
        offsets = [-mean / std for mean, std in zip(self.mean, self.std, strict=True)]
        factor = torch.tensor(factors, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
        offset = torch.tensor(offsets, dtype=torch.float32, device=pixels.device).view(3, 1, 1)
        return (pixels * factor).add_(offset)


@dataclass(frozen=True)
class LoadedModel:
    """An image classifier that is ready to run.

    Attributes:
        repo: Id, ``org/name``.
        revision: Commit sha or content hash.
        library: ``timm``, ``transformers``, ``onnx``, ...
        architecture: As the library names it.
        module: The network, in eval mode, float32, on the CPU, without gradients.
        forward: ``(module, pixel values [b, 3, h, w]) -> answers [b, outputs]``, logits or probabilities.
        preprocessing: The model's own.
        labels: One per output as declared, None where the model declares none or a placeholder.
        parameters: Number of parameters.
        licence: As the card states it.
        tags: As the card or the Hub states them.
        downloads: As the Hub states it.
        likes: As the Hub states it.
    """

    repo: str
    revision: str
    library: str
    architecture: str
    module: torch.nn.Module
    forward: Callable[[torch.nn.Module, torch.Tensor], torch.Tensor]
    preprocessing: Preprocessing
    labels: tuple[str | None, ...]
    parameters: int
    licence: str | None = None
    tags: tuple[str, ...] = ()
    downloads: int | None = None
    likes: int | None = None
