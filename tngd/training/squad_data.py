"""Question answering by spans of a text in the form of SQuAD 1.1: data and tokens, loss, and scores of answers.

Tokens. Question and context are one row: [CLS] question [SEP] context [SEP]. A row longer than L tokens loses the end
of its context and keeps its last [SEP]; a question whose answer is cut off is dropped and counted.

Loss. A model gives outputs z = (s, e), (b, 2 L): logits over the tokens of the start and of the end of the answer. With
the targets (i, j), first and last token of the answer, the loss of a sample is
½ (-log softmax(s)_i - log softmax(e)_j). The output Hessian of the loss is block-diagonal, ½ diag(H(s), H(e)) with
H(s) = diag(p) - p pᵀ and p = softmax(s). So the factor of each block is the factor of a softmax over √2, and the
Hessian is the second moment of (p_s - e_i, p_e - e_j)/√2 with independent draws i ~ p_s and j ~ p_e.

Scores. Answers are compared in lower case, without ASCII punctuation and the articles a, an, the, and with single
blanks as white space. Exact match: the two answers are equal. F1 = 2 P R / (P + R), with c words in common (a word that
occurs several times counts as often as both answers have it), precision P = c / predicted words, recall R = c / true
words. Of several true answers the one with the highest score counts; the score of a set is the mean in per cent.
"""

import gzip
import importlib
import json
import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from circuits.errors import InputError
from tngd.curvature.losses import CROSS_ENTROPY, Loss

TRAIN, TEST = "squad_train_8k.json.gz", "xquad.en.json.gz"
FOLDERS = (Path("data"), Path("../shared/data"))  # searched if no folder is given

NEVER = -1e4  # logit of a token that cannot be chosen: its probability is 0 in float32 and float64

ARTICLES = re.compile(r"\b(a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


class Row(Protocol):
    """Tokens of one question and its context, as tokenizers.Tokenizer gives them."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    sequence_ids: list[int | None]


class Encoder(Protocol):
    """A tokenizer of pairs of question and context that neither truncates nor pads."""

    def encode_batch(self, pairs: list[tuple[str, str]]) -> list[Row]:
        """One row for each pair."""
        ...


@dataclass(frozen=True)
class Question:
    """A question, its context, and its answers as (text, first character in the context)."""

    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class Tokens:
    """m questions of L tokens: `ids`, `attended` and `context` (m, L), `targets` (m, 2), `offsets` (m, L, 2).

    `context` marks the tokens of the context, where answers lie; `offsets` are the first and last + 1 character of each
    token. `dropped` counts the questions whose answers were cut off.
    """

    ids: Tensor
    attended: Tensor
    context: Tensor
    targets: Tensor
    offsets: Tensor
    questions: tuple[Question, ...]
    dropped: int

    def __len__(self) -> int:
        return len(self.questions)

    def subset(self, count: int, seed: int) -> "Tokens":
        """`count` of the questions, drawn by `seed`, or all if there are fewer."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        parts = (part[order] for part in (self.ids, self.attended, self.context, self.targets, self.offsets))
        return Tokens(*parts, tuple(self.questions[i] for i in order.tolist()), self.dropped)

    def texts(self, spans: Tensor) -> list[str]:
        """The texts of spans (m, 2), first and last token, as written in the contexts."""
        rows = torch.arange(len(self))
        first, last = self.offsets[rows, spans[:, 0], 0], self.offsets[rows, spans[:, 1], 1]
        ends = zip(self.questions, first.tolist(), last.tolist(), strict=True)
        return [question.context[start:end] for question, start, end in ends]


def find_folder(folder: Path | None) -> Path:
    """The folder with both files: the given one, else the first of FOLDERS; InputError if no folder has both files."""
    for place in FOLDERS if folder is None else (folder,):
        if (place / TRAIN).is_file() and (place / TEST).is_file():
            return place
    where = " or ".join(str(place) for place in (FOLDERS[:1] if folder is None else (folder,)))
    raise InputError(
        f"expected {TRAIN} and {TEST} (questions in the JSON form of SQuAD 1.1) in {where}; give their folder with "
        "--data, or --data hub where there is a network"
    )


def read_squad(path: Path) -> list[Question]:
    """Read the questions of a JSON file, gzipped or not; InputError if not SQuAD 1.1 or an answer is misplaced."""
    try:
        content = path.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        articles = json.loads(content)["data"]
        rows = [
            (part["context"], entry["question"], [(a["text"], a["answer_start"]) for a in entry["answers"]])
            for article in articles
            for part in article["paragraphs"]
            for entry in part["qas"]
        ]
    except (OSError, EOFError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(f"{path} is no readable SQuAD 1.1 JSON ({error!r}); get it anew") from None
    return [_question(str(path), *row) for row in rows]


def read_hub(name: str, split: str) -> list[Question]:
    """Load the questions of a hub data set with the columns of SQuAD; needs the package datasets and a network."""
    try:
        # Imported only here: datasets installs 370 MB, which a folder with two JSON files does not need.
        rows = importlib.import_module("datasets").load_dataset(name, split=split)
    except ImportError:
        raise InputError("--data hub needs the package datasets; type: pip install datasets") from None
    except OSError as error:
        raise InputError(f"{name} cannot be had from the hub ({error}); give a folder with --data") from None
    questions = []
    for row in rows:
        answers = list(zip(row["answers"]["text"], row["answers"]["answer_start"], strict=True))
        questions.append(_question(name, row["context"], row["question"], answers))
    return questions


def tokenise(questions: Sequence[Question], encoder: Encoder, length: int, pad: int = 0) -> Tokens:
    """Rows of `length` tokens of the questions whose first answer is inside the row; InputError for no such question.

    The target is the first and the last token that overlap the answer.
    """
    rows = encoder.encode_batch([(q.question, q.context) for q in questions])
    count = len(questions)
    ids = np.full((count, length), pad)
    attended, context = np.zeros((2, count, length), dtype=bool)
    offsets = np.zeros((count, length, 2), dtype=np.int64)
    for k, row in enumerate(rows):
        size = min(len(row.ids), length)
        ids[k, :size] = row.ids[:size]
        ids[k, size - 1] = row.ids[-1]
        attended[k, :size] = True
        # The last token is [SEP], also where the row is cut.
        context[k, : size - 1] = [part == 1 for part in row.sequence_ids[: size - 1]]
        offsets[k, :size] = row.offsets[:size]
    bounds = [(start, start + len(text)) for text, start in (q.answers[0] for q in questions)]
    targets, inside = _targets(context, offsets, np.array(bounds).reshape(-1, 2))
    if not inside.any():
        raise InputError(f"of {count} questions none has its answer within {length} tokens; raise --length")
    parts = (torch.from_numpy(part[inside]) for part in (ids, attended, context, targets, offsets))
    kept = tuple(questions[k] for k in np.flatnonzero(inside))
    return Tokens(*parts, kept, count - len(kept))


def _targets(context: np.ndarray, offsets: np.ndarray, answers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """First and last token (m, 2) of answers given by characters (m, 2), and whether all of it is inside (m,)."""
    touched = context & (offsets[:, :, 0] < answers[:, 1:]) & (offsets[:, :, 1] > answers[:, :1])
    first = touched.argmax(axis=1)
    last = touched.shape[1] - 1 - touched[:, ::-1].argmax(axis=1)
    reached = np.where(context, offsets[:, :, 1], 0).max(axis=1)
    return np.stack([first, last], axis=1), touched.any(axis=1) & (reached >= answers[:, 1])


def _question(source: str, context: Any, question: Any, answers: Sequence[tuple[Any, Any]]) -> Question:
    if not (isinstance(context, str) and isinstance(question, str) and answers):
        raise InputError(
            f"{source} has a question without text or answer ({str(question)[:60]!r}); expected SQuAD 1.1, where each "
            "has an answer"
        )
    for text, start in answers:
        if not (isinstance(text, str) and type(start) is int and text and context[start : start + len(text)] == text):
            raise InputError(
                f"{source}: the answer {text!r} to {question[:60]!r} is not at character {start} of its context"
            )
    return Question(question, context, tuple(answers))


def _value(outputs: Tensor, targets: Tensor) -> Tensor:
    starts, ends = halves(outputs)
    if targets.shape != (len(outputs), 2):
        raise InputError(f"targets of spans are (batch, 2), first and last token, got {tuple(targets.shape)}")
    return (functional.cross_entropy(starts, targets[:, 0]) + functional.cross_entropy(ends, targets[:, 1])) / 2


def _root(outputs: Tensor) -> Tensor:
    starts, ends = (CROSS_ENTROPY.root(part) / 2**0.5 for part in halves(outputs))
    return torch.cat([functional.pad(starts, (0, ends.shape[-1])), functional.pad(ends, (starts.shape[-1], 0))], 1)


def _sampled(outputs: Tensor, u: Tensor) -> Tensor:
    """Two independent draws, each by the first number in its half of `u`."""
    parts = zip(halves(outputs), halves(u), strict=True)
    return torch.cat([CROSS_ENTROPY.sampled(part, uniform) for part, uniform in parts], 1) / 2**0.5


def halves(outputs: Tensor) -> tuple[Tensor, Tensor]:
    """Logits of start and end (b, L) from outputs (b, 2 L); InputError for an odd number of columns."""
    if outputs.ndim != 2 or outputs.shape[1] % 2:
        raise InputError(
            f"outputs of spans are (batch, 2 x tokens), all starts before all ends, got {tuple(outputs.shape)}"
        )
    starts, ends = outputs.chunk(2, dim=1)
    return starts, ends


def span_outputs(logits: Tensor, attended: Tensor) -> Tensor:
    """Outputs (b, 2 L) of logits (b, L, 2) of start and end; tokens not `attended` (b, L) get probability 0."""
    return logits.mT.masked_fill(~attended[:, None], NEVER).flatten(1)


def best_spans(outputs: Tensor, allowed: Tensor, longest: int) -> Tensor:
    """First and last token (b, 2) of the span with the largest s_i + e_j, i <= j < i + `longest`, both ends allowed.

    `allowed` (b, L) marks the tokens at which an answer may begin or end; InputError for a row without such a token. Of
    equal spans the first wins.
    """
    if longest < 1 or not bool(allowed.any(dim=1).all()):
        raise InputError(
            f"a span needs a longest length of 1 or more, got {longest}, and in every row a token that is allowed"
        )
    starts, ends = halves(outputs)
    length = starts.shape[1]
    pairs = torch.ones(length, length, dtype=torch.bool, device=outputs.device).triu().tril(longest - 1)
    possible = pairs & allowed[:, :, None] & allowed[:, None, :]
    scores = (starts[:, :, None] + ends[:, None, :]).masked_fill(~possible, -torch.inf)
    best = scores.flatten(1).argmax(dim=1)
    return torch.stack([best // length, best % length], dim=1)


SPAN = Loss("span", _value, _root, "mean", None, _sampled)


@dataclass(frozen=True)
class Score:
    """Exact match and F1 in per cent, each the mean over the questions."""

    exact_match: float
    f1: float


def normalised(answer: str) -> str:
    """An answer in the form for comparison; punctuation is removed before articles, as in the official script."""
    return " ".join(ARTICLES.sub(" ", answer.lower().translate(PUNCTUATION)).split())


def f1_score(predicted: str, true: str) -> float:
    """F1 of two answers by their words, 0 to 1; 0 without a common word."""
    found, wanted = normalised(predicted).split(), normalised(true).split()
    common = sum((Counter(found) & Counter(wanted)).values())
    if common == 0:
        return 0.0
    precision, recall = common / len(found), common / len(wanted)
    return 2 * precision * recall / (precision + recall)


def score(predicted: Sequence[str], true: Sequence[Sequence[str]]) -> Score:
    """Score of predictions against the true answers of every question; InputError for unequal numbers."""
    if len(predicted) != len(true) or not predicted or not all(true):
        raise InputError(
            f"expected one prediction a question and a true answer for each, got {len(predicted)} predictions for "
            f"{len(true)} questions"
        )
    pairs = list(zip(predicted, true, strict=True))
    exact = sum(max(normalised(p) == normalised(t) for t in answers) for p, answers in pairs)
    f1 = sum(max(f1_score(p, t) for t in answers) for p, answers in pairs)
    return Score(100.0 * exact / len(pairs), 100.0 * f1 / len(pairs))
