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

    A subclass names the package, gives its rows in `rows`, and what they hold besides text in `_features`. Rows whose
    text repeats an earlier one are left out, and so are all rows of a text that occurs with two labels. A row may name
    its `split`. Of any other the split is a function of the text alone (`identity.split_of`), or of the `document`
    where texts are parts of one: all of them are then in one split.
    """

    PACKAGE: ClassVar[tuple[str, str, str]]  # name, version, sha256
    SHARES: ClassVar[dict[str, float]]  # split -> share of the texts whose rows name none
    HOMEPAGE: ClassVar[str]
    TEXT: ClassVar[str] = "text"  # the feature with the text, or with the list of its words
    LABEL: ClassVar[str] = "label"  # the feature that says whether two rows of one text agree

    def __init__(self, *, cache: str = "", **kwargs: Any):
        self._cache = cache
        super().__init__(**kwargs)

    def _features(self) -> dict[str, Any]:
        return {"text": tfds.features.Text()}

    def _info(self) -> tfds.core.DatasetInfo:
        features = self._features()
        return self.dataset_info_from_configs(
            features=tfds.features.FeaturesDict(features),
            supervised_keys=(self.TEXT, self.LABEL) if self.LABEL in features else None,
            homepage=self.HOMEPAGE,
        )

    @abc.abstractmethod
    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        """Yields one feature dict per row of the archive, in a fixed order, with or without its `split`."""

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Any]:
        del dl_manager  # it would need a URL; the registry's own client fetches
        groups: dict[str, list[dict[str, Any]]] = {}
        for row in self.rows(registry.fetch(*self.PACKAGE, cache=self._cache)):
            text = row[self.TEXT]
            groups.setdefault(normalise(text if isinstance(text, str) else " ".join(text)), []).append(row)
        splits: dict[str, list[dict[str, Any]]] = {name: [] for name in self.SHARES}
        for text, (first, *others) in groups.items():
            if text and all(row.get(self.LABEL) == first.get(self.LABEL) for row in others):
                whole = first.get("document", text)
                name = first.pop("split", None) or split_of(whole, self.SHARES, key=self.name)
                splits.setdefault(name, []).append(first)
        return {name: self._generate_examples(rows) for name, rows in splits.items()}

    def _generate_examples(self, rows: list[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
        yield from enumerate(rows)
