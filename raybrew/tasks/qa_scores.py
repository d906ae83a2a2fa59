"""How an answer is scored against true ones: the rules of SQuAD (English) and of CMRC 2018 and DRCD (Chinese).

SQuAD (arXiv:1606.05250): without case, punctuation, articles and extra spaces; F1 over words. CMRC 2018
(arXiv:1810.07366): punctuation left out, mixed segmentation (each Chinese character and each other word is a segment),
F1 over the longest run of segments that both share. The best of several true answers counts.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType

__all__ = ["SCORERS", "cmrc_score", "mixed_segments", "squad_score"]

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_ENGLISH_PUNCTUATION = frozenset(string.punctuation)
#: What CMRC's rule leaves out. Not the ellipsis: the script lists it as two characters, but compares single ones.
_CMRC_PUNCTUATION = frozenset("-:_*^/\\~`+=，。：？！“”；’《》·、「」（）－～『』")
_CHINESE = re.compile(r"[\u4e00-\u9fa5]")
_MARKS = re.escape(';@#$%&?!"()[]{}<>—–')
#: What stands between Chinese characters, cut as by NLTK's word_tokenize: marks are words of their own, points only at
#: the end and commas only where no digit follows; so `81.1cm`, `t.c.b.s` and `node.js` are one word each.
_WORD = re.compile(rf"[{_MARKS}]|(?:[^\s{_MARKS},.]|\.(?!$)|,(?=\d))+|[,.]")
_CONTRACTED = re.compile(r"(.+)('s|'m|'d|'ll|'re|'ve|n't)$")


def squad_score(answer: str, truths: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 in [0, 1]. No true answers: an empty `answer` is right."""
    pairs = [_squad_pair(answer, truth) for truth in truths or ("",)]
    return max(exact for exact, _ in pairs), max(f1 for _, f1 in pairs)


def _squad_pair(answer: str, truth: str) -> tuple[float, float]:
    given, wanted = _squad_words(answer), _squad_words(truth)
    exact = float(given == wanted)
    if not given or not wanted:
        return exact, exact
    shared = sum((Counter(given) & Counter(wanted)).values())
    return exact, 2.0 * shared / (len(given) + len(wanted))


def _squad_words(text: str) -> list[str]:
    bare = "".join(character for character in text.lower() if character not in _ENGLISH_PUNCTUATION)
    return _ARTICLES.sub(" ", bare).split()


def cmrc_score(answer: str, truths: Sequence[str]) -> tuple[float, float]:
    """Exact match and F1 in [0, 1]. No true answers: an empty `answer` is right."""
    pairs = [_cmrc_pair(answer, truth) for truth in truths or ("",)]
    return max(exact for exact, _ in pairs), max(f1 for _, f1 in pairs)


def _cmrc_pair(answer: str, truth: str) -> tuple[float, float]:
    exact = float(_without_punctuation(answer) == _without_punctuation(truth))
    given, wanted = mixed_segments(answer), mixed_segments(truth)
    if not given or not wanted:
        return exact, exact
    # 2pr / (p + r) with p = run / given and r = run / wanted.
    return exact, 2.0 * _longest_shared_run(given, wanted) / (len(given) + len(wanted))


def mixed_segments(text: str) -> list[str]:
    """Each Chinese character by itself; what lies between in words; the punctuation of CMRC's rule left out.

    CMRC's script cuts the words with NLTK, which also splits a few forms such as `cannot` and `wanna`.
    """
    segments: list[str] = []
    between = ""
    for character in text.lower().strip():
        if character in _CMRC_PUNCTUATION:
            continue
        if _CHINESE.match(character):
            segments += [*_words_of(between), character]
            between = ""
        else:
            between += character
    return segments + _words_of(between)


def _words_of(text: str) -> list[str]:
    """Words of what holds no Chinese; a contraction is two (`do`, `n't`)."""
    words: list[str] = []
    for word in _WORD.findall(text):
        found = _CONTRACTED.match(word)
        words += found.groups() if found else (word,)
    return words


def _without_punctuation(text: str) -> str:
    return "".join(character for character in text.lower().strip() if character not in _CMRC_PUNCTUATION)


def _longest_shared_run(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest contiguous run of segments that both have."""
    longest, before = 0, [0] * (len(second) + 1)
    for segment in first:
        now = [0] * (len(second) + 1)
        for place, other in enumerate(second, 1):
            if segment == other:
                now[place] = before[place - 1] + 1
        longest, before = max(longest, *now), now
    return longest


#: `task.scoring` -> (exact match, F1) of an answer against the true ones.
SCORERS: Mapping[str, Callable[[str, Sequence[str]], tuple[float, float]]] = MappingProxyType(
    {"squad": squad_score, "cmrc": cmrc_score}
)
