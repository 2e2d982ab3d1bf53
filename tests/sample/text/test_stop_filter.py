"""Stop texts: against a search in the whole text, however it is cut into pieces."""

from hypothesis import given
from hypothesis import strategies as st

from sample.text.detokenizer import StopFilter

TEXT = st.text("ab\n", max_size=12)
STOPS = st.lists(st.text("ab\n", min_size=1, max_size=4), max_size=3)


def shown_of(pieces: list[str], stops: list[str]) -> str:
    """Return what is shown of a text in pieces."""
    seen, shown = StopFilter(stops), ""
    for piece in pieces:
        shown += seen.push(piece)
        if seen.stopped:
            return shown
    return shown + seen.push("", is_last=True)


@given(pieces=st.lists(TEXT, max_size=8), stops=STOPS)
def test_what_is_shown_is_the_text_before_the_first_stop_text(
    pieces: list[str], stops: list[str]
) -> None:
    whole = "".join(pieces)
    # the text ends at the stop text that is complete first, and is shown to where that begins
    for n_read in range(len(whole) + 1):
        ending = [stop for stop in stops if whole[:n_read].endswith(stop)]
        if ending:
            shown = whole[: n_read - max(map(len, ending))]
            break
    else:
        shown = whole
    assert shown_of(pieces, stops) == shown


@given(pieces=st.lists(TEXT, max_size=8), stop=st.text("ab\n", min_size=1, max_size=4))
def test_one_stop_text_ends_it_at_the_same_place_however_it_is_cut(
    pieces: list[str], stop: str
) -> None:
    assert shown_of(pieces, [stop]) == "".join(pieces).partition(stop)[0]


def test_only_what_may_begin_a_stop_text_is_held_back() -> None:
    seen = StopFilter(["abc", "b!"])
    assert [seen.push(piece) for piece in ("xa", "b", "b", "d")] == ["x", "", "ab", "bd"]
    assert not seen.stopped
    assert [seen.push(piece) for piece in ("ab", "c")] == ["", ""]
    assert seen.stopped


def test_a_stop_text_of_a_megabyte_costs_no_more_than_the_text() -> None:
    seen = StopFilter(["ab" * 500_000, "b" * 1_000_000])
    assert "".join(seen.push("abc") for _ in range(1000)) == "abc" * 1000
