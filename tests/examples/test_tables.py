"""Numbers and tables as the page writes them."""

import numpy as np

from examples.study.statistics import Effect
from examples.study.tables import count, percent, plain, signed, table


def test_differences_say_their_sign_and_whether_they_are_clear() -> None:
    assert signed(Effect(0.0312, 0.021, 0.0449, 1, 1)) == "**+3.1 [+2.1, +4.5]**"
    assert signed(Effect(-0.0312, -0.05, 0.0004, 1, 0)) == "−3.1 [−5.0, 0.0]"
    assert signed(Effect(-0.0001, -0.02, 0.02, 1, 0)) == "0.0 [−2.0, +2.0]"
    assert signed(Effect(-0.0104, -0.0213, -0.0002, 1, 0)) == "**−1.04 [−2.13, −0.02]**"
    assert signed(Effect(0.5, -np.inf, np.inf, 1, 1)) == "+50.0"


def test_numbers_over_seeds() -> None:
    assert percent(np.array([0.1, 0.2])) == "15.0 ± 7.1"
    assert percent(np.array([0.123])) == "12.3"
    assert plain(np.array([1.0, 2.0])) == "1.500 ± 0.707"
    assert (count(None), count(6000)) == ("all", "6,000")


def test_no_text_breaks_a_table() -> None:
    lines = table(["a", "b"], [["x|y\nz", "<b>"]]).splitlines()
    assert lines == ["| a | b |", "|---|--:|", "| x\\|y z | &lt;b> |"]
