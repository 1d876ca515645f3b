"""Preference pairs of facts: a true answer is preferred to a false answer to the same question.

The facts come in couples of one kind, and each fact of a couple takes its false answer from the other. If a pair
prefers "Paris" to "Cairo", the other pair of its couple prefers "Cairo" to "Paris". So every answer is chosen as often
as it is rejected, and neither the length nor the words of an answer tell whether it is chosen.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, pairwise
from string import ascii_lowercase
from typing import Any

COUNTRIES = """France Paris Europe|Germany Berlin Europe|Italy Rome Europe|Spain Madrid Europe|Portugal Lisbon Europe|
Austria Vienna Europe|Poland Warsaw Europe|Sweden Stockholm Europe|Norway Oslo Europe|Finland Helsinki Europe|
Greece Athens Europe|Hungary Budapest Europe|Ireland Dublin Europe|Denmark Copenhagen Europe|Romania Bucharest Europe|
Bulgaria Sofia Europe|Croatia Zagreb Europe|Ukraine Kyiv Europe|Japan Tokyo Asia|China Beijing Asia|
Thailand Bangkok Asia|Vietnam Hanoi Asia|Iran Tehran Asia|Iraq Baghdad Asia|Nepal Kathmandu Asia|
Bangladesh Dhaka Asia|Pakistan Islamabad Asia|Indonesia Jakarta Asia|Mongolia Ulaanbaatar Asia|Qatar Doha Asia|
Egypt Cairo Africa|Kenya Nairobi Africa|Nigeria Abuja Africa|Ghana Accra Africa|Ethiopia Addis-Ababa Africa|
Morocco Rabat Africa|Senegal Dakar Africa|Uganda Kampala Africa|Zambia Lusaka Africa|Tunisia Tunis Africa|
Canada Ottawa North-America|Cuba Havana North-America|Jamaica Kingston North-America|
Honduras Tegucigalpa North-America|Nicaragua Managua North-America|Argentina Buenos-Aires South-America|
Chile Santiago South-America|Peru Lima South-America|Colombia Bogota South-America|Venezuela Caracas South-America|
Uruguay Montevideo South-America|Ecuador Quito South-America|Paraguay Asuncion South-America|
Brazil Brasilia South-America"""
ELEMENTS = """hydrogen H|helium He|lithium Li|beryllium Be|boron B|carbon C|nitrogen N|oxygen O|fluorine F|neon Ne|
sodium Na|magnesium Mg|aluminium Al|silicon Si|phosphorus P|sulfur S|chlorine Cl|argon Ar|potassium K|calcium Ca|
scandium Sc|titanium Ti|vanadium V|chromium Cr|manganese Mn|iron Fe|cobalt Co|nickel Ni|copper Cu|zinc Zn|gallium Ga|
germanium Ge|arsenic As|selenium Se|bromine Br|krypton Kr"""
ANIMALS = """bird: sparrow eagle owl penguin parrot robin crow swan hawk pigeon falcon stork
fish: salmon trout shark tuna cod herring carp eel sardine pike perch haddock
mammal: dog whale bat horse elephant dolphin mouse tiger rabbit sheep otter deer
insect: ant bee beetle butterfly moth mosquito wasp grasshopper cricket fly ladybird termite
reptile: lizard crocodile snake turtle gecko iguana alligator cobra python chameleon tortoise viper"""
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday"
MONTHS = "January February March April May June July August September October November December"
OPPOSITES = """hot cold|big small|fast slow|high low|light dark|old young|rich poor|happy sad|hard soft|full empty|
wet dry|strong weak|early late|loud quiet|clean dirty|thick thin|wide narrow|deep shallow|safe dangerous|open closed|
true false|cheap expensive|heavy light|sweet sour|brave cowardly|smooth rough|near far|win lose|buy sell|begin end"""
UNITS = [
    ("metres", "centimetres", 100),
    ("kilometres", "metres", 1000),
    ("hours", "minutes", 60),
    ("minutes", "seconds", 60),
    ("weeks", "days", 7),
    ("days", "hours", 24),
    ("feet", "inches", 12),
    ("kilograms", "grams", 1000),
]
WORDS = """apple bread chair dance earth flame grape house igloo juice knife lemon mouse night ocean paper queen river
stone table uncle voice water youth zebra anchor basket candle dragon engine forest garden hammer island jacket kitten
ladder magnet needle orange pencil rabbit silver tunnel valley window yellow"""


@dataclass(frozen=True)
class Fact:
    """A question, its true answer, and the sentence that gives an answer in the place of `{}`."""

    kind: str
    question: str
    sentence: str
    answer: str


def _table(text: str) -> list[list[str]]:
    return [[word.replace("-", " ") for word in row.split()] for row in text.replace("\n", "").split("|")]


def _geography() -> Iterator[Fact]:
    for country, capital, continent in _table(COUNTRIES):
        yield Fact("capital", f"What is the capital of {country}?", f"The capital of {country} is {{}}.", capital)
        yield Fact(
            "capital of", f"{capital} is the capital of which country?", f"{capital} is the capital of {{}}.", country
        )
        yield Fact("continent", f"On which continent is {country}?", f"{country} is in {{}}.", continent)
        yield Fact("continent", f"On which continent is {capital}?", f"{capital} is a city in {{}}.", continent)


def _elements() -> Iterator[Fact]:
    for number, (name, symbol) in enumerate(_table(ELEMENTS), 1):
        yield Fact("symbol", f"What is the chemical symbol of {name}?", f"The symbol of {name} is {{}}.", symbol)
        yield Fact("element", f"Which element has the symbol {symbol}?", f"{symbol} is the symbol of {{}}.", name)
        yield Fact(
            "number", f"What is the atomic number of {name}?", f"The atomic number of {name} is {{}}.", f"{number}"
        )


def _animals_and_words() -> Iterator[Fact]:
    for line in ANIMALS.splitlines():
        kind, names = line.split(": ")
        for name in names.split():
            article = "an" if name[0] in "aeiou" else "a"
            yield Fact(
                "animal",
                f"What kind of animal is {article} {name}?",
                f"{article.title()} {name} is a kind of {{}}.",
                kind,
            )
    for one, other in _table(OPPOSITES):
        yield Fact("opposite", f"What is the opposite of {one}?", f"The opposite of {one} is {{}}.", other)
        yield Fact(
            "opposite", f"Which word means the opposite of {other}?", f"{other.title()} is the opposite of {{}}.", one
        )
    for word in WORDS.split():
        yield Fact(
            "first letter",
            f"With which letter does the word {word} begin?",
            f"The word {word} begins with {{}}.",
            word[0].upper(),
        )


def _calendar() -> Iterator[Fact]:
    for kind, names in (("day", DAYS.split()), ("month", MONTHS.split())):
        for i, name in enumerate(names):
            for step, phrase in (
                (1, "right after"),
                (-1, "right before"),
                (2, f"two {kind}s after"),
                (-2, f"two {kind}s before"),
            ):
                answer = names[(i + step) % len(names)]
                yield Fact(
                    kind,
                    f"Which {kind} comes {phrase} {name}?",
                    f"The {kind} that comes {phrase} {name} is {{}}.",
                    answer,
                )

    for before, after in pairwise(ascii_lowercase):
        yield Fact("letter", f"Which letter comes right after {before}?", f"Right after {before} comes {{}}.", after)
        yield Fact("letter", f"Which letter comes right before {after}?", f"Right before {after} comes {{}}.", before)


def _numbers(rng: random.Random) -> Iterator[Fact]:
    sums = [(a, b) for a in range(2, 13) for b in range(2, 13)]
    for a, b in rng.sample(sums, 110):
        yield Fact("sum", f"What is {a} plus {b}?", f"{a} plus {b} is {{}}.", str(a + b))
        yield Fact("difference", f"What is {a + b} minus {b}?", f"{a + b} minus {b} is {{}}.", str(a))
    for a, b in rng.sample(sums, 100):
        yield Fact("product", f"What is {a} times {b}?", f"{a} times {b} is {{}}.", str(a * b))
    for large, small, factor in UNITS:
        for count in range(2, 17):
            question = f"How many {small} are there in {count} {large}?"
            yield Fact(
                f"{large} to {small}", question, f"There are {{}} {small} in {count} {large}.", str(count * factor)
            )


def _orderings(rng: random.Random, count: int) -> Iterator[tuple[Fact, Fact]]:
    """Make couples of facts about two numbers: which is larger, and which is smaller."""
    numbers = list(combinations(range(1, 100), 2))
    for a, b in rng.sample(numbers, count):
        first, second = rng.sample([a, b], 2)
        yield (
            Fact(
                "order",
                f"Which number is larger, {first} or {second}?",
                f"Of {first} and {second} the larger is {{}}.",
                str(b),
            ),
            Fact(
                "order",
                f"Which number is smaller, {first} or {second}?",
                f"Of {first} and {second} the smaller is {{}}.",
                str(a),
            ),
        )


def _couples(facts: list[Fact], rng: random.Random) -> Iterator[tuple[Fact, Fact]]:
    """Make couples of facts of one kind with different answers, and drop each fact that finds no partner."""
    kinds: dict[str, list[Fact]] = {}
    for fact in facts:
        kinds.setdefault(fact.kind, []).append(fact)
    for rest in kinds.values():
        rng.shuffle(rest)
        while rest:
            fact = rest.pop()
            partner = next((i for i, other in enumerate(rest) if other.answer != fact.answer), None)
            if partner is not None:
                yield fact, rest.pop(partner)


def _row(fact: Fact, wrong: str) -> dict[str, Any]:
    def messages(answer: str) -> list[dict[str, str]]:
        return [{"role": "assistant", "content": fact.sentence.format(answer)}]

    return {
        "prompt": [{"role": "user", "content": fact.question}],
        "chosen": messages(fact.answer),
        "rejected": messages(wrong),
        "kind": fact.kind,
    }


def make_facts(seed: int = 0) -> list[dict[str, Any]]:
    """Make over 1,300 preference pairs.

    Args:
        seed: Seed of the order, the sampled numbers and the couples.

    Returns:
        Rows in TRL's conversational format, with the `kind` of fact. The two rows of a couple stand side by side.

    Example:
        >>> first, second = make_facts()[:2]
        >>> first["chosen"][0]["content"]
        'The atomic number of hydrogen is 1.'
        >>> second["chosen"][0]["content"]
        'The atomic number of calcium is 20.'
    """
    rng = random.Random(seed)
    facts = [*_geography(), *_elements(), *_animals_and_words(), *_calendar(), *_numbers(rng)]
    couples = [*_couples(facts, rng), *_orderings(rng, 150)]
    rng.shuffle(couples)
    return [_row(fact, other.answer) for one, two in couples for fact, other in ((one, two), (two, one))]
