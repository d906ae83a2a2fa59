"""Generated reviews of films, restaurants and products whose sentiment lies in the composition, not in single words.

A sentence is a template of one construct (negation, concession, reported opinion, ...). Its slots name the sentiment
*relative to the label*: `{same}` is an adjective of the label's polarity, `{flip}` one of the opposite. Nearly every
template serves both labels, so its cue words alone say nothing, and the adjectives of the two polarities occur about
equally often under either label: a bag of words stays far below a small transformer.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from raybrew.errors import ConfigError, DataError

__all__ = ["CONSTRUCTS", "LABEL_NAMES", "Review", "Splits", "build_splits", "generate_reviews", "write_splits"]

#: Shares of reviews with an opening, with a closing, and of predicates that negate or strengthen their adjective.
_OPENING_SHARE, _CLOSING_SHARE, _NEGATED_SHARE, _STRENGTHENED_SHARE = 0.4, 0.2, 0.2, 0.15
#: Adjectives of a polarity in use: for anything, and for one kind of thing.
_COMMON_ADJECTIVES, _OWN_ADJECTIVES = 36, 8
LABEL_NAMES = ("negative", "positive")  #: indexed by `Review.label`


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


def _phrases(text: str) -> tuple[str, ...]:
    return tuple(phrase.strip() for phrase in text.split("|"))


@dataclass(frozen=True)
class _Domain:
    """What is reviewed. `adjectives` are indexed by label, like every polar table below."""

    things: tuple[str, ...]
    aspects: tuple[str, ...]
    adjectives: tuple[tuple[str, ...], tuple[str, ...]]
    openers: tuple[str, ...]


_DOMAINS = (
    _Domain(
        things=_words("film movie thriller comedy drama documentary western musical remake biopic"),
        aspects=_words(
            "plot acting script dialogue soundtrack pacing ending camerawork editing casting direction score humour"
            " finale storyline cinematography narration choreography"
        ),
        adjectives=(
            _words("predictable wooden contrived incoherent boring melodramatic pretentious plodding"),
            _words("gripping moving witty hilarious riveting suspenseful touching poetic"),
        ),
        openers=_phrases(
            "we watched this {thing} on a rainy sunday | i saw it at the old cinema near the station"
            " | my cousin picked this {thing} for our weekly film night | it ran for two hours without a break"
            " | i rented the {thing} after reading the novel | the hall was half empty that evening"
        ),
    ),
    _Domain(
        things=_words("restaurant bistro diner tavern pizzeria steakhouse cafe brasserie cantina trattoria"),
        aspects=_words(
            "soup service pasta dessert wine sauce bread steak salad menu curry risotto seafood coffee breakfast"
            " pastry terrace tasting"
        ),
        adjectives=(
            _words("greasy soggy stale burnt watery rubbery tasteless lukewarm overcooked"),
            _words("delicious tasty succulent tender flavourful fresh crisp fragrant"),
        ),
        openers=_phrases(
            "we booked a table for six on a friday | our hotel sent us to this {thing} by the harbour"
            " | i stopped at the {thing} after work | the waiter seated us beside the window"
            " | four of us shared a dinner there in june | the {thing} opened last month on our street"
        ),
    ),
    _Domain(
        things=_words("kettle blender phone laptop vacuum camera headset printer backpack keyboard toaster tablet"),
        aspects=_words(
            "battery screen design handle motor manual packaging software warranty finish cable lid speed sound"
            " charger casing display support"
        ),
        adjectives=(
            _words("flimsy fragile unreliable noisy wobbly sluggish defective cumbersome"),
            _words("sturdy reliable durable intuitive responsive quiet efficient sleek"),
        ),
        openers=_phrases(
            "i bought this {thing} for my sister in march | the {thing} arrived in a plain box on tuesday"
            " | i have used it at the office for three weeks | this {thing} replaced one from ten years ago"
            " | we ordered two of them for the school | it sits on the shelf next to my desk"
        ),
    ),
)

_ADJECTIVES = (
    _words(
        "awful terrible dreadful horrible poor bad lousy dismal abysmal mediocre disappointing shoddy sloppy clumsy"
        " unpleasant annoying irritating tiresome forgettable pathetic miserable atrocious appalling ghastly wretched"
        " woeful bland careless lazy inept feeble shabby grim tedious dull dreary"
    ),
    _words(
        "superb excellent wonderful brilliant delightful marvellous splendid terrific fantastic great lovely charming"
        " impressive outstanding exquisite flawless stellar magnificent pleasant satisfying rewarding remarkable"
        " memorable enjoyable refreshing polished thoughtful elegant graceful generous inspired glorious admirable"
        " sublime masterful good"
    ),
)
_VERBS = (
    _words("hated loathed disliked despised detested regretted"),
    _words("loved adored enjoyed admired treasured cherished"),
)
_OUTCOMES = (
    _phrases(
        "ruined everything | let the rest down | spoiled it for me | sank the whole {thing} | wrecked the evening"
    ),
    _phrases("saved everything | made up for the rest | won me over | carried the whole {thing} | rescued the evening"),
)
_PEOPLE = _phrases(
    "my friend | my brother | a colleague | the critic in the paper | my neighbour | our guide | a blogger | my aunt"
    " | the seller | everyone at the table | my teacher | the magazine | an old review | my flatmate | his wife"
)
_OFF_TOPIC = _phrases(
    "the weather | the traffic | my morning at work | the parking | the bus ride | the news that day | the book i had"
    " with me | the concert next door | my new job | our holiday in spain | the football match | the babysitter"
)
_STRONG = _words("utterly absolutely truly really completely thoroughly simply deeply extremely")
_MILD = _phrases("slightly | a little | a bit | somewhat | mildly | a touch")
_NOT = _phrases("not | never | not at all | far from | hardly | anything but | by no means")
_CLOSERS = _phrases(
    "we paid by card | i wrote this the next morning | it took about an hour | that was in april"
    " | i was there with two friends | the receipt is still in my bag | others can judge the price"
    " | this was our third try"
)

# Slots: see `_Writer`. `{is_same}` and `{is_flip}` are predicates that may hide a negation of the other polarity.
_TEMPLATES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "plain": (
            "the {aspect} {is_same}",
            "what a {same} {thing}",
            "this {thing} has a {same} {aspect} and a {same} {other}",
            "i {same_verb} the {aspect} of this {thing}",
        ),
        "negation": (
            "the {aspect} was {no} {flip}",
            "there was nothing {flip} about the {aspect}",
            "i would not call the {aspect} {flip}",
            "the {aspect} was not only {same} but {strong} {same}",
        ),
        "concession": (
            "although the {aspect} {is_flip}, the {other} {is_same}",
            "the {other} {is_same}, even if the {aspect} {is_flip}",
            "the {aspect} {is_flip}, but the {other} {is_same}",
            "despite a {flip} {aspect}, the {other} {is_same}",
            "the {aspect} {is_flip}, but the {other} {same_outcome}",
        ),
        "intensity": (
            "the {aspect} was {mild} {flip} and the {other} was {strong} {same}",
            "the {other} was {strong} {same} and the {aspect} was {mild} {flip}",
        ),
        "reported": (
            "{who} {flip_verb} it, but i {same_verb} it",
            "{who} called the {aspect} {flip}, and i disagree",
            "{who} called the {aspect} {same}, and i agree",
        ),
        "expectation": (
            "i expected a {flip} {thing} and was proven wrong",
            "i expected a {same} {thing} and got exactly that",
            "i expected a {flip} {aspect}, but it {is_same}",
        ),
        "hypothetical": (
            "it would have been a {flip} {thing} without the {same} {aspect}",
            "it could have been {flip}, had the {aspect} not been so {same}",
            "i wanted to say that i {flip_verb} it, but the {aspect} {is_same}",
        ),
        "comparison": (
            "unlike the {flip} {thing} we tried before, this one {is_same}",
            "the last {thing} was {flip} and this one is nothing like it",
            "the last {thing} was {same} and this one is just like it",
        ),
        "change": (
            "it started {flip} and ended {same}",
            "it ended {same} after a {flip} start",
            "the {aspect} used to be {flip}, these days it {is_same}",
        ),
        "off_topic": (
            "{off} was {any}, the {aspect} {is_same}",
            "the {aspect} {is_same} and {off} was {any}",
            "after {off}, which was {any}, i {same_verb} this {thing}",
        ),
    }
)
#: How often a construct occurs, where not once in a round of all of them.
_WEIGHTS: Mapping[str, int] = MappingProxyType({"plain": 7, "concession": 2})
_WEIGHTED_CONSTRUCTS = tuple(name for name in _TEMPLATES for _ in range(_WEIGHTS.get(name, 1)))
CONSTRUCTS = tuple(_TEMPLATES)  #: every value of `Review.construct`


@dataclass(frozen=True)
class Review:
    """One review. `label` is 0 (negative) or 1 (positive); `construct` names what its main sentence is built on."""

    text: str
    label: int
    construct: str


@dataclass(frozen=True)
class Splits:
    """Three sets without a common text. The labels of `unlabelled` are known here and withheld when written."""

    labelled: tuple[Review, ...]
    unlabelled: tuple[Review, ...]
    eval: tuple[Review, ...]


class _Writer(string.Formatter):
    """Fills the slots of templates for one review: one domain, one label, two aspects that differ."""

    def __init__(self, rng: random.Random, label: int) -> None:
        self._rng = rng
        self._label = label
        self._domain = self._pick(_DOMAINS)
        self._thing = self._pick(self._domain.things)
        self._aspect = self._pick(self._domain.aspects)
        self._other = self._pick([aspect for aspect in self._domain.aspects if aspect != self._aspect])

    def _pick(self, items: Sequence[Any]) -> Any:
        # Only `random()` is promised to stay the same between Python versions; `choice` is not.
        return items[int(self._rng.random() * len(items))]

    def _adjective(self, polarity: int) -> str:
        return str(
            self._pick(
                (*_ADJECTIVES[polarity][:_COMMON_ADJECTIVES], *self._domain.adjectives[polarity][:_OWN_ADJECTIVES])
            )
        )

    def _predicate(self, polarity: int) -> str:
        kind = self._rng.random()
        if kind < _NEGATED_SHARE:
            return f"was {self._pick(_NOT)} {self._adjective(1 - polarity)}"
        if kind < _NEGATED_SHARE + _STRENGTHENED_SHARE:
            return f"was {self._pick(_STRONG)} {self._adjective(polarity)}"
        return f"was {self._adjective(polarity)}"

    def get_value(self, key: int | str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> str:
        """The words for slot `key`; a new draw at every occurrence, except for the thing and the two aspects."""
        same, flip, either = self._label, 1 - self._label, int(self._rng.random() * 2)
        match key:
            case "thing":
                return str(self._thing)
            case "aspect":
                return str(self._aspect)
            case "other":
                return str(self._other)
            case "same" | "flip" | "any":
                return self._adjective({"same": same, "flip": flip, "any": either}[key])
            case "is_same" | "is_flip":
                return self._predicate(same if key == "is_same" else flip)
            case "same_verb" | "flip_verb" | "any_verb":
                return str(self._pick(_VERBS[{"same_verb": same, "flip_verb": flip, "any_verb": either}[key]]))
            case "same_outcome":
                return self.format(self._pick(_OUTCOMES[same]))
            case _:
                words = {"who": _PEOPLE, "off": _OFF_TOPIC, "strong": _STRONG, "mild": _MILD, "no": _NOT}
                return str(self._pick(words[str(key)]))

    def write(self, construct: str) -> str:
        """One review: often an opener, the sentence of `construct`, sometimes a closer."""
        sentences = [self.format(self._pick(_TEMPLATES[construct]))]
        if self._rng.random() < _OPENING_SHARE:
            sentences.insert(0, self.format(self._pick(self._domain.openers)))
        if self._rng.random() < _CLOSING_SHARE:
            sentences.append(self._pick(_CLOSERS))
        return " ".join(f"{_articles(sentence).capitalize()}." for sentence in sentences)


def _articles(sentence: str) -> str:
    """`a` becomes `an` before a vowel (the tables hold no word that sounds otherwise)."""
    words = sentence.split()
    for position in range(len(words) - 1):
        if words[position] == "a" and words[position + 1][0] in "aeiou":
            words[position] = "an"
    return " ".join(words)


def generate_reviews(num_rows: int, seed: int, exclude: frozenset[str] = frozenset()) -> list[Review]:
    """`num_rows` different reviews, none of those in `exclude`; the labels differ in number by one at most.

    The same arguments give the same reviews on every platform and Python version.
    Raises ConfigError for a negative `num_rows`, DataError when the grammar has too few sentences for what is asked.
    """
    if num_rows < 0:
        raise ConfigError(f"num_rows is {num_rows}: the number of reviews must be 0 or more")
    rng = random.Random(seed)
    seen = set(exclude)
    reviews: list[Review] = []
    attempts_left = 20 * num_rows + 100
    while len(reviews) < num_rows:
        attempts_left -= 1
        if attempts_left < 0:
            raise DataError(f"only {len(reviews)} of {num_rows} different reviews could be written: ask for fewer rows")
        label = len(reviews) % 2
        construct = _WEIGHTED_CONSTRUCTS[int(rng.random() * len(_WEIGHTED_CONSTRUCTS))]
        text = _Writer(rng, label).write(construct)
        if text not in seen:
            seen.add(text)
            reviews.append(Review(text, label, construct))
    return _shuffled(reviews, rng)


def _shuffled(reviews: list[Review], rng: random.Random) -> list[Review]:
    keyed = [(rng.random(), position) for position in range(len(reviews))]
    return [reviews[position] for _, position in sorted(keyed)]


def build_splits(seed: int, num_labelled: int, num_unlabelled: int, num_eval: int) -> Splits:
    """Three balanced sets without a common text. The evaluation set depends on `seed` and `num_eval` alone."""
    base = 3 * seed
    evaluation = generate_reviews(num_eval, base)
    taken = frozenset(review.text for review in evaluation)
    labelled = generate_reviews(num_labelled, base + 1, exclude=taken)
    taken |= {review.text for review in labelled}
    unlabelled = generate_reviews(num_unlabelled, base + 2, exclude=taken)
    return Splits(tuple(labelled), tuple(unlabelled), tuple(evaluation))


def write_splits(folder: Path, splits: Splits) -> dict[str, Path]:
    """Writes train.jsonl and eval.jsonl (text, label) and unlabeled.jsonl (text); returns the paths by those names."""
    folder.mkdir(parents=True, exist_ok=True)
    rows: dict[str, list[dict[str, object]]] = {
        "train": [{"text": review.text, "label": review.label} for review in splits.labelled],
        "unlabeled": [{"text": review.text} for review in splits.unlabelled],
        "eval": [{"text": review.text, "label": review.label} for review in splits.eval],
    }
    paths = {name: folder / f"{name}.jsonl" for name in rows}
    for name, path in paths.items():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows[name]), encoding="utf-8", newline="\n")
    return paths
