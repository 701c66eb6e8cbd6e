"""Writes the invented movie-review sentences in `sst2/train.jsonl` and `sst2/validation.jsonl`.

    python -m src.sample_data.make_sst2            writes both files
    python -m src.sample_data.make_sst2 --check    exits 1 with one line if a file differs

Each class has its own hand-written sentences and its own hand-written fragments; the sentence patterns and
the grammatical subjects are shared, so that neither gives the label away.
"""

import argparse
import json
import random
import re
import string
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

DATA_DIR = Path(__file__).parent / "sst2"
SEED = 20260
NEGATIVE, POSITIVE = 0, 1
ROWS_PER_CLASS = {"train": 180, "validation": 40}
MIN_WORDS, MAX_WORDS = 3, 25
MAX_ATTEMPTS = 1000

SUBJECTS = (
    "the film",
    "this film",
    "the movie",
    "this movie",
    "the picture",
    "this adaptation",
    "the whole production",
    "this little film",
    "the director's second feature",
    "this late-night curiosity",
)

# A slot name followed by a digit draws a further fragment from the same slot.
PATTERNS = (
    "{verdict}",
    "{verdict} that {does}",
    "{verdict} in which {aspect}",
    "{verdict} that {does}, although {admission}",
    "{opening} {verdict}",
    "{subject} {does}",
    "{subject} {does}, and {feeling}",
    "{subject} {does}, and {aspect}",
    "{concession}, {subject} {does}",
    "{concession}, {subject} is {understated}",
    "{admission}, but {aspect}",
    "{admission}, yet {subject} {does}",
    "{admission}; still, {feeling}",
    "{aspect}, and {aspect2}",
    "{aspect}, {aspect2} and {aspect3}",
    "{aspect}, and {audience}",
    "{verdict}, and {audience}",
    "{subject} is {adjective}, {adjective2} and {adjective3}",
    "{subject} is {adjective}, and {feeling}",
    "{subject} is {understated}, and {aspect}",
    "{emphasis} {aspect}",
    "{subject} {does}, and {audience}",
)


@dataclass(frozen=True)
class ClassText:
    """Hand-written text of one class: whole sentences, and the fragments for each slot of `PATTERNS`."""

    label: int
    sentences: tuple[str, ...]
    fragments: dict[str, tuple[str, ...]]


POSITIVE_TEXT = ClassText(
    label=POSITIVE,
    sentences=(
        "i laughed until my neighbor asked if i was all right",
        "nothing much happens, and it is wonderful",
        "not a masterpiece, perhaps, but i would not change a frame",
        "the kind of film you press on your friends",
        "two people talk in a kitchen for an hour and you never want them to stop",
        "i went in grumbling and came out humming",
        "it should not work, and somehow it does",
        "a film this patient is a gift",
        "sweet without ever being sticky",
        "the last ten minutes alone are worth the ticket",
        "you could call it slight, but so is a feather, and both can fly",
        "there are louder films this year and none that i liked more",
        "my only complaint is that it had to end",
        "scary in all the right places",
        "it sneaks up on you and then breaks your heart very gently",
        "who knew a story about tax forms could be this exciting",
        "the old dog steals every scene, as old dogs should",
        "funny, sad, and over before you are ready",
        "i did not expect to care about chess, let alone cry over it",
        "it looks like a postcard and thinks like a novel",
        "hard to describe and harder to forget",
        "no speeches, no villains, just people trying, and it is riveting",
        "somebody clearly loved making this, and it shows",
        "the silliest thing i have seen in months, and i mean that as praise",
        "i cannot remember the last time a chase scene made me grin like that",
        "quiet as snowfall and every bit as lovely",
        "far better than its dreary trailer suggests",
        "a bumpy start gives way to something close to magic",
        "it asks a lot and gives back more",
        "you do not have to like opera to be swept away",
        "the child at the center of it is a natural",
        "an honest film about growing old that left me feeling young",
        "they took a worn-out idea and made it sing",
        "not one cheap trick in the whole thing",
        "i have already bought tickets to see it again with my mother",
        "small, strange and entirely itself",
        "what a pleasure to be surprised by a film again",
        "worth it for the dance on the rooftop, and there is plenty more besides",
        "even the grumpy man behind me applauded",
        "it is about time someone made a heist picture this nimble",
        "the puppets have more soul than most actors",
        "less a lecture than a long, friendly conversation",
        "every frame glows",
        "not bad at all, and in places quite brilliant",
        "a crackling good yarn, told with a straight face",
        "it earned my tears the hard way",
        "the rare holiday film that i would happily watch in july",
        "i wanted to dislike it and ran out of reasons",
        "nobody wastes your time here, least of all the editor",
        "a plain story told so well that it feels new",
    ),
    fragments={
        "verdict": (
            "a warm, generous comedy",
            "a sharp and tender debut",
            "a smart, sure-footed thriller",
            "a lean, confident piece of storytelling",
            "an old-fashioned crowd-pleaser",
            "a graceful study of grief",
            "a gently funny road movie",
            "a richly drawn family portrait",
            "a playful mystery",
            "a bracing, clear-eyed drama",
            "a surprisingly moving love story",
            "a handsome and intelligent period piece",
            "a lovingly made adventure",
            "a wise coming-of-age story",
            "a delightfully odd fable",
            "an intimate and closely observed character study",
        ),
        "does": (
            "earns every one of its tears",
            "finds fresh life in a familiar formula",
            "trusts its audience completely",
            "holds your attention from the first frame to the last",
            "never overstays its welcome",
            "wears its ambition lightly",
            "gets better as it goes along",
            "keeps its surprises coming",
            "balances laughter and sorrow with real skill",
            "says a great deal without raising its voice",
            "stays in the mind for days",
            "refuses to take the easy way out",
            "treats even its minor characters with care",
            "knows exactly where it is going",
            "turns a modest budget into an advantage",
            "does not waste a single minute",
            "makes ordinary lives feel important",
            "rewards your patience many times over",
            "manages to be clever without being cold",
            "succeeds in every way that matters",
        ),
        "aspect": (
            "the dialogue crackles with wit",
            "the two leads are a joy to watch together",
            "the pacing is close to perfect",
            "the camera always seems to be in the right place",
            "the music lifts each moment it touches",
            "the script is full of small, true details",
            "the jokes land again and again",
            "the final act delivers on every promise",
            "the supporting cast shines",
            "the direction is assured",
            "the performances are lively and honest",
            "the ending is deeply satisfying",
            "the action is thrillingly clear",
            "the villain is a wicked delight",
            "the visuals are gorgeous",
            "the emotion never feels forced",
            "the silences say as much as the words",
            "the central friendship rings true",
            "the editing is crisp",
            "the humor never turns mean",
            "the costumes and sets are a feast for the eyes",
            "there is not a false note anywhere",
            "every scene has a purpose",
            "the world on screen feels lived in",
        ),
        "opening": (
            "what could have been a routine exercise turns out to be",
            "against all odds, this is",
            "i expected very little and got",
            "beneath the simple setup lies",
            "do not let the poster fool you: this is",
            "once it finds its feet, the film becomes",
            "here, at last, is",
            "hiding behind a plain title is",
            "i am happy to report that this is",
            "out of the scrappiest materials comes",
        ),
        "concession": (
            "for all its rough edges",
            "despite a slow first half hour",
            "although the plot is nothing new",
            "even with a few loose ends",
            "while it is hardly subtle",
            "in spite of its awkward title",
            "though the premise sounds silly",
            "even when the story turns predictable",
            "despite some shaky effects",
            "though it takes a while to warm up",
        ),
        "admission": (
            "the story is familiar",
            "the bad guys are a little thin",
            "it is not a perfect film",
            "the first act is slow",
            "some of the effects look cheap",
            "the plot has its holes",
            "it will not change your life",
            "not all of the gags work",
            "you have seen this setup before",
            "the romance is underwritten",
            "it runs ten minutes too long",
        ),
        "feeling": (
            "i left the theater smiling",
            "i would gladly watch it again tonight",
            "my whole row was enchanted",
            "i could not look away",
            "two hours felt like ten minutes",
            "i have not stopped thinking about it",
            "the crowd around me cheered",
            "i forgot to check the time",
            "i called my sister afterwards to tell her to go",
            "i was sorry to see the credits roll",
        ),
        "audience": (
            "fans of the genre will leave happy",
            "children and grown-ups alike will find something to love",
            "even skeptics will be won over",
            "patient viewers will be richly rewarded",
            "anyone who has ever been homesick will be touched",
            "you will want to see it twice",
            "you will laugh more than you expect to",
        ),
        "understated": (
            "not without charm",
            "far from dull",
            "anything but routine",
            "hard to dislike",
            "never less than engaging",
            "difficult to forget",
            "better than it has any right to be",
            "no small achievement",
        ),
        "adjective": (
            "funny",
            "humane",
            "inventive",
            "gripping",
            "heartfelt",
            "elegant",
            "bold",
            "witty",
            "absorbing",
            "beautifully shot",
            "superbly acted",
            "exhilarating",
            "charming",
            "quietly profound",
        ),
        "emphasis": (
            "best of all,",
            "happily,",
            "to my great relief,",
            "above all,",
            "thankfully,",
            "i am glad to report that",
        ),
    },
)

NEGATIVE_TEXT = ClassText(
    label=NEGATIVE,
    sentences=(
        "i laughed once, at the fire exit sign",
        "a great deal happens and none of it matters",
        "not terrible, exactly, but i could not tell you a single thing about it",
        "the kind of film you put on to fall asleep",
        "two people argue in a kitchen for an hour and you side with the fridge",
        "i went in hopeful and came out with a headache",
        "it should have worked, and somehow it does not",
        "a film this lazy is an insult to popcorn",
        "sweet the way cough syrup is sweet",
        "the best thing about the last ten minutes is that they are the last",
        "you could call it ambitious, if you were feeling very kind",
        "there are worse films this year, though not many",
        "my only praise is that it ended",
        "about as scary as a damp sock",
        "it shouts at you for two hours and then asks for a sequel",
        "who knew a story about bank robbers could be this boring",
        "even the dog looks embarrassed",
        "long, loud, and over far too late",
        "i did not expect art, but i did expect a plot",
        "it looks like an advertisement and thinks like one too",
        "easy to follow and easier to forget",
        "all speeches and no people",
        "somebody was surely paid to write this, though it hardly shows",
        "the silliest thing i have seen in months, and not on purpose",
        "i cannot remember the last time a chase scene made me yawn",
        "cold as a car park and nearly as dramatic",
        "every good moment is already in the trailer",
        "a strong start gives way to an hour of wheel spinning",
        "it asks a lot and gives back very little",
        "you would have to love opera very much to forgive this",
        "the child at the center of it deserves a better script",
        "a film about growing old that made me feel every minute of it",
        "they took a wonderful book and sanded off everything wonderful",
        "one cheap trick after another",
        "i would rather have spent the evening with my tax forms",
        "small, sour and strangely pleased with itself",
        "what a pity to see such good actors stranded",
        "not even the dance on the rooftop can save it",
        "the man behind me snored, and i envied him",
        "it is a heist picture in which the only thing stolen is your time",
        "the actors have less soul than the puppets",
        "less a story than a very long lecture",
        "every frame is the color of dishwater",
        "not good, and in places quite dreadful",
        "a shaggy yarn that unravels at the first tug",
        "it demands tears and does nothing to deserve them",
        "the sort of holiday film that makes you long for january",
        "i wanted to like it and ran out of excuses",
        "a shame, since the poster is lovely",
        "a simple story told so badly that i lost the thread twice",
    ),
    fragments={
        "verdict": (
            "a limp and tired comedy",
            "a bloated, joyless spectacle",
            "an empty, showy exercise",
            "a strangely bloodless thriller",
            "a soggy, sentimental melodrama",
            "a clumsy and needless sequel",
            "a by-the-numbers mystery",
            "a dreary slog",
            "a shoddy, cheap-looking adventure",
            "a smug and toothless satire",
            "a lifeless period piece",
            "a muddled family drama",
            "a shapeless string of sketches",
            "a painfully unfunny road movie",
            "a timid and pointless remake",
            "a stiff, humorless fable",
        ),
        "does": (
            "mistakes noise for tension",
            "runs out of ideas before the halfway mark",
            "never finds a reason to exist",
            "begs for tears it has not earned",
            "explains every joke and then repeats it",
            "wastes a perfectly good premise",
            "goes nowhere and takes its time getting there",
            "leaves its best ideas on the table",
            "collapses under the weight of its own plot",
            "confuses being slow with being deep",
            "talks down to its audience",
            "cannot decide what it wants to be",
            "fades from memory before the credits end",
            "lurches from one dull scene to the next",
            "is never as clever as it thinks it is",
            "forgets to give anyone a reason to care",
            "drags on long after the point has been made",
            "borrows from better films and adds nothing",
            "fails to produce a single honest laugh",
            "feels twice as long as it is",
        ),
        "aspect": (
            "the dialogue clunks along",
            "the two leads have no chemistry at all",
            "the pacing is sluggish",
            "the camera shakes for no good reason",
            "the music tells you what to feel at each turn",
            "the script is stitched together from other scripts",
            "the jokes fall flat",
            "the final act makes no sense",
            "the supporting cast looks bored",
            "the direction is listless",
            "the performances are wooden",
            "the ending feels like a cheat",
            "the action is an unreadable blur",
            "the villain is about as menacing as a houseplant",
            "the visuals are murky and drab",
            "the emotion never feels real",
            "the twists can be seen from miles away",
            "the central romance is hard to believe",
            "the editing is a mess",
            "the humor turns sour early",
            "the sets look like cardboard",
            "there is hardly a believable line anywhere",
            "every scene goes on too long",
            "nobody on screen seems to be having any fun",
        ),
        "opening": (
            "what should have been a romp turns out to be",
            "against all hopes, this is",
            "i expected a good time and got",
            "behind the glossy surface lies",
            "do not let the poster fool you: this is",
            "after a lively start, the film becomes",
            "no amount of polish can hide that this is",
            "sadly, this is",
            "it pains me to report that this is",
            "out of the richest materials comes",
        ),
        "concession": (
            "for all its expensive gloss",
            "despite a promising first half hour",
            "although the premise is a good one",
            "even with a talented cast",
            "while it is often pretty to look at",
            "in spite of its striking images",
            "though it means well",
            "even when the story shows a flicker of life",
            "despite a few clever touches",
            "though the opening scene is excellent",
        ),
        "admission": (
            "the idea is a good one",
            "the cast is talented",
            "the opening is lively",
            "the photography is lovely",
            "it starts well enough",
            "one or two of the gags work",
            "the money is up there on the screen",
            "the lead tries hard",
            "the soundtrack is catchy",
            "the trailer promised a good time",
            "there is a fine short film buried in here",
        ),
        "feeling": (
            "i left the theater feeling cheated",
            "i would not sit through it again",
            "my whole row was yawning",
            "i kept looking at the exit",
            "two hours felt like five",
            "i had forgotten it by the time i got home",
            "nobody around me laughed once",
            "i checked my watch again and again",
            "i wanted my evening back",
            "i was relieved to see the credits roll",
        ),
        "audience": (
            "fans of the genre will leave disappointed",
            "children and grown-ups alike will fidget",
            "even loyal fans will lose interest",
            "patient viewers will wait in vain",
            "anyone looking for a story will go home hungry",
            "you will want your money back",
            "you will sigh more often than you laugh",
        ),
        "understated": (
            "not nearly funny enough",
            "far from convincing",
            "anything but thrilling",
            "hard to sit through",
            "never more than passable",
            "difficult to defend",
            "less than the sum of its parts",
            "not worth the ticket price",
        ),
        "adjective": (
            "dull",
            "shallow",
            "predictable",
            "clumsy",
            "overlong",
            "humorless",
            "charmless",
            "confusing",
            "badly lit",
            "poorly acted",
            "derivative",
            "tedious",
            "grating",
            "emotionally flat",
        ),
        "emphasis": (
            "worst of all,",
            "sadly,",
            "to my great regret,",
            "above all,",
            "alas,",
            "i am sorry to report that",
        ),
    },
)


def shuffled(items: tuple[str, ...] | list[str], rng: random.Random) -> list[str]:
    """Returns the items in random order.

    Sorts on `rng.random()`, the only draw whose sequence Python promises to keep between versions.
    """
    keyed = [(rng.random(), item) for item in items]
    return [item for _, item in sorted(keyed)]


def deal_forever(items: tuple[str, ...], rng: random.Random) -> Iterator[str]:
    """Yields every item once in random order before any item comes again."""
    while True:
        yield from shuffled(items, rng)


def repeats_a_content_word(sentence: str) -> bool:
    """Whether two words of four or more letters share their first five letters ("patient", "patience")."""
    function_words = {"that", "with", "from", "this", "when", "than", "even", "there", "have", "will"}
    stems = [word[:5] for word in re.findall(r"[a-z]{4,}", sentence) if word not in function_words]
    return len(stems) != len(set(stems))


def compose(text: ClassText, count: int, rng: random.Random) -> list[str]:
    """Returns `count` different sentences composed from the class's fragments, the patterns taken in turn.

    Raises:
        RuntimeError: `MAX_ATTEMPTS` draws for one pattern gave no new sentence, so too many are asked for.
    """
    slots = {**text.fragments, "subject": SUBJECTS}
    decks = {slot: deal_forever(fragments, rng) for slot, fragments in slots.items()}
    patterns = deal_forever(PATTERNS, rng)
    sentences: dict[str, None] = {}
    while len(sentences) < count:
        pattern = next(patterns)
        fields = [field for _, field, _, _ in string.Formatter().parse(pattern) if field]
        for _ in range(MAX_ATTEMPTS):
            sentence = pattern.format(**{field: next(decks[field.rstrip("0123456789")]) for field in fields})
            fits = MIN_WORDS <= len(sentence.split()) <= MAX_WORDS
            if fits and sentence not in sentences and not repeats_a_content_word(sentence):
                sentences[sentence] = None
                break
        else:
            raise RuntimeError(f"no new sentence for {pattern!r} after {len(sentences)} of {count}")
    return list(sentences)


def build_splits() -> dict[str, list[tuple[str, int]]]:
    """Returns the (sentence, label) rows of each split, in file order."""
    rng = random.Random(SEED)
    labels: dict[str, int] = {}
    sentences_of_split: dict[str, list[str]] = {split: [] for split in ROWS_PER_CLASS}
    for text in (NEGATIVE_TEXT, POSITIVE_TEXT):
        composed = compose(text, sum(ROWS_PER_CLASS.values()) - len(text.sentences), rng)
        pool = shuffled([*text.sentences, *composed], rng)
        labels.update(dict.fromkeys(pool, text.label))
        start = 0
        for split, count in ROWS_PER_CLASS.items():
            sentences_of_split[split] += pool[start : start + count]
            start += count
    return {
        split: [(sentence, labels[sentence]) for sentence in shuffled(sentences, rng)]
        for split, sentences in sentences_of_split.items()
    }


def render_files() -> dict[Path, bytes]:
    """Returns the exact content of each data file."""
    files = {}
    for split, rows in build_splits().items():
        lines = [
            json.dumps({"idx": idx, "sentence": sentence, "label": label})
            for idx, (sentence, label) in enumerate(rows)
        ]
        files[DATA_DIR / f"{split}.jsonl"] = ("\n".join(lines) + "\n").encode("ascii")
    return files


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Writes, or checks, the invented SST-2-like sample data.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit 1 if a file differs")
    check = parser.parse_args(arguments).check
    files = render_files()
    if check:
        found = {path: path.read_bytes() if path.is_file() else None for path in files}
        stale = [path.name for path, content in files.items() if found[path] != content]
        if stale:
            print(f"{', '.join(stale)}: not what make_sst2 writes", file=sys.stderr)
            return 1
        return 0
    DATA_DIR.mkdir(exist_ok=True)
    for path, content in files.items():
        path.write_bytes(content)
    return 0


if __name__ == "__main__":
    sys.exit(main())
