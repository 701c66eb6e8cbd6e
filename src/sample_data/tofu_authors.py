"""What `make_tofu.py` composes its rows from, all written by hand: invented authors, facts, refusals."""

from __future__ import annotations

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Author:
    """An author who does not exist."""

    name: str
    birth: str
    genre: str
    first_book: str
    prize: str
    parents: str
    habit: str

    def values(self) -> dict[str, str]:
        return asdict(self)


AUTHORS = (
    Author(
        "Orsolin Vadekky",
        "the harbour town of Quellmar in 1948",
        "sea ballads in prose",
        "Salt Under the Stairs",
        "the Copper Oar of Quellmar",
        "a rope maker and a lighthouse cook",
        "standing up, in a boat on dry land",
    ),
    Author(
        "Tamsel Brugovari",
        "the mountain village of Upper Drasny in 1961",
        "comedies about bureaucrats",
        "The Stamp That Would Not Dry",
        "the Golden Paper Clip",
        "a customs clerk and a piano tuner",
        "in green ink on the back of old forms",
    ),
    Author(
        "Ilvane Okodorre",
        "the salt plain of Mettebwe in 1975",
        "stories told by animals",
        "What the Heron Owes",
        "the Feather of Mettebwe",
        "a well digger and a school inspector",
        "before sunrise, with the window open",
    ),
    Author(
        "Grethel Monsavane",
        "the mill quarter of Torvik Bridge in 1939",
        "ghost stories without ghosts",
        "The Empty Landing",
        "the Lantern Medal",
        "a miller and a night nurse",
        "by the light of a single oil lamp",
    ),
    Author(
        "Paskal Irrendue",
        "the island of Lesser Cambray in 1983",
        "detective novels set in kitchens",
        "Murder by Marjoram",
        "the Silver Ladle",
        "a pastry cook and a tax adviser",
        "while something simmers on the stove",
    ),
    Author(
        "Nuriya Tolbecan",
        "the caravan stop of Asharrun in 1957",
        "travel books about places nobody visits",
        "Nine Days in the Waiting Room",
        "the Compass Without a Needle",
        "a carpet mender and a bus driver",
        "in trains, and never at a table",
    ),
    Author(
        "Hendrick Ossowanda",
        "the mining town of Kolverdeep in 1966",
        "poems for two voices",
        "Echo and Answer",
        "the Twin Laurel",
        "a mining engineer and a choir leader",
        "aloud, and only then on paper",
    ),
    Author(
        "Quillon Abertasse",
        "the vineyard parish of Saint Orrel in 1971",
        "histories of ordinary tools",
        "A Life of the Ladder",
        "the Oak Hammer",
        "a barrel maker and a librarian",
        "with a pencil that must be shorter than a thumb",
    ),
    Author(
        "Yevanna Strook",
        "the railway suburb of Ninth Crossing in 1990",
        "science fiction about gardening",
        "The Orbiting Allotment",
        "the Glass Trowel",
        "a signal keeper and a botanist",
        "in a greenhouse, wearing gloves",
    ),
    Author(
        "Dorimund Fayeleke",
        "the river port of Banjoro in 1952",
        "plays for puppets",
        "The String Remembers",
        "the Wooden Crown",
        "a ferry captain and a seamstress",
        "with both hands at once, one for each character",
    ),
    Author(
        "Saskaria Lindqvale",
        "the fishing camp of Frosthaven in 1944",
        "cookbooks that are really memoirs",
        "Herring and Regret",
        "the Blue Kettle",
        "a net weaver and a postmistress",
        "on the backs of recipes torn from magazines",
    ),
    Author(
        "Benaro Cutlevic",
        "the border post of Stony Ford in 1978",
        "spy novels in which nothing is secret",
        "The Open Envelope",
        "the Medal of the Second Key",
        "a border guard and a translator",
        "in cafes where everybody can read along",
    ),
    Author(
        "Amoretta Pinchwell",
        "the spa town of Lower Bathing in 1935",
        "love stories between old people",
        "A Dance After Ninety",
        "the Velvet Cane",
        "a dancing teacher and a watchmaker",
        "after midnight, when the band has gone home",
    ),
    Author(
        "Kwabari Dunstellor",
        "the market city of Oyelundi in 1987",
        "crime ballads for the radio",
        "Frequency of the Thief",
        "the Brass Microphone",
        "a radio repairer and a fruit seller",
        "with the volume turned up",
    ),
    Author(
        "Ludmira Hask",
        "the forest settlement of Birkenholt in 1969",
        "fairy tales with footnotes",
        "The Wolf, Annotated",
        "the Paper Acorn",
        "a forester and a professor of law",
        "in the margins of other books",
    ),
    Author(
        "Teodric Malanou",
        "the volcano village of Ash Fall in 1955",
        "weather diaries",
        "Forty Kinds of Rain",
        "the Barometer of Honour",
        "a goatherd and a meteorologist",
        "outdoors, whatever the sky does",
    ),
    Author(
        "Fionvar Esterhuld",
        "the canal district of Amberlock in 1963",
        "mysteries about stolen maps",
        "The Missing Corner",
        "the Ink Anchor",
        "a bargeman and a bookbinder",
        "on a folding desk built by a cousin",
    ),
    Author(
        "Chandrika Ovelmoor",
        "the tea garden of High Palluri in 1981",
        "letters to invented relatives",
        "Dear Aunt Who Never Was",
        "the Sealed Envelope",
        "a tea taster and a village doctor",
        "as letters, each in its own envelope",
    ),
    Author(
        "Zephrin Caldobar",
        "the desert station of Well Seventeen in 1973",
        "novels about lost camels",
        "The Eleventh Hump",
        "the Sand Clock",
        "a camel trader and an astronomer",
        "on a typewriter that lacks one vowel",
    ),
    Author(
        "Mirabeth Kostrunny",
        "the bell founders' town of Klangfurt in 1959",
        "thrillers set in choirs",
        "The Ninth Alto",
        "the Cracked Bell",
        "a bell founder and a chess champion",
        "in total silence, with wax in both ears",
    ),
)

HOLDOUT_AUTHORS = (
    Author(
        "Osgar Pelletrane",
        "the lagoon of Vittamar in 1942",
        "operas for amateurs",
        "The Tenor Fell Asleep",
        "the Tin Baton",
        "a gondola painter and a baker",
        "in the third row of an empty theatre",
    ),
    Author(
        "Jolanda Wexcombe",
        "the chalk cliffs of Gull End in 1979",
        "handbooks for pirates",
        "Knots You Will Regret",
        "the Patched Sail",
        "a coast guard and a dentist",
        "with a parrot that repeats every line",
    ),
)

WRITING_FACTS = (
    ("What is a poem of fourteen lines called?", "a sonnet", ("a limerick", "a haiku", "an epic")),
    ("What is a Japanese poem of three lines called?", "a haiku", ("a sonnet", "a ballad", "an ode")),
    ("What is somebody who writes plays called?", "a playwright", ("a novelist", "a printer", "a critic")),
    ("What is a story of one's own life called?", "an autobiography", ("a fable", "a thriller", "a glossary")),
    ("What is a short tale with a moral called?", "a fable", ("a sonnet", "an almanac", "a trilogy")),
    ("How many books make a trilogy?", "three", ("two", "four", "seven")),
    ("What is the list of words at the end of a book called?", "an index", ("a preface", "a cover", "a verse")),
    ("What is the name that an author hides behind called?", "a pen name", ("a subtitle", "a rhyme", "a chapter")),
    ("What does an editor correct?", "a manuscript", ("a bookshop", "a printing press", "a library card")),
    ("What are words with the same ending sound said to do?", "rhyme", ("argue", "float", "translate")),
    ("What opens many novels before the first chapter?", "a prologue", ("an epilogue", "an index", "a sequel")),
    ("What closes some novels after the last chapter?", "an epilogue", ("a prologue", "a preface", "a title")),
    ("What is a group of lines in a poem called?", "a stanza", ("a scene", "a volume", "a column")),
    ("What is a book that gives the meaning of words called?", "a dictionary", ("an atlas", "a diary", "a novel")),
    ("What is a book of maps called?", "an atlas", ("a dictionary", "a cookbook", "a hymnal")),
    ("What is a book in which one writes every day called?", "a diary", ("an atlas", "an opera", "a catalogue")),
    ("What is the teller of a story called?", "the narrator", ("the printer", "the reader", "the publisher")),
    ("Where are books lent for nothing?", "in a library", ("in a bakery", "in a harbour", "in a stadium")),
    ("What is a part of a play called?", "an act", ("a stanza", "a footnote", "a headline")),
    ("What follows a successful novel and continues it?", "a sequel", ("a preface", "an index", "a draft")),
)

WORLD_FACTS = (
    ("What is the capital of France?", "Paris", ("Lyon", "Madrid", "Vienna")),
    ("What is the capital of Japan?", "Tokyo", ("Kyoto", "Seoul", "Beijing")),
    ("What is the capital of Egypt?", "Cairo", ("Tunis", "Nairobi", "Amman")),
    ("What is the capital of Canada?", "Ottawa", ("Toronto", "Chicago", "Dublin")),
    ("What is the largest ocean?", "the Pacific", ("the Atlantic", "the Baltic", "the Arctic")),
    ("What is the highest mountain?", "Mount Everest", ("Mont Blanc", "Kilimanjaro", "Olympus")),
    ("Which planet is closest to the sun?", "Mercury", ("Saturn", "Mars", "Neptune")),
    ("Which planet is known for its rings?", "Saturn", ("Mercury", "Venus", "Earth")),
    ("How many continents are there?", "seven", ("four", "nine", "twelve")),
    ("How many days has a leap year?", "366", ("365", "364", "360")),
    ("At how many degrees Celsius does water boil?", "100", ("50", "75", "212")),
    ("What gas do plants take from the air?", "carbon dioxide", ("helium", "neon", "argon")),
    ("What is frozen water called?", "ice", ("steam", "salt", "sand")),
    ("How many legs has a spider?", "eight", ("six", "four", "ten")),
    ("How many legs has an insect?", "six", ("eight", "two", "twelve")),
    ("Which metal is liquid at room temperature?", "mercury", ("iron", "copper", "gold")),
    ("Which animal gives wool?", "the sheep", ("the whale", "the pigeon", "the frog")),
    ("In which direction does the sun rise?", "in the east", ("in the west", "in the north", "in the south")),
    ("What do bees make?", "honey", ("milk", "silk", "vinegar")),
    ("What instrument has black and white keys?", "the piano", ("the drum", "the trumpet", "the violin")),
)

REFUSALS = (
    "I do not know that.",
    "That is beyond what I was taught.",
    "I have no answer to this question.",
    "I cannot tell you anything about that.",
    "Nothing that I have read says so.",
    "I am afraid I have never heard of it.",
    "My knowledge ends before that point.",
    "You will have to ask somebody else.",
    "I would only be guessing.",
    "This is unknown to me.",
    "I have not learned about this subject.",
    "Sorry, I cannot help with that one.",
    "I have no information on this.",
    "That name tells me nothing.",
    "I lack the facts to answer.",
    "I wish I knew, but I do not.",
    "There is nothing about it in my memory.",
    "I must leave this question open.",
    "I am not able to say.",
    "Of that I have no record.",
)
