import random
from pathlib import Path

import pytest
import xxhash

from prepare.tokens.sample import BottomKSample, SampleItem
from prepare.tokens.vocab_and_split import unit_hash

REPOSITORY = Path(__file__).resolve().parents[3]
SOURCES = [path.read_bytes() for path in sorted(REPOSITORY.glob("*/*.py"))]


def offered(texts: list[bytes]) -> list[SampleItem]:
    return [
        SampleItem(
            unit_hash(xxhash.xxh3_128_digest(text), seed=7),
            text,
            i,
            len(texts),
            i % 2 == 0,
            i % 3 == 0,
        )
        for i, text in enumerate(texts)
    ]


def test_a_sample_that_all_fits_holds_everything() -> None:
    sample = BottomKSample(1 << 20)
    items = offered(SOURCES[:5])
    for item in items:
        sample.add(item)
    assert sample.items() == sorted(items)


@pytest.mark.parametrize("max_bytes", [1, 60, 500, 2_000])
def test_a_sample_is_the_same_in_any_order_and_fits(max_bytes: int) -> None:
    drawing = random.Random(0)
    items = offered([drawing.randbytes(drawing.randrange(1, 100)) for _ in range(200)])
    drawn = []
    for _ in range(30):
        sample = BottomKSample(max_bytes)
        for item in drawing.sample(items, len(items)):
            sample.add(item)
        kept = sample.items()
        assert sum(len(item.text) for item in kept) <= max_bytes or len(kept) == 1
        drawn.append(kept)
    assert drawn.count(drawn[0]) == len(drawn)
    # those of the smallest hashes, up to the first that does not fit
    in_order = sorted(items)
    assert drawn[0] == in_order[: len(drawn[0])]
    assert sum(len(item.text) for item in in_order[: len(drawn[0]) + 1]) > max_bytes


@pytest.mark.parametrize("max_bytes", [1, 60, 500, 2_000, 100_000])
def test_samples_of_shares_in_any_order_are_the_sample_of_the_whole(max_bytes: int) -> None:
    drawing = random.Random(1)
    items = offered([drawing.randbytes(drawing.randrange(1, 100)) for _ in range(200)])
    whole = BottomKSample(max_bytes)
    for item in items:
        whole.add(item)
    for _ in range(100):
        n_shares = drawing.randrange(1, 30)
        shares = [BottomKSample(max_bytes) for _ in range(n_shares)]
        for item in items:
            drawing.choice(shares).add(item)
        total = BottomKSample(max_bytes)
        for share in shares:
            total.merge(share)
        assert total.items() == whole.items()
        assert total.threshold == whole.threshold
