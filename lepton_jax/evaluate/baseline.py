"""What word counts and a linear model reach on the same examples: the figure that a network has to beat.

Texts: TF-IDF of words and pairs of words, or of one to three characters where most letters are of scripts without
spaces, with logistic regression (ridge regression for numbers), its regularisation chosen on the validation examples.
Words with tags: logistic regression over a word, its form and its neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

_STRENGTHS = (1.0, 4.0, 16.0, 64.0)  # of what is not regularised: scikit-learn's C
_FEATURES = 300_000
_HASHED = 2**20
_WORDS = r"(?u)\w+|[^\w\s]"

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
    best: tuple[float, Any] | None = None
    for strength in _STRENGTHS:
        model = _model(kind, strength)
        model.fit(inputs, train[1])
        score = _score(kind, model, held_out, validation[1])
        if best is None or score > best[0]:
            best = score, model
    assert best is not None
    model = best[1]

    def predict(texts: Texts) -> np.ndarray:
        features = vectorize(texts)
        if kind == "numbers":
            return model.predict(features)[:, None]
        probabilities = np.clip(model.predict_proba(features), 1e-12, 1 - 1e-12)
        if kind == "sets":
            return np.log(probabilities / (1 - probabilities))
        whole = np.full((len(probabilities), num_classes), 1e-12)
        whole[:, model.classes_] = probabilities
        return np.log(whole)

    return predict


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
    least = 2 if len(corpus) > 200 else 1
    vectorizer: Any = TfidfVectorizer(sublinear_tf=True, min_df=least, max_features=_FEATURES, **options).fit(corpus)

    def vectorize(texts: Texts) -> Any:
        first, second = texts
        if not len(first):
            return scipy.sparse.csr_matrix((0, len(vectorizer.vocabulary_) * (1 if second is None else 3)))
        found = vectorizer.transform(first)
        if second is None:
            return found
        other = vectorizer.transform(second)
        return scipy.sparse.hstack([found, other, found.multiply(other)]).tocsr()

    return vectorize


def _unspaced(texts: Sequence[str]) -> bool:
    """Whether most letters of some of the texts are Chinese, Japanese or Thai."""
    letters = [char for text in texts[:1000] for char in text[:200] if char.isalpha()]
    return 2 * sum("\u2e80" <= char <= "\uffdc" or "\u0e00" <= char <= "\u0eff" for char in letters) > len(letters)


def _model(kind: str, strength: float) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge
    from sklearn.multiclass import OneVsRestClassifier

    if kind == "numbers":
        return Ridge(alpha=1 / strength, solver="lsqr")
    # Liblinear takes each class against the rest, and a minute for 20 classes of 11,000 long texts.
    return OneVsRestClassifier(LogisticRegression(C=strength, solver="liblinear"))


def _score(kind: str, model: Any, features: Any, targets: np.ndarray) -> float:
    if not len(targets):
        return 0.0
    predicted = model.predict(features)
    if kind == "numbers":
        return -float(np.mean(np.square(predicted - targets)))
    if kind == "sets":
        right = float((predicted * targets).sum())
        return 2 * right / max(float(predicted.sum() + targets.sum()), 1.0)
    return float(np.mean(predicted == targets))


def fit_words(
    sentences: Sequence[Sequence[str]], classes: Sequence[np.ndarray], num_classes: int
) -> Callable[[Sequence[Sequence[str]]], list[np.ndarray]]:
    """Returns words of texts -> float64 [words, num_classes] log-probabilities of each text.

    Args:
      sentences: the words of each training text.
      classes: int [words] of each of them.
      num_classes: how many there are.
    """
    from sklearn.feature_extraction import FeatureHasher
    from sklearn.linear_model import SGDClassifier

    hasher = FeatureHasher(_HASHED, input_type="string", alternate_sign=False)

    def features(many: Sequence[Sequence[str]]) -> Any:
        return hasher.transform(_form(words, place) for words in many for place in range(len(words)))

    targets = np.concatenate([np.zeros(0, np.int64), *classes])
    model: Any = SGDClassifier(loss="log_loss", alpha=1e-6, random_state=0, max_iter=10, tol=1e-3, average=True)
    model.fit(features(sentences), targets)

    def predict(many: Sequence[Sequence[str]]) -> list[np.ndarray]:
        ends = np.cumsum([len(words) for words in many])
        whole = np.full((int(ends[-1]) if len(ends) else 0, num_classes), 1e-12)
        if len(whole):
            whole[:, model.classes_] = np.clip(model.predict_proba(features(many)), 1e-12, 1)
        return np.split(np.log(whole), ends[:-1])

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
