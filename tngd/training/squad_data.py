"""Questions with answers that are spans of a text, in the JSON form of SQuAD 1.1, and their tokens.

Question and context are one row of tokens: [CLS] question [SEP] context [SEP]. A row longer than L loses the end of its
context and keeps its last [SEP]; a question whose answer is no longer inside is dropped and counted.
"""

import gzip
import importlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from circuits.errors import InputError

TRAIN, TEST = "squad_train_8k.json.gz", "xquad.en.json.gz"
FOLDERS = (Path("data"), Path("../shared/data"))  # where they are looked for when no folder is given


class Row(Protocol):
    """Tokens of one question and its context, as tokenizers.Tokenizer gives them."""

    ids: list[int]
    offsets: list[tuple[int, int]]
    sequence_ids: list[int | None]


class Encoder(Protocol):
    """Turns pairs of question and context into tokens, without cutting or padding."""

    def encode_batch(self, pairs: list[tuple[str, str]]) -> list[Row]:
        """One row a pair."""
        ...


@dataclass(frozen=True)
class Question:
    """A question, the text it is about, and its answers as (text, first character)."""

    question: str
    context: str
    answers: tuple[tuple[str, int], ...]


@dataclass(frozen=True, eq=False)
class Tokens:
    """m questions of L tokens: `ids`, `attended` and `context` (m, L), `targets` (m, 2), `offsets` (m, L, 2).

    `context` marks the tokens of the text, in which answers lie; `offsets` are characters of it. `dropped` questions
    did not fit.
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
        """So many of the questions, drawn by `seed`, or all if there are fewer."""
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))[:count]
        parts = (part[order] for part in (self.ids, self.attended, self.context, self.targets, self.offsets))
        return Tokens(*parts, tuple(self.questions[i] for i in order.tolist()), self.dropped)

    def texts(self, spans: Tensor) -> list[str]:
        """The text of spans (m, 2), first and last token, as written in the contexts."""
        rows = torch.arange(len(self))
        first, last = self.offsets[rows, spans[:, 0], 0], self.offsets[rows, spans[:, 1], 1]
        ends = zip(self.questions, first.tolist(), last.tolist(), strict=True)
        return [question.context[start:end] for question, start, end in ends]


def find_folder(folder: Path | None) -> Path:
    """The folder with both files: the given one, else the first of FOLDERS; InputError where there is none."""
    for place in FOLDERS if folder is None else (folder,):
        if (place / TRAIN).is_file() and (place / TEST).is_file():
            return place
    where = " or ".join(str(place) for place in (FOLDERS[:1] if folder is None else (folder,)))
    raise InputError(
        f"expected {TRAIN} and {TEST} (questions in the JSON form of SQuAD 1.1) in {where}; give their folder with "
        "--data, or --data hub where there is a network"
    )


def read_squad(path: Path) -> list[Question]:
    """The questions of a JSON file, gzipped or not; InputError if it is not SQuAD 1.1 or an answer is elsewhere."""
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
    """The questions of a data set of the hub with the columns of SQuAD; needs the package datasets and a network."""
    try:
        # Only for this: datasets brings 370 MB along, and a folder with two JSON files needs none of it.
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
    """Rows of `length` tokens of the questions whose first answer is inside; InputError if it is none.

    The target is the first token that reaches into the answer and the last one.
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
    """First and last token (m, 2) of answers from and to characters (m, 2), and which answers are whole inside (m,)."""
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
