"""Spans of a text, such as the names in it: as classes of tokens for a model, and from them back to characters.

A span is (start, end, type), text[start:end] being what it covers; those of a text are in order and do not overlap. A
text is cut into words, runs of letters and digits, while any other character is a word of its own, and so is each one
of a script without spaces (Chinese, Japanese, Thai). The first token of a word decides about all of it. Its class is
"O", "B-TYPE" for the first word of a span, or "I-TYPE" for the others (Ramshaw and Marcus 1995, as IOB2).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from lepton_jax.data.tokenizers.protocol import Encoded
from lepton_jax.data.tokenizers.words import joins, unspaced

Span = tuple[int, int, str]

OUTSIDE = "O"


class Word(NamedTuple):
    first: int  # the number of its first token in the row
    start: int  # text[start:end] is the word
    end: int


def bio_labels(types: Iterable[str]) -> tuple[str, ...]:
    """Returns the classes of tokens for types of spans: "O", then "B-" and "I-" of each type, sorted."""
    return (OUTSIDE, *(f"{mark}-{name}" for name in sorted(types) for mark in "BI"))


def words_of(encoded: Encoded, text: str) -> list[Word]:
    """Returns the words that a row shows of its first text, in order; `encoded` is of that text."""
    words: list[Word] = []
    for token in np.flatnonzero(encoded.sequence == 0).tolist():
        start, end = map(int, encoded.offsets[token])
        while start < end and text[start].isspace():  # SentencePiece's pieces hold the space before them
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if words:
            last = words[-1]
            # A byte of a character that has no piece lies nowhere, or where the byte before it does.
            part = start < last.end or start == end == last.end
            if part or (start == last.end and start < end and joins(text[start]) and joins(text[start - 1])):
                words[-1] = last._replace(end=max(end, last.end))
                continue
        if start < end:
            words.append(Word(token, start, end))
    return words


def align(words: Sequence[Word], length: int, spans: Sequence[Span], labels: Sequence[str]) -> np.ndarray:
    """Returns int32 [length]: the class of each token of a row, -1 of those that do not decide about a word.

    A word is of a span if they share a character.

    Args:
      words: of `words_of`.
      length: of the row.
      spans: of its text.
      labels: the classes, of `bio_labels`.
    """
    numbers = {label: number for number, label in enumerate(labels)}
    classes = np.full(length, -1, np.int32)
    place, previous = 0, None
    for word in words:
        while place < len(spans) and spans[place][1] <= word.start:
            place += 1
        found = place if place < len(spans) and spans[place][0] < word.end else None
        mark = "I" if found == previous else "B"
        classes[word.first] = numbers[OUTSIDE if found is None else f"{mark}-{spans[found][2]}"]
        previous = found
    return classes


def decode(
    words: Sequence[Word], probabilities: np.ndarray, labels: Sequence[str]
) -> list[tuple[int, int, str, float]]:
    """Returns the spans (start, end, type, score) that a model sees, in order.

    "I-X" after anything but "B-X" or "I-X" begins a span. Of labels in another form each that is not "O" is a type,
    whose neighbouring words are one span. The score is the mean probability of the classes over the words.

    Args:
      words: of `words_of`.
      probabilities: float [n, len(labels)], of each token of the row; n is beyond the first token of the last word.
      labels: the classes.
    """
    spans: list[tuple[int, int, str, list[float]]] = []
    inside = ""  # the type of the span that the word before is in
    for word in words:
        number = int(probabilities[word.first].argmax())
        label, score = labels[number], float(probabilities[word.first, number])
        mark, name = (label[0], label[2:]) if label[:2] in ("B-", "I-") else ("I", label)
        if label == OUTSIDE:
            inside = ""
        elif mark == "I" and name == inside:
            start, _, _, scores = spans[-1]
            spans[-1] = (start, word.end, name, [*scores, score])
        else:
            spans.append((word.start, word.end, name, [score]))
            inside = name
    return [(start, end, name, sum(scores) / len(scores)) for start, end, name, scores in spans]


def unreachable(words: Sequence[Word], spans: Sequence[Span]) -> int:
    """Returns how many spans no classes of these words can give: they begin or end within a word, or were cut off."""
    starts, ends = {word.start for word in words}, {word.end for word in words}
    return sum(start not in starts or end not in ends for start, end, _ in spans)


def join_words(words: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Returns words as a text, and where each lies in it.

    A space comes between two of them, but not between characters of scripts that have none between words.
    """
    text, places = "", []
    for word in words:
        if text and word and not (_wide(text[-1]) and _wide(word[0])):
            text += " "
        places.append((len(text), len(text) + len(word)))
        text += word
    return text, places


def _wide(character: str) -> bool:
    """Whether no space is next to a character: of a script without spaces, or a full-width mark such as theirs."""
    return unspaced(character) or unicodedata.east_asian_width(character) in "WF"


def from_tags(places: Sequence[tuple[int, int]], tags: Sequence[str]) -> tuple[Span, ...]:
    """Returns the spans that the tags of words mark, in IOB1, IOB2, BIOES or BILOU.

    Args:
      places: where each word lies in the text.
      tags: of each word: "O", or one of B, I, E, L, S, U, a hyphen and a type.

    Raises:
      ValueError: a tag has another form; the message shows it.
    """
    spans: list[Span] = []
    open_type = ""
    for (start, end), tag in zip(places, tags, strict=True):
        mark, hyphen, name = tag.partition("-")
        if tag == OUTSIDE or not tag:
            open_type = ""
            continue
        if not hyphen or mark not in "BIELSU" or not name:
            raise ValueError(f"tag {tag!r}: must be O, or such as B-TYPE or I-TYPE")
        if mark in "IEL" and name == open_type:
            spans[-1] = (spans[-1][0], end, name)
        else:
            spans.append((start, end, name))
        open_type = "" if mark in "ELSU" else name
    return tuple(spans)
