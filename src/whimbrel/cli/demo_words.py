"""What Anna and Ben say to each other in the demo: short things, invented, and the same for a seed."""

from __future__ import annotations

import random

from whimbrel.cli.storm_words import PlanLine

__all__ = ["CONVERSATION", "USERS", "small_talk"]

CONVERSATION = "stormy-walk"
USERS = ("anna", "ben")
PAUSE_S = (0.25, 0.55)
"""Between two messages of one person: two to three a second, which no storm makes them stop."""

_OPENINGS = ("hey", "so", "wait", "ok", "look", "by the way", "honestly", "hm", "oh", "well")
_PLACES = (
    "the lighthouse",
    "the old pier",
    "the bus stop",
    "the bakery",
    "the long bridge",
    "the last dune",
    "the ferry",
    "the harbour café",
)
_NEWS = (
    "I am at {}",
    "still at {}",
    "just left {}",
    "it pours at {}",
    "there is nobody at {}",
    "meet me at {}?",
    "the wind took a sign off {}",
    "can you see {} from there?",
    "two seals near {} 🦭",
    "no signal behind {}",
)
_ANSWERS = (
    "ha",
    "no way",
    "be right there",
    "my hood flew off",
    "did you get that?",
    "say again?",
    "one bar left here",
    "in the tunnel now",
    "out of the tunnel!",
    "bring the tea ☕",
    "left or right?",
    "left, always left",
    "five more minutes",
    "I see your umbrella",
    "that was my umbrella",
    "this one got through at least",
    "are you still there?",
    "always",
)


def small_talk(seconds: float, seed: int) -> tuple[PlanLine, ...]:
    """What both say within so many seconds, two to three messages a second each."""
    rng = random.Random(seed)
    plan: list[PlanLine] = []
    for user in USERS:
        at_s = rng.uniform(0.0, 0.5)
        while at_s < seconds:
            plan.append(PlanLine(user=user, conversation=CONVERSATION, line=0, at_s=at_s, text=_text(rng)))
            at_s += rng.uniform(*PAUSE_S)
    plan.sort(key=lambda line: line.at_s)
    return tuple(
        PlanLine(user=line.user, conversation=line.conversation, line=number, at_s=line.at_s, text=line.text)
        for number, line in enumerate(plan)
    )


def _text(rng: random.Random) -> str:
    text = rng.choice(_NEWS).format(rng.choice(_PLACES)) if rng.random() < 0.5 else rng.choice(_ANSWERS)
    if rng.random() < 0.25:
        text = f"{rng.choice(_OPENINGS)}, {text}"
    return text
