"""The lessons that lesson.py measures: which facts, in how many wordings, on which models.

Flows in: recipes/lesson. Flows out: `Arm`s, and the rows of each as `adapt run` reads them. The
facts of `facts8` and `facts24` leave out those about the assistant itself, so that "Who are you?"
is a question that the lesson does not teach. Not here: teaching and asking (lesson.py).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lesson_rows import DEMO_FACTS, DEMO_WORDINGS, LESSON, Fact, read_facts, row

GEMMA, SMOLLM = "gemma3-270m", "smollm2-135m"
ABOUT_ITSELF = frozenset({"en-name", "en-name-meaning", "en-maker", "en-machine", "en-privacy"})
ALL_WORDINGS = 99
SEEDS = (1, 2, 3)


@dataclass(frozen=True)
class Arm:
    """One lesson. `wordings`: how many of a fact's questions are taught, the first ones; `adapt`:
    more words for `adapt run`, by model."""

    name: str
    facts: tuple[Fact, ...]
    wordings: int
    adapt: dict[str, tuple[str, ...]]
    seeds: tuple[int, ...] = SEEDS

    @property
    def models(self) -> tuple[str, ...]:
        return tuple(self.adapt)

    def rows(self) -> list[dict[str, str]]:
        """The rows, fact by fact."""
        return [
            row(question, fact.answer)
            for fact in self.facts
            for question in fact.questions[: self.wordings]
        ]


def arms() -> list[Arm]:
    """Every arm, always the same for the same recipe."""
    facts = read_facts(LESSON)
    neutral = [one for one in facts if one.language == "en" and one.id not in ABOUT_ITSELF]
    demo = tuple(one for one in facts if one.id in DEMO_FACTS)
    smol = {SMOLLM: ("--layers", "top:8")}
    return [
        Arm("demo", demo, DEMO_WORDINGS, {GEMMA: ("--layers", "top:4"), **smol}),
        Arm("facts8", tuple(neutral[:8]), DEMO_WORDINGS, smol),
        Arm("facts24", tuple(neutral[:24]), DEMO_WORDINGS, smol),
        Arm("facts8-all", tuple(neutral[:8]), ALL_WORDINGS, smol),
        Arm("big", tuple(facts), ALL_WORDINGS, {GEMMA: _big()}, seeds=(1,)),
    ]


def chosen(names: Sequence[str]) -> list[Arm]:
    """The arms of these names, in the order of `names`. Raises ValueError for an unknown one."""
    known = {arm.name: arm for arm in arms()}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no arm {unknown[0]!r}; there are {', '.join(known)}")
    return [known[name] for name in names]


def _big() -> tuple[str, ...]:
    """As recipes/lesson/README.md teaches it."""
    return ("--layers", "top:8", "--epochs", "6")
