"""TFDS sets, prepared or made on first use, row by row, as `files` gives those of files. Without TensorFlow."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator
from typing import Any

from lepton_jax.core.errors import UserError
from lepton_jax.data.cache import cache_folder, locked
from lepton_jax.data.files import Row, require
from lepton_jax.data.labels import Columns


def parse(rest: str) -> tuple[str, str]:
    """Returns (name, split); the split is "" where none is named. A version (`glue/sst2:2.0.0`) belongs to the name."""
    match = re.fullmatch(r"([^:]+(?::[\d*]+\.[\d*]+\.[\d*]+)?)(?::(.*))?", rest)
    if match is None:
        raise UserError(f"tfds:{rest}: must be tfds:NAME or tfds:NAME:SPLIT")
    return match[1], match[2] or ""


def open_set(name: str, cache: str) -> Any:
    """Returns the prepared builder of a set, preparing it first where that has not been done."""
    import tensorflow_datasets as tfds
    import tensorflow_datasets.text  # registers GLUE and the like: TFDS's own search stops where TensorFlow is missing

    from lepton_jax.data import builders

    tfds.disable_progress_bar()
    folder = cache_folder(cache) / "tfds"
    own = {cls.name for cls in vars(builders).values() if isinstance(cls, type)}
    base = re.split("[/:]", name)[0]
    options: dict[str, Any] = {"cache": cache} if base in own else {}
    with locked(folder):  # around both: a builder looks for prepared files when it is made
        try:
            builder = tfds.builder(name, data_dir=str(folder), file_format="array_record", **options)
        except tfds.core.DatasetNotFoundError as error:
            close = difflib.get_close_matches(base, tfds.list_builders(with_community_datasets=False), n=1)
            hint = f"did you mean {close[0]!r}?" if close else f"known besides TFDS's own: {', '.join(sorted(own))}"
            raise UserError(f"tfds:{name}: unknown TFDS set; {hint}") from error
        except (ValueError, AssertionError) as error:  # a configuration or a version that the set does not have
            reason = str(error).rpartition('}": ')[2].strip()  # after what TFDS says about its own arguments
            raise UserError(f"tfds:{name}: {' '.join(reason.split())}") from error
        try:
            builder.download_and_prepare()
        except UserError:
            raise
        except Exception as error:  # whatever a set's own downloading and parsing code may raise
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise UserError(f"tfds:{name}: cannot be prepared here ({type(error).__name__}: {reason})") from error
    return builder


def own_splits(source: str, cache: str = "") -> list[str]:
    """Returns the names of the splits of a TFDS source that names none itself, and [] for any other source."""
    scheme, _, rest = source.partition(":")
    if scheme != "tfds":
        return []
    name, split = parse(rest)
    return [] if split else list(open_set(name, cache).info.splits)


def class_names(source: str, column: str, cache: str = "") -> tuple[str, ...]:
    """Returns the classes that a TFDS source declares for a column, in its order; () for any other source or column."""
    import tensorflow_datasets as tfds

    scheme, _, rest = source.partition(":")
    if scheme != "tfds":
        return ()
    feature = dict(open_set(parse(rest)[0], cache).info.features.items()).get(column)
    return tuple(feature.names) if isinstance(feature, tfds.features.ClassLabel) else ()


def read(rest: str, columns: Columns, cache: str) -> Iterator[Row]:
    """Yields the rows of `tfds:REST`: texts and names decoded, a class that a test set hides as None.

    A set without the column of texts whose only text feature has another name gives that one.

    Raises:
      UserError: there is no such set, split or column, or it cannot be prepared here.
    """
    import tensorflow_datasets as tfds

    name, split = parse(rest)
    builder = open_set(name, cache)
    where, features = f"tfds:{name}", builder.info.features
    texts = [key for key, feature in features.items() if isinstance(feature, tfds.features.Text)]
    source = texts[0] if columns.text not in features and len(texts) == 1 else columns.text
    asked, columns = columns, columns._replace(text=source)
    require(where, features, columns)
    for _, column in columns.named[: 1 + bool(columns.pair)]:
        if column not in texts and not isinstance(features[column], tfds.features.Sequence):
            raise UserError(f"{where}: the column {column!r} is no text; text columns: {', '.join(map(repr, texts))}")
    try:
        rows = builder.as_data_source(split=split or "train")
    except (ValueError, KeyError) as error:
        raise UserError(f"{where}: no split {split or 'train'!r}; it has {', '.join(builder.info.splits)}") from error
    names = [(name, column) for (_, name), (_, column) in zip(asked.named, columns.named, strict=True)]
    for index in range(len(rows)):
        row = rows[index]
        yield f"{where}, row {index}", {name: _plain(row[column], features[column]) for name, column in names}


def _plain(value: Any, feature: Any) -> Any:
    """Returns a cell as Python has it, a class by its name."""
    import numpy as np
    import tensorflow_datasets as tfds

    if isinstance(feature, tfds.features.Sequence):
        inner = feature.feature
        if isinstance(inner, tfds.features.FeaturesDict):  # TFDS gives a list of objects as an object of lists
            columns = [[_plain(each, inner[name]) for each in value[name]] for name in inner]
            return [dict(zip(inner, cells, strict=True)) for cells in zip(*columns, strict=True)]
        return [_plain(each, inner) for each in value]
    if isinstance(feature, tfds.features.ClassLabel):
        return None if value < 0 else feature.int2str(int(value))  # TFDS writes -1 where a test set hides its labels
    if isinstance(value, (bytes, np.bytes_)):
        return value.decode("utf-8")
    return value.item() if isinstance(value, np.generic) else value
