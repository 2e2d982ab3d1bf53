"""A text, a data folder and networks so small that a test can afford them."""

import random
from pathlib import Path

import torch

from common.dataset import DataFolder, open_data
from common.models.config import ModelConfig
from common.models.gpt import GPT
from common.models.ngram import tag_ngrams
from common.tokenizer import GPT2_PATTERN, BytePairTokenizer, CharTokenizer, special_ids_after
from prepare.config import PrepareConfig
from prepare.pipeline import prepare_corpus
from prepare.sources.discover import find_sources

SENTENCE = "the quern turns grain into flour and one person turns it slowly on a stone \u00fcber"


def words(n_words: int, seed: int = 0) -> str:
    """Return a text of ``n_words`` drawn words, in lines of ten."""
    drawn = random.Random(seed).choices(SENTENCE.split(), k=n_words)
    return "\n".join(" ".join(drawn[i : i + 10]) for i in range(0, n_words, 10)) + "\n"


def prepare_text(text: str, folder: Path, tokenizer: str = "char") -> DataFolder:
    """Prepare ``text`` as one document into ``folder``/data."""
    source = folder / "source.txt"
    source.write_text(text, encoding="utf-8")
    config = PrepareConfig(tokenizer=tokenizer, vocab_size="300")
    sources = find_sources([source])
    prepare_corpus(sources, config, folder / "data", lambda name, size: lambda n_bytes: None)
    return open_data(folder / "data")


def byte_tokenizer() -> BytePairTokenizer:
    """Return the byte-pair vocabulary without a pair: every byte is an id."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    return BytePairTokenizer("bytes", GPT2_PATTERN, ranks, special_ids_after(256))


def random_model(config: ModelConfig, seed: int = 0) -> GPT:
    """Return a network in which every weight matters: norms off 1, biases off 0."""
    model = GPT(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            if parameter.dim() == 1:
                parameter.add_(0.2 * noise)
            else:
                parameter.copy_(0.3 * noise)
    if config.ngram_min_count and config.ngrams > 1:
        ids = torch.randint(config.vocab_size, (2_000,), generator=generator).numpy()
        tag_ngrams(model.wge, ids, 1)
    return model


def successor_model(tokenizer: CharTokenizer, scores: dict[str, dict[str, float]]) -> GPT:
    """Return a network whose scores for the next id depend on the last id only, as ``scores`` says.

    Characters and special tokens go by their text; what is not named scores 0.
    """
    id_of = tokenizer.id_of | tokenizer.special_tokens
    vocab_size = tokenizer.vocab_size
    model = GPT(
        ModelConfig(
            vocab_size=vocab_size, block_size=16, n_layer=1, n_head=1, n_embd=vocab_size,
            positions="learned", tied_head=False,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(1.0 if parameter.dim() == 1 else 0.0)  # norms stay, all else is off
        model.wte.weight.copy_(torch.eye(vocab_size))
        for last, following in scores.items():
            for token, score in following.items():
                # the norm scales a one-hot row to sqrt(C)
                model.lm_head.weight[id_of[token], id_of[last]] = score / vocab_size**0.5
    return model
