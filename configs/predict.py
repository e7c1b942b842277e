"""A trained model applied to texts: a file of any size, or what another program writes.

    python -m lepton_jax.main --config=configs/predict.py --workdir=DIR \\
        --config.infer.input=texts.txt --config.infer.output=predictions.jsonl --config.infer.precision=int8

DIR is the folder of a model: a fine-tuned run, its `int8/`, a folder of `transformers`, or an export. It is read alone.
The input is `.txt` (a text a line), `.jsonl`, `.csv`, `.tsv` or `.parquet` with a column `--config.infer.text`, or `-`:
lines of standard input. The output has a line of JSON for each text, in their order; a row that is no text has
`{"error": ...}`, and a text that was cut or that the vocabulary lacks a `"warning"`. If it was interrupted, the same
command goes on. `--config.infer.texts="('a text', 'another')"` predicts these and shows them.
"""

from ml_collections import ConfigDict

from lepton_jax.config import default_config


def get_config() -> ConfigDict:
    return default_config("predict")
