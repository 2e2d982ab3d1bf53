"""Conversations in rows: each once an epoch, whole, learned where its mask says so."""

import pytest

from common.dataset import DataFolder
from common.models.loss import IGNORED
from tests.train.chats import echoes, ids_and_mask, write_chats
from train.batches.sources import ConversationSource, make_source
from train.config import TrainConfig

T = 32


@pytest.fixture(scope="module")
def chats(data: DataFolder, tmp_path_factory: pytest.TempPathFactory) -> DataFolder:
    folder = tmp_path_factory.mktemp("chats") / "chats"
    return write_chats(
        folder, data.tokenizer(), {"train": echoes(200, seed=0), "val": echoes(20, seed=1)}
    )


def test_each_conversation_is_there_whole_and_learned_where_its_mask_says_so(chats: DataFolder) -> None:
    config = TrainConfig(tokens_per_step=4 * T)
    source = make_source(chats, config, T)
    assert isinstance(source, ConversationSource)
    tokenizer = chats.tokenizer()
    n_steps = int(source.tokens_per_epoch) // (4 * T)
    found = []
    for step in range(n_steps):
        for x, y, starts in source.batch(step).rows:
            for start in starts.unique():
                at = starts == start
                if (y[at] != IGNORED).any():
                    found.append((x[at].tolist(), y[at].tolist()))
    wanted = []
    for talk in echoes(200, seed=0):
        ids, mask = ids_and_mask(talk, tokenizer)
        y = [i if m else IGNORED for i, m in zip(ids[1:-1], mask[1:-1], strict=True)]
        wanted.append((ids[:-2], y))
    assert all(f in wanted for f in found)
