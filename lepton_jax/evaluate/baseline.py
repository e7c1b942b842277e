"""What word counts and a linear model reach on the same examples: the figure that a network has to beat.

Texts: TF-IDF of words and pairs of words, or of one to three characters where most letters are of scripts without
spaces, with logistic regression (ridge regression for numbers), its regularisation chosen on the validation examples.
Words with tags: logistic regression over a word, its form and its neighbours.
"""

from __future__ import annotations

import unicodedata
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

# What the validation examples choose from: scikit-learn's C of logistic regression, 1 / alpha of ridge regression.
_STRENGTHS = {"classes": (1.0, 4.0, 16.0, 64.0), "sets": (1.0, 4.0, 16.0, 64.0), "numbers": (0.1, 0.3, 1.0, 3.0, 10.0)}
_FEATURES = 300_000
_HASHED = 2**20
_WORDS = r"(?u)\w+|[^\w\s]"
# How Unicode names the letters of scripts without spaces between words.
_UNSPACED = ("CJK ", "HIRAGANA ", "KATAKANA ", "HALFWIDTH KATAKANA ", "THAI ", "LAO ", "KHMER ", "MYANMAR ")

Predict = Callable[..., np.ndarray]
Texts = tuple[Sequence[str], Sequence[str] | None]  # texts, and the second ones of pairs


def fit_texts(
    kind: Literal["classes", "sets", "numbers"],
    train: tuple[Texts, np.ndarray],
    validation: tuple[Texts, np.ndarray],
    num_classes: int,
) -> Callable[[Texts], np.ndarray]:
    """Returns texts -> float64 [n, num_classes] log-probabilities (log-odds of sets), or [n, 1] numbers.

    Args:
      kind: of the labels.
      train, validation: texts, and their labels: int [n], 0 and 1 [n, num_classes], or numbers [n].
      num_classes: how many there are; 1 for numbers.
    """
    vectorize = _vectorizer(train[0])
    inputs, held_out = vectorize(train[0]), vectorize(validation[0])
    best, linear = -np.inf, None
    for strength in _STRENGTHS[kind]:
        found = _fit_linear(kind, inputs, train[1], strength, num_classes)
        score = _score(kind, found(held_out), validation[1])
        if score > best:
            best, linear = score, found
    assert linear is not None
    return lambda texts: linear(vectorize(texts))


def _vectorizer(texts: Texts) -> Callable[[Texts], Any]:
    """Returns texts -> features; of pairs those of each text, and of what both have."""
    import scipy.sparse
    from sklearn.feature_extraction.text import TfidfVectorizer

    first, second = texts
    corpus = [*first, *(second or ())]
    if _unspaced(corpus):
        options: dict[str, Any] = {"analyzer": "char", "ngram_range": (1, 3)}
    else:
        options = {"token_pattern": _WORDS, "ngram_range": (1, 2)}
    options |= {"sublinear_tf": True, "max_features": _FEATURES}
    try:
        vectorizer: Any = TfidfVectorizer(min_df=2 if len(corpus) > 200 else 1, **options).fit(corpus)
    except ValueError:  # no two texts have a word in common
        vectorizer = TfidfVectorizer(min_df=1, **options).fit(corpus)

    def vectorize(texts: Texts) -> Any:
        first, second = texts
        if not len(first):
            return scipy.sparse.csr_matrix((0, len(vectorizer.vocabulary_) * (1 if second is None else 3)))
        found = vectorizer.transform(first)
        if second is None:
            return found
        other = vectorizer.transform(second)
        # The geometric mean, not the product: as large as the others, or regularisation would leave nothing of it.
        return scipy.sparse.hstack([found, other, found.multiply(other).sqrt()]).tocsr()

    return vectorize


def _unspaced(texts: Sequence[str]) -> bool:
    """Whether most letters of some of the texts are of scripts without spaces between words."""
    letters = [char for text in texts[:1000] for char in text[:200] if char.isalpha()]
    return 2 * sum(unicodedata.name(char, "").startswith(_UNSPACED) for char in letters) > len(letters)


def _fit_linear(
    kind: str, features: Any, targets: np.ndarray, strength: float, num_classes: int
) -> Callable[[Any], np.ndarray]:
    """Returns features -> float64 [n, num_classes] log-probabilities, log-odds of sets, or [n, 1] numbers."""
    from sklearn.linear_model import LogisticRegression, Ridge

    if kind == "numbers":
        ridge: Any = Ridge(alpha=1 / strength, solver="lsqr").fit(features, targets)
        return lambda features: (features @ ridge.coef_ + ridge.intercept_)[:, None]
    applies = targets > 0.5 if kind == "sets" else targets[:, None] == np.arange(num_classes)
    columns = []
    for own in applies.T:
        share = (own.sum() + 0.5) / (len(own) + 1)
        if not 0 < own.sum() < len(own):  # all have it, or none has
            columns.append((np.zeros(features.shape[1]), np.log(share / (1 - share))))
            continue
        # One class against the rest, by its dual: of 20 classes of 11,000 long texts in a fifth of the primal's time.
        model: Any = LogisticRegression(C=strength, solver="liblinear", dual=True, random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the last digits, which it has not reached
            model.fit(features, own)
        columns.append((model.coef_[0], model.intercept_[0]))
    weights, biases = np.stack([weight for weight, _ in columns], axis=1), np.array([bias for _, bias in columns])

    def predict(features: Any) -> np.ndarray:
        odds = features @ weights + biases
        if kind == "sets":
            return odds
        logs = -np.logaddexp(0, -odds)
        return logs - np.logaddexp.reduce(logs, axis=1, keepdims=True)

    return predict


def _score(kind: str, scores: np.ndarray, targets: np.ndarray) -> float:
    """Returns how good scores are for the choice of the regularisation; more is better, 0 without an example."""
    if not len(targets):
        return 0.0
    if kind == "numbers":
        return -float(np.mean(np.square(scores[:, 0] - targets)))
    if kind == "sets":
        right = float(((scores > 0) * targets).sum())
        return 2 * right / max(float((scores > 0).sum() + targets.sum()), 1.0)
    return float(np.mean(scores.argmax(1) == targets))


def fit_words(
    sentences: Sequence[Sequence[str]], classes: Sequence[np.ndarray], num_classes: int
) -> Callable[[Sequence[Sequence[str]]], list[np.ndarray]]:
    """Returns words of texts -> float64 [words, num_classes] log-probabilities of each text.

    Args:
      sentences: the words of each training text.
      classes: int [words] of each of them.
      num_classes: how many there are.
    """
    from sklearn.dummy import DummyClassifier
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import SGDClassifier

    hasher = FeatureHasher(_HASHED, input_type="string", alternate_sign=False)

    def features(many: Sequence[Sequence[str]]) -> Any:
        return hasher.transform(_form(words, place) for words in many for place in range(len(words)))

    targets = np.concatenate([np.zeros(0, np.int64), *classes])
    if len(np.unique(targets)) > 1:
        model: Any = SGDClassifier(loss="log_loss", alpha=1e-6, random_state=0, max_iter=10, tol=1e-3, average=True)
    else:
        model = DummyClassifier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that ten passes have not reached the last digits
        model.fit(features(sentences), targets)

    def predict(many: Sequence[Sequence[str]]) -> list[np.ndarray]:
        ends = np.cumsum([len(words) for words in many])
        whole = np.full((int(ends[-1]) if len(ends) else 0, num_classes), 1e-12)
        if len(whole):
            whole[:, model.classes_] = np.clip(model.predict_proba(features(many)), 1e-12, 1)
        return np.split(np.log(whole), ends[:-1]) if len(ends) else []

    return predict


def _form(words: Sequence[str], place: int) -> list[str]:
    """Returns features of a word: itself, its ends, its shape, and the two words to each side."""
    word = words[place]
    found = ["bias", f"is {word}", f"low {word.lower()}", f"shape {_shape(word)}"]
    found += [f"starts {word[:n].lower()}" for n in (1, 2, 3)] + [f"ends {word[-n:].lower()}" for n in (1, 2, 3)]
    for distance in (-2, -1, 1, 2):
        near = words[place + distance] if 0 <= place + distance < len(words) else ""
        found += [f"{distance} {near.lower()}", f"{distance} shape {_shape(near)}"]
    for start in (-1, 0):
        pair = [words[k] if 0 <= k < len(words) else "" for k in (place + start, place + start + 1)]
        found.append(f"{start} pair {pair[0].lower()} {pair[1].lower()}")
    return found


def _shape(word: str) -> str:
    kinds = "".join("A" if c.isupper() else "a" if c.isalpha() else "0" if c.isdigit() else c for c in word[:12])
    return "".join(kind for number, kind in enumerate(kinds) if number == 0 or kind != kinds[number - 1])
