"""The small machinery behind the corpus: a text with choices, and people to talk about.

A template is text with [one|another] choices, which may be nested, and {slots}.
"""

import random
import re

from world import ANIMAL_HEROES, BOYS, GIRLS, PETS, TALE_HEROES

CHOICE = re.compile(r"\[([^\[\]]*)\]")


def expand(rng: random.Random, template: str, **slots) -> str:
    """Choose, innermost first, then fill the slots; a sentence starts with a capital."""
    while True:
        text = CHOICE.sub(lambda m: rng.choice(m.group(1).split("|")), template)
        if text == template:
            break
        template = text
    text = re.sub(r"  +", " ", text.format(**slots)).strip()
    text = re.sub(r" ([.,!?])", r"\1", text)
    return re.sub(r"(^|[.!?] )([a-z])", lambda m: m.group(1) + m.group(2).upper(), text)


def an(noun: str) -> str:
    return ("an " if noun[0] in "aeiou" else "a ") + noun


def join(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


class Someone:
    """A character: a name, what it is, and its pronouns."""

    def __init__(self, name: str, kind: str, sex: str):
        self.name, self.kind, self.sex = name, kind, sex
        self.he, self.him, self.his = ("she", "her", "her") if sex == "f" else ("he", "him", "his")
        self.He, self.His = self.he.capitalize(), self.his.capitalize()

    def __str__(self) -> str:
        return self.name

    @property
    def a(self) -> str:
        return an(self.kind)


class Cast:
    """Draws characters with different names."""

    def __init__(self, rng: random.Random):
        self.rng, self.used = rng, set()

    def _name(self, names: list[str]) -> str:
        name = self.rng.choice([n for n in names if n not in self.used])
        self.used.add(name)
        return name

    def child(self, sex: str = "") -> Someone:
        sex = sex or self.rng.choice("fm")
        adjective = self.rng.choice(["little", "small", "young", "clever", "brave", ""])
        kind = f"{adjective} {'girl' if sex == 'f' else 'boy'}".strip()
        return Someone(self._name(GIRLS if sex == "f" else BOYS), kind, sex)

    def animal(self, kind: str = "") -> Someone:
        kind = kind or self.rng.choice([k for k in ANIMAL_HEROES if k not in self.used])
        self.used.add(kind)
        adjective = self.rng.choice(["little", "young", "small", "clever", "shy", "kind", "brave", "funny", ""])
        sex = {"princess": "f", "queen": "f", "fairy": "f", "prince": "m", "king": "m", "wizard": "m"}.get(kind)
        return Someone(self._name(PETS), f"{adjective} {kind}".strip(), sex or self.rng.choice("fm"))

    def anyone(self) -> Someone:
        roll = self.rng.random()
        if roll < 0.08:
            return self.animal(self.rng.choice(TALE_HEROES))
        return self.animal() if roll < 0.4 else self.child()

    def elder(self) -> str:
        return self.rng.choice(["mother", "father", "grandmother", "grandfather", "aunt", "uncle", "big sister", "big brother"])
