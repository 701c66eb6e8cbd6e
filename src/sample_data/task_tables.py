"""The hand-written part of `make_tasks`: people, films, events and words. None of the people and places exists."""

from __future__ import annotations

from typing import NamedTuple


class Person(NamedTuple):
    first: str
    last: str
    pronoun: str
    job: str
    town: str
    animal: str
    animals: int
    thing: str

    @property
    def name(self) -> str:
        return f"{self.first} {self.last}"


PEOPLE = (
    Person("Ada", "Brink", "she", "baker", "Lorvik", "cats", 3, "bread oven"),
    Person("Bruno", "Tesk", "he", "carpenter", "Meldo", "geese", 5, "oak table"),
    Person("Clara", "Voss", "she", "teacher", "Harn", "horses", 2, "wall map"),
    Person("Dario", "Quill", "he", "sailor", "Port Essen", "dogs", 4, "red boat"),
    Person("Edda", "Marn", "she", "doctor", "Tolby", "rabbits", 6, "black bag"),
    Person("Felix", "Orde", "he", "gardener", "Wenlo", "bees", 90, "rose hedge"),
    Person("Greta", "Siv", "she", "painter", "Ostmark Hill", "parrots", 2, "blue canvas"),
    Person("Hugo", "Lamm", "he", "clerk", "Drossen", "hens", 12, "brass clock"),
    Person("Ines", "Caldo", "she", "weaver", "Pellan", "sheep", 20, "wide loom"),
    Person("Jonas", "Reik", "he", "miller", "Grint", "ducks", 8, "stone wheel"),
    Person("Klara", "Ubis", "she", "pilot", "Sandre", "goats", 7, "old glider"),
    Person("Lars", "Fenn", "he", "cook", "Ilmen", "pigs", 9, "copper pot"),
    Person("Mira", "Dahl", "she", "potter", "Kesting", "doves", 11, "clay kiln"),
    Person("Nils", "Arbo", "he", "driver", "Rovan", "cows", 10, "green bus"),
    Person("Olga", "Prem", "she", "writer", "Bastow", "owls", 1, "long desk"),
    Person("Pavel", "Zorn", "he", "tailor", "Cray", "swans", 13, "silk coat"),
)
HELD_OUT = 4  # people, of whom nothing is in the training files

REVIEWS = (
    ("unbearable", "a waste of an evening"),
    ("dull", "longer than it needs to be"),
    ("neither good nor bad", "much like the one before it"),
    ("charming", "well worth the trip"),
    ("magnificent", "the best thing in years"),
)
FEELINGS = ("very negative", "negative", "neutral", "positive", "very positive")
# Cause and effect.
EVENTS = (
    ("The pan was left on the fire.", "The soup burnt."),
    ("The boy forgot his umbrella.", "He came home wet."),
    ("The clock stopped at noon.", "The clerk missed his train."),
    ("The dog saw a rabbit.", "It pulled on the lead."),
    ("Somebody left the gate open.", "The sheep ran into the road."),
    ("The bridge was washed away.", "The villagers crossed by boat."),
    ("The lamp fell from the table.", "The room went dark."),
    ("I lost my key.", "I climbed through the window."),
    ("The bread had no salt.", "Nobody took a second slice."),
    ("The wind turned to the north.", "The harbour froze."),
    ("The choir lost its tenor.", "The concert was put off."),
    ("The letter had no stamp.", "It was sent back."),
    ("The girl practised every day.", "She won the race."),
    ("The cat knocked over the vase.", "The carpet was soaked."),
    ("The mill wheel broke.", "There was no flour in town."),
    ("The teacher was ill.", "The pupils went home early."),
)
# A word, two sentences that use it in one sense, and one that uses it in another.
SENSES = (
    ("bank", "They sat on the bank of the river.", "The bank was steep.", "The bank lends money."),
    ("bat", "A bat flew out of the cave.", "The bat sleeps by day.", "He hit the ball with a bat."),
    ("light", "The light of the lamp was dim.", "Turn off the light.", "The bag is light."),
    ("ring", "She wears a gold ring.", "The ring fits his finger.", "Give me a ring tonight."),
    ("spring", "Tulips flower in spring.", "In spring the snow melts.", "A spring in the sofa broke."),
    ("match", "He struck a match.", "The match went out.", "They won the match."),
    ("letter", "The letter came by post.", "She sealed the letter.", "B is the second letter."),
    ("leaf", "A leaf fell from the oak.", "The leaf turned yellow.", "He tore a leaf out of the book."),
    ("crane", "The crane lifted the beam.", "A crane stood on the site.", "A crane flew over the lake."),
    ("bark", "The bark of the tree is rough.", "Beetles live under the bark.", "We heard a loud bark."),
    ("seal", "The seal dived for fish.", "A seal lay on the ice.", "The seal of the letter was red."),
    ("pitch", "The pitch was too muddy to play on.", "They ran onto the pitch.", "She sang at a high pitch."),
    ("note", "She left a note on the door.", "The note said little.", "He played a wrong note."),
    ("board", "He nailed a board to the wall.", "The board was oak.", "The board sacked its chairman."),
    ("wave", "A wave broke over the deck.", "The wave was high.", "He greeted us with a wave."),
    ("trunk", "The trunk of the tree was hollow.", "Ivy grew up the trunk.", "Pack the trunk with clothes."),
)
