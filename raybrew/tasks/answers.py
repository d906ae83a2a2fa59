"""Answers of questions: read from rows, placed in windows and tokens, and scored against true ones.

Scores follow the rules of SQuAD (English) and of CMRC 2018 and DRCD (Chinese).

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
from typing import Any

from raybrew.tasks.base import BadValue

__all__ = [
    "SCORERS",
    "UNLABELLED",
    "answers_in",
    "cmrc_score",
    "first_token",
    "inside",
    "items_of",
    "mixed_segments",
    "spans_in",
    "squad_score",
    "without_spaces",
]

#: The label of a question, or window, of which nothing is known.
UNLABELLED = -1


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


def answers_in(value: Any, column: str) -> list[tuple[str, int]]:
    """Texts and starts of the answers in a column, in either of the two forms of SQuAD files."""
    if value is None:
        return []
    if isinstance(value, Mapping):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise BadValue(column, "{text: [...], answer_start: [...]} of equal lengths expected")
        pairs = list(zip(texts, starts, strict=True))
    elif isinstance(value, list) and all(isinstance(answer, Mapping) for answer in value):
        pairs = [(answer.get("text"), answer.get("answer_start")) for answer in value]
    else:
        raise BadValue(column, f"{{text: [...], answer_start: [...]}} expected, got {type(value).__name__}")
    for number, (text, start) in enumerate(pairs):
        if not isinstance(text, str) or not text.strip():
            raise BadValue(column, f"text of answer {number + 1} is empty or no text")
        if isinstance(start, bool) or not isinstance(start, int):
            raise BadValue(column, f"answer_start of answer {number + 1} is no whole number but {start!r}")
    return pairs


def spans_in(value: Any, column: str, context: str) -> list[int]:
    """From and to, in characters of `context`, of each answer in a column; BadValue for one that is not there."""
    spans: list[int] = []
    for number, (text, start) in enumerate(answers_in(value, column)):
        if start < 0 or context[start : start + len(text)] != text:
            raise BadValue(column, f"answer {number + 1} ({_short(text)}) {_misplaced(context, text, start)}")
        spans += [start, start + len(text)]
    return spans


def _misplaced(context: str, text: str, start: int) -> str:
    """What is wrong with an answer that does not stand where it should, and where it does."""
    places = []
    place = context.find(text)
    while place >= 0:
        places.append(place)
        place = context.find(text, place + 1)
    if places:
        return f"does not stand at {start}, where the context has {_short(context[max(start, 0):][:len(text)])}; it " \
            f"stands at {min(places, key=lambda found: abs(found - start))}"  # fmt: skip
    place = context.casefold().find(text.casefold())
    near = f"; {_short(context[place : place + len(text)])} stands at {place}" if place >= 0 else ""
    return f"is not in the context{near}"


def _short(text: str) -> str:
    """`text` in quotes, at most 40 characters of it."""
    return repr(text if len(text) <= 40 else f"{text[:37]}...")


def inside(label: Sequence[int], start: int, end: int) -> list[int]:
    """The spans of `label` within a window, in its characters.

    [-1], no labels, stays, and is also the label of a window that holds a part of an answer and no whole one: to say
    that there is none would be wrong.
    """
    if list(label) == [UNLABELLED]:
        return [UNLABELLED]
    spans = list(zip(label[::2], label[1::2], strict=True))
    whole = [edge - start for span in spans if start <= span[0] and span[1] <= end for edge in span]
    if not whole and any(span[0] < end and span[1] > start for span in spans):
        return [UNLABELLED]
    return whole


def items_of(label: Sequence[int], spans: Sequence[Sequence[int]]) -> list[int]:
    """Start and end item of the first answer in a window; [0, 0] without one, [-1, -1] without labels."""
    if list(label) == [UNLABELLED]:
        return [-1, -1]
    if not label:
        return [0, 0]
    start, end = label[0], label[1]
    touched = [item for item, span in enumerate(spans) if item and span[0] < end and span[1] > start]
    return [touched[0], touched[-1]] if touched else [0, 0]


def without_spaces(text: str, start: int, end: int) -> list[int]:
    """Characters of a token without the spaces around it, which some tokenizers (ModernBERT, DeBERTa) count to it."""
    inside = text[start:end]
    if not inside.strip():
        return [int(start), int(end)]
    return [end - len(inside.lstrip()), start + len(inside.rstrip())]


def first_token(tokens: Sequence[int], cls_token_id: int | None) -> int:
    """Where a window says that it holds no answer."""
    return tokens.index(cls_token_id) if cls_token_id is not None and cls_token_id in tokens else 0
