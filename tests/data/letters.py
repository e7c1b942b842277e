"""A tokenizer whose tokens can be read: what the tests of data share."""

import numpy as np

from lepton_jax.data.tokenizers.layout import Layout, Slot

PAD = 7  # not 0, so that padding cannot be right by accident


class Letters:
    """A tokenizer of one token a letter, between 2 and 3."""

    vocab_size, pad_id, unk_id, cls_id, sep_id, mask_id = 200, PAD, 1, 2, 3, 4
    fingerprint = "letters"
    layout = Layout((Slot(-1, 0, (2,)), Slot(0), Slot(-1, 0, (3,))), ())

    def encode(self, texts):
        return [np.array([ord(letter) for letter in text], np.int32) for text in texts]

    def rows(self, texts, pairs=None, max_length=None, truncation="longest_first"):
        cuts = [(ids, np.zeros((len(ids), 2), np.int32)) for ids in self.encode(texts)]
        return self.layout.rows(cuts, None, max_length, truncation)

    def with_specials(self, ids):
        return self.layout.with_specials(ids)

    def decode(self, ids):
        return "".join(map(chr, ids))

    def save(self, folder):
        raise AssertionError("not saved here")
