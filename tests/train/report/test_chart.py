"""Curves as text, against charts drawn by hand."""

from train.report.chart import Curve, chart

BY_HAND = """\
loss over steps
4 |*
  |  *
  |   + +
1 |     **
  +-------
   0     8
   * train  + val"""


def test_a_chart_is_the_one_drawn_by_hand() -> None:
    train = Curve("train", [0, 2, 6, 8], [4, 3, 1, 1])
    val = Curve("val", [4, 6], [2, 2])
    assert chart("loss over steps", [train, val], 10, 4) == BY_HAND


def test_points_that_share_a_column_are_drawn_at_their_mean() -> None:
    lines = chart("", [Curve("a", [0, 1, 100], [0, 4, 4])], 6, 3).splitlines()
    assert lines[1:4] == ["4 |  *", "  |*", "0 |"]


def test_a_single_point_and_no_point_are_charts_too() -> None:
    lines = chart("loss", [Curve("a", [5], [2.25])], 20, 3).splitlines()
    assert lines[1] == "2.25 |*"
    assert chart("loss", [Curve("a", [], [])], 20, 3) == "loss: no values"


def test_no_line_is_wider_than_asked() -> None:
    curves = [Curve("quern", [100, 3_800], [6.2145, 2.9076]), Curve("other", [100], [12345.0])]
    for width in (30, 80, 200):
        assert max(map(len, chart("loss", curves, width, 16).splitlines())) <= width
