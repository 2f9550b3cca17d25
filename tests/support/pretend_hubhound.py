"""The command ``hubhound`` with the pretend encoder: ``python -m tests.support.pretend_hubhound serve --index ...``."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable

import numpy as np
from PIL import Image

from engine.descriptors import FloatArray
from engine.index import Index
from query.cli.main import main
from tests.support.small_index import PretendEncoder, vector

PROGRAM = (sys.executable, "-m", "tests.support.pretend_hubhound")


class AnyImageEncoder(PretendEncoder):
    """Takes any image, not only those that were written for the pretend encoder."""

    def encode_images(self, images: Iterable[Image.Image], count: int) -> FloatArray:
        return np.stack([vector(hashlib.sha256(image.tobytes()).hexdigest()) for image in images])


if __name__ == "__main__":
    Index.load_encoder = lambda self, device="cpu": AnyImageEncoder()  # type: ignore[assignment, method-assign, return-value]
    main()
