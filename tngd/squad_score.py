"""Exact match and F1 of answers in words, as SQuAD 1.1 counts them.

An answer is lower-cased, its ASCII punctuation and the articles a, an, the are taken out, and white space is one blank.
Exact match: equal then. F1: with c words in common (as often as both have them), precision c / predicted words, recall
c / true words, F1 = 2 P R / (P + R). Of several true answers the best counts; the score of a set is the mean in per
cent.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from circuits.errors import InputError

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True)
class Score:
    """Exact match and F1 in per cent, means over the questions."""

    exact_match: float
    f1: float


def normalised(answer: str) -> str:
    """An answer as it is compared; the articles go after the punctuation, as in the official script."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def f1_score(predicted: str, true: str) -> float:
    """F1 of two answers by their words, 0 to 1; 0 where no word is common."""
    found, wanted = normalised(predicted).split(), normalised(true).split()
    common = sum((Counter(found) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def score(predicted: Sequence[str], true: Sequence[Sequence[str]]) -> Score:
    """Score of predictions against the true answers of every question; InputError unless there are as many."""
    if len(predicted) != len(true) or not predicted or not all(true):
        raise InputError(
            f"expected one prediction a question and a true answer for each, got {len(predicted)} predictions for "
            f"{len(true)} questions"
        )
    pairs = list(zip(predicted, true, strict=True))
    exact = sum(max(normalised(p) == normalised(t) for t in answers) for p, answers in pairs)
    f1 = sum(max(f1_score(p, t) for t in answers) for p, answers in pairs)
    return Score(100.0 * exact / len(pairs), 100.0 * f1 / len(pairs))
