"""Qwen3 with n-gram tables, for transformers: ``tiny`` of Quern as it is exported.

Beside its own embedding each position has those of the last 2, 3 ... ids together, from tables by
hash. Loaded by AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import Qwen3Config, Qwen3ForCausalLM

Ids = Tensor | None  # (B, T)
# The hash is that of common/models/ngram.py in Quern: int64 products that wrap around.
STEP, MIX, TAG_MIX = 0x5851F42D4C957F2D, -0x61C8864680B583EB, 0x2545F4914F6CDD1D


class QuernConfig(Qwen3Config):
    """Qwen3's settings, and the tables': the longest n-gram, rows, their channels, if tagged."""

    model_type = "quern"
    ngrams: int = 0
    ngram_rows: int = 1
    ngram_dim: int = 0
    ngram_min_count: int = 0


class NgramTable(nn.Embedding):
    """Rows for n-grams of one length; with tags, only for those whose tag their row has."""

    tags: Tensor | None

    def __init__(self, n_rows: int, width: int, is_tagged: bool) -> None:
        super().__init__(n_rows, width)
        self.register_buffer("tags", torch.full((n_rows,), -1).int() if is_tagged else None)

    def forward(self, key: Tensor) -> Tensor:
        """Return (..., width) for keys (...)."""
        rows = (key * MIX >> 33 & 0x7FFFFFFF) % self.num_embeddings
        found = super().forward(rows)
        if self.tags is None:
            return found
        return found * (self.tags[rows] == key * TAG_MIX >> 33 & 0x7FFFFFFF).unsqueeze(-1)


class QuernForCausalLM(Qwen3ForCausalLM):
    """Token ids in, logits of the next token out."""

    config_class = QuernConfig

    def __init__(self, config: QuernConfig) -> None:
        super().__init__(config)
        n, width = config.ngrams - 1, config.ngram_dim or config.hidden_size
        sizes = (config.ngram_rows, width, config.ngram_min_count > 0)
        self.ngrams = nn.ModuleList(NgramTable(*sizes) for _ in range(n))
        if config.ngram_dim and n:
            self.ngram_map = nn.Linear(n * width, config.hidden_size, bias=False)
        self.post_init()

    def prepare_inputs_for_generation(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Any:
        """Pass on all ids so far too: an n-gram reaches back behind the newest."""
        inputs = super().prepare_inputs_for_generation(input_ids, *args, **kwargs)
        return inputs | {"all_ids": input_ids}

    def embed(self, ids: Tensor) -> Tensor:
        """Return (B, T, C) for ids (B, T): the embeddings of each, and of the n-grams it ends."""
        x: Tensor = self.model.embed_tokens(ids)
        key, found = ids, []
        for n_before, table in enumerate(self.ngrams, start=1):
            key = key * STEP + F.pad(ids, (n_before, 0))[..., : ids.shape[-1]] + 1
            found.append(table(key))
        if self.config.ngram_dim and found:
            found = [self.ngram_map(torch.cat(found, dim=-1))]
        return sum(found, x)

    def forward(
        self, input_ids: Ids = None, attention_mask: Ids = None, all_ids: Ids = None, **kwargs: Any
    ) -> Any:
        """Return logits of ``input_ids``, the last of ``all_ids`` (B, all so far).

        Raise ValueError where those before are not known.
        """
        if input_ids is not None and kwargs.get("inputs_embeds") is None:
            past = kwargs.get("past_key_values")
            if all_ids is None and past is not None and past.get_seq_length():
                raise ValueError("with a cache, n-grams need all_ids: use generate()")
            ids = input_ids if all_ids is None else all_ids
            if attention_mask is not None and attention_mask.shape == ids.shape:
                ids = torch.where(attention_mask.bool(), ids, 0)  # as before a text
            n_new = input_ids.shape[1]
            kwargs["inputs_embeds"] = self.embed(ids[:, -(n_new + len(self.ngrams)) :])[:, -n_new:]
        return super().forward(None, attention_mask, **kwargs)
