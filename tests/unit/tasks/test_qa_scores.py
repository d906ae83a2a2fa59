"""Scores of answers, worked by hand from the rules; English ones beside those of torchmetrics."""

from __future__ import annotations

import numpy as np
import pytest
from torchmetrics.functional.text import squad

from raybrew.tasks.answers import cmrc_score, mixed_segments, squad_score


@pytest.mark.parametrize(
    ("answer", "truths", "exact", "f1"),
    [
        ("The Eiffel Tower!", ["eiffel tower"], 1.0, 1.0),
        ("October 1973", ["October", "1973", "in October 1973"], 0.0, 2 * 2 / (2 + 3)),
        ("a an the", ["the"], 1.0, 1.0),  # nothing left on either side
        ("blue", ["red"], 0.0, 0.0),
        ("to be or not to be", ["to be"], 0.0, 2 * 2 / (6 + 2)),  # words as often as they occur
        ("", [], 1.0, 1.0),
        ("word", [], 0.0, 0.0),
        ("U.S.", ["us"], 1.0, 1.0),
    ],
)
def test_squad(answer: str, truths: list[str], exact: float, f1: float) -> None:
    assert squad_score(answer, truths) == pytest.approx((exact, f1))


def test_squad_agrees_with_torchmetrics() -> None:
    random = np.random.default_rng(0)
    words = ["The", "tower", "a", "in", "1973", "Tower,", "U.S.", "--", "(east)", "Paris's"]

    def text() -> str:
        return " ".join(random.choice(words, random.integers(1, 6)))

    exact = f1 = 0.0
    for number in range(200):
        truths = [text() for _ in range(random.integers(1, 4))]
        answer = truths[-1].lower() if number % 4 == 0 else text()
        target = {"answers": {"text": truths, "answer_start": [0] * len(truths)}, "id": "1"}
        theirs = squad([{"prediction_text": answer, "id": "1"}], [target])
        ours = squad_score(answer, truths)
        assert ours == pytest.approx((theirs["exact_match"].item() / 100, theirs["f1"].item() / 100)), (answer, truths)
        exact, f1 = exact + ours[0], f1 + ours[1]
    assert 0 < exact < f1 < 200


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("《战国无双3》是", ["战", "国", "无", "双", "3", "是"]),
        ("由光荣和ω-force开发", ["由", "光", "荣", "和", "ωforce", "开", "发"]),  # the hyphen goes before words are cut
        ("iPhone 6 Plus，约5.5寸", ["iphone", "6", "plus", "约", "5.5", "寸"]),
        (" 。，", []),
        # As NLTK's word_tokenize cuts what is not Chinese.
        ("刃长81.1cm的IMAX 3D影院", ["刃", "长", "81.1cm", "的", "imax", "3d", "影", "院"]),
        ("如OpenOffice.org(T.C.B.S)", ["如", "openoffice.org", "(", "t.c.b.s", ")"]),
        ("Dr. Who, 1,000 and 5% of it.", ["dr.", "who", ",", "1,000", "and", "5", "%", "of", "it", "."]),
        ("I don't know Women's", ["i", "do", "n't", "know", "women", "'s"]),
        ("国军——今", ["国", "军", "—", "—", "今"]),
        ("残酷现实……", ["残", "酷", "现", "实", "……"]),  # which the script's list of marks names as one
    ],
)
def test_mixed_segments(text: str, segments: list[str]) -> None:
    assert mixed_segments(text) == segments


@pytest.mark.parametrize(
    ("answer", "truths", "exact", "f1"),
    [
        ("北京大学", ["北京大学。"], 1.0, 1.0),  # punctuation does not count
        # The run 京大 is the longest that both share; 2 * 2 / (3 + 4).
        ("京大学", ["北京大校"], 0.0, 4 / 7),
        # 北 and 学 are shared as well, but not in one run with 京大.
        ("北方京大学", ["京大"], 0.0, 2 * 2 / (5 + 2)),
        ("上海", ["北京", "在上海"], 0.0, 2 * 2 / (2 + 3)),
        ("2007年赛季", ["2007年"], 0.0, 2 * 2 / (4 + 2)),
        ("北京", ["上海"], 0.0, 0.0),
        ("", [], 1.0, 1.0),
        ("。", ["北京"], 0.0, 0.0),
        ("3GB", ["3", "约3GB"], 0.0, 2 * 1 / (1 + 2)),
        ("现实……", ["现实"], 0.0, 2 * 2 / (3 + 2)),
    ],
)
def test_cmrc(answer: str, truths: list[str], exact: float, f1: float) -> None:
    assert cmrc_score(answer, truths) == pytest.approx((exact, f1))
