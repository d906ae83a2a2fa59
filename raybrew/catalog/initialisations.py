"""How the weights of a shape start: `student.init`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType

__all__ = ["AUTO_INIT", "INITIALISATIONS", "Initialisation", "initialisation"]


@dataclasses.dataclass(frozen=True)
class Initialisation:
    """One way to start. A function of the user's, `package.module:function`, takes what `target` takes."""

    summary: str
    target: str = ""
    """module:function, f(student, teacher, layers): sets the student's weights in place and returns words for the log.
    `layers` are teacher layers, counted from 1, one for each of the student's. Empty: nothing is taken."""
    cuts: bool = False  #: also takes weights out of a wider teacher, so that it needs layers to cut

    @property
    def is_random(self) -> bool:
        """Whether the student starts without its teacher."""
        return not self.target


#: What `auto` is for a student as wide as its teacher, and for another one.
AUTO_INIT = {True: "teacher", False: "random"}

#: Name -> row; `auto` is one of the others.
INITIALISATIONS: Mapping[str, Initialisation] = MappingProxyType(
    {
        "teacher": Initialisation("copied from the teacher's layers", "raybrew.models.initialise:init_from_teacher"),
        "truncate": Initialisation(
            "as `teacher`, but also out of wider layers: their first numbers, heads and neurons",
            "raybrew.models.initialise:init_by_truncation",
            cuts=True,
        ),
        "random": Initialisation("random numbers by train.seed"),
    }
)


def initialisation(name: str) -> Initialisation:
    """The row of a name, or one for a function of the user's; `auto` counts as what takes weights."""
    return INITIALISATIONS.get(AUTO_INIT[True] if name == "auto" else name) or Initialisation("", name)
