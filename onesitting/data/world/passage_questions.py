"""Questions about a told story: each follows from an entry of the story's log, or asks what the story leaves open."""

from __future__ import annotations

import re
from random import Random

from onesitting.data.world import lexicon as lx
from onesitting.data.world.stories import Story

Question = tuple[str, str, tuple[str, ...]]
"""Question, answer (a short sentence), accepted keys (the answer must contain one of them)."""

NOT_SAID = ("The text does not say.", ("does not say", "not stated", "not mentioned"))

# kind of log entry -> (question wordings, answer, key). {0}, {1}… are the fields of the entry.
_ASK: dict[str, list[tuple[tuple[str, ...], str, str]]] = {
    "colour": [
        (("What colour was the {0}?", "What was the colour of the {0}?", "Which colour did the {0} have?"), "The {0} was {1}.", "{1}"),
    ],
    "owner": [(("Whose {0} was it?", "Who did the {0} belong to?", "Who owned the {0} at first?"), "The {0} belonged to {1}.", "{1}")],
    "belongs": [(("Whose {0} was it?", "Who did the {0} belong to?"), "The {0} belonged to {1}.", "{2}")],
    "went": [(("Where did {0} go?", "Which place did {0} go to?", "What place did {0} visit?"), "{0} went to the {1}.", "{1}")],
    "lost": [
        (("What did {0} lose?", "Which thing was lost?", "What was {0} missing?"), "{0} lost the {1}.", "{1}"),
        (("Who lost the {1}?", "Who no longer had the {1}?"), "{0} lost the {1}.", "{0}"),
    ],
    "found": [
        (("Where was the {1}?", "Where did {0} find the {1}?", "In what spot was the {1} found?"), "The {1} was {2}.", "{2}"),
        (("Who found the {1}?", "Who was the finder of the {1}?"), "{0} found the {1}.", "{0}"),
    ],
    "gave": [
        (("Who gave the {2} to {1}?", "From whom did {1} get the {2}?"), "{0} gave the {2} to {1}.", "{0}"),
        (("What did {0} give to {1}?", "What did {1} get from {0}?"), "{0} gave {1} the {2}.", "{2}"),
        (("Who got the {2} from {0}?", "To whom did {0} give the {2}?"), "{1} got the {2}.", "{1}"),
    ],
    "bond": [
        (("Who was {0}?", "Who was {0} to {2}?", "How did {2} know {0}?"), "{0} was {2}'s {1}.", "{1}"),
        (("What was the name of {2}'s {1}?", "Who was {2}'s {1}?", "What was {2}'s {1} called?"), "{2}'s {1} was {0}.", "{0}"),
    ],
    "feel": [(("Why was {0} {1}?", "Why did {0} feel {1}?", "What made {0} {1}?"), "{0} was {1} because {2}.", "{3}")],
    "had_coins": [(("How many coins did {0} have at first?", "How much money did {0} have?"), "{0} had {1} coins.", "{1}")],
    "price": [(("How much did the {0} cost?", "What was the price of the {0}?", "How many coins did the {0} cost?"), "The {0} cost {1} coins.", "{1}")],
    "cost": [(("How much did {0} cost?", "What was the price of {0}?", "How much was paid for {0}?"), "The price was {1}.", "{1}")],
    "left": [(("How much money did {0} have left?", "What was left after {0} had paid?"), "{1} {verb} left.", "{1}")],
    "left_both": [(("How much was left after {0} had bought both things?",), "{0} had {1} left.", "{1}")],
    "total": [(("How much did the two things cost together?", "What was the price of both things together?"), "Together they cost {0}.", "{0}")],
    "bought": [(("What did {0} buy?", "What thing did {0} pay for?"), "{0} bought the {1}.", "{1}")],
    "broke": [
        (("Who broke the {1}?", "Whose fault was it that the {1} broke?"), "{0} broke the {1}.", "{0}"),
        (("What did {0} break?", "Which thing broke?"), "{0} broke the {1}.", "{1}"),
    ],
    "count_pieces": [(("How many pieces were there?", "In how many pieces was the {0}?"), "There were {1} pieces.", "{1}")],
    "mended": [(("Who mended the {1}?", "Who glued the {1} together?"), "{0} mended the {1}.", "{0}")],
    "promise": [(("When did {0} want to bring the {1} back?", "On which day should the {1} come back?"), "The {1} should come back {2}.", "{2}")],
    "prize": [(("What was the first prize?", "What could the winner of the {0} get?"), "The first prize was {1}.", "{1}")],
    "came": [(("Which place did {0} come in?", "How well did {0} do in the {2}?"), "{0} came {1}.", "{1}")],
    "wish": [(("What did {0} want to learn?", "What could {0} not do at first?"), "{0} wanted to learn to {1}.", "{1}")],
    "taught": [(("Who showed {1} how to {2}?", "Who gave {1} a tip?"), "{0} helped {1} to {2}.", "{0}")],
    "days": [(("How many days did {0} practise?", "How long did {0} practise?"), "{0} practised for {1} days.", "{1} days")],
    "ill": [(("Who was ill?", "Who had to stay in bed?"), "{0} was ill.", "{0}")],
    "gave_food": [(("What food did {0} give to {1}?", "What did {1} get to eat or use from {0}?"), "{0} gave {1} {2}.", "{2}")],
    "trip": [
        (("Which town did {0} want to go to?", "Where did {0}'s {2} live?"), "It was {1}.", "{1}"),
        (("Who lived in {1}?", "Whom did {0} want to visit?"), "It was {0}'s {2}.", "{2}"),
    ],
    "with": [(("Who went with {1}?", "Who came along?"), "{0} went with {1}.", "{0}")],
    "idea": [(("Who had the idea?", "Who knew what to do?"), "{0} had the idea.", "{0}")],
    "helped": [(("Who helped {1}?", "Who was kind to {1}?"), "{0} helped {1}.", "{0}")],
    "played": [(("What did {0} both want?", "What was the quarrel about?"), "Both wanted the {1}.", "{1}")],
    "sorry": [(("Who said sorry first?", "Who was the first to say sorry?"), "{0} said sorry first.", "{0}")],
    "stuck": [(("Which animal was in trouble?", "Which animal needed help?"), "It was {a0}.", "{0}")],
    "fetched": [(("What did {0} fetch?", "What did {0} get to help the animal?"), "{0} fetched {1}.", "{1}")],
    "ate": [(("What did {the0} eat?", "What was the food of {the0}?"), "{The0} ate {1}.", "{1}")],
    "stole": [
        (("Who took the {1}?", "Which animal was the thief?"), "{A0} took the {1}.", "{0}"),
        (("What did the {0} take?", "What did the {0} run away with?"), "The {0} took the {1}.", "{1}"),
    ],
    "pet": [
        (("What was the name of {0}'s {1}?", "What was {0}'s {1} called?"), "{0}'s {1} was called {2}.", "{2}"),
        (("What kind of animal was {2}?", "Which pet did {0} have?"), "{2} was a {1}.", "{1}"),
    ],
    "pet_found": [(("Where was {0} found?", "Where was {0} in the end?"), "{0} was {1}.", "{1}")],
    "ate_both": [(("What did {0} eat?", "What food did {0} have?"), "{0} ate {1} and {2}.", "{1} and {2}")],
    "hid": [(("Where did {0} wait until the rain stopped?", "What kept {0} safe from the rain?"), "It was {1}.", "{1}")],
    "dry": [(("Why did {0} stay dry?",), "{0} stayed dry because {1}.", "umbrella")],
    "wet": [(("Why were {0} wet?", "Why did {0} get wet?"), "{0} were wet because {1}.", "rain")],
    "count": [(("How many {0} did {2} have?", "How many {0} were there?"), "{2} had {1} {0}.", "{1}")],
    "why_yellow": [(("Why did the leaves look bad?", "What was wrong with the plants?"), "The reason was that {0}.", "no water")],
    "when_harvest": [(("When did {0} have more than enough {1}?", "In which month were the {1} ready?"), "It was in {2}.", "{2}")],
    "was_animal": [(("What made the sound in the night?", "Which animal was it?"), "It was {a0}.", "{0}")],
    "made": [(("What did {0} want to make?", "What did {0} bake?"), "{0} made {1}.", "{1}")],
    "missing": [(("What was missing for {2}?", "What could {0} not find?"), "There was no {1}.", "{1}")],
    "minutes": [(("How long was {0} in the oven?", "How many minutes did {0} need in the oven?"), "It was in the oven for {1} minutes.", "{1}")],
    "built": [(("What did {0} want to build?", "What did {0} build?"), "{0} built {1}.", "{1}")],
    "why_failed": [(("Why did it go wrong at first?", "Why did it not work the first time?"), "It went wrong because {0}.", "{0}")],
    "floated": [(("Did the {0} float or sink?", "What did the {0} do in the water?"), "The {0} floated.", "floated")],
    "sank": [(("Did the {0} float or sink?", "What did the {0} do in the water?"), "The {0} sank.", "sank")],
    "count_things": [(("How many things did they collect?",), "They collected {0} things.", "{0}")],
    "eyes": [(("What did the snowman have for eyes?", "What were the eyes of the snowman?"), "Its eyes were {0}.", "{0}")],
    "snow_name": [(("What was the name of the snowman?", "What was the snowman called?"), "The snowman was called {0}.", "{0}")],
    "why_melted": [(("Why did the snowman melt?", "Why did the snowman get smaller?"), "It melted because {0}.", "sun")],
    "wrote": [(("Who wrote the letter?", "Who was the letter from?"), "{0} wrote the letter.", "{0}")],
    "each": [(("How many {1} did each child get?", "How many {1} were there for each child?"), "Each child got {0}.", "{0}")],
    "friends": [(("Who were the three friends of {0}?", "Which friends did {0} meet?"), "They were {1}.", "{1}")],
}  # fmt: skip

_OPEN = (
    "What was the name of {a}'s teacher?", "How tall was {b}?", "What was {b}'s favourite song?",
    "How many sisters did {b} have?", "What colour was {b}'s hair?", "What was the family name of {b}?",
    "When was {b} born?", "What did {b} eat for breakfast?", "On which street did {b} live?",
    "What did {a} dream of that night?", "What colour were {b}'s shoes?", "How many books did {a} have?",
    "What was the name of {a}'s aunt?", "What was {a}'s favourite number?", "How old was {b}?",
    "Where did {b} sleep that night?", "What did {a} do the next week?", "Who was the mayor of the town?",
)  # fmt: skip

_PAST = (("are ", "were "), ("is ", "was "), ("has ", "had "), ("holds ", "held "), ("stands ", "stood "))


def _from_entry(rng: Random, entry: tuple[str, ...]) -> Question:
    """A question about one thing that happened."""
    wordings, answer, key = rng.choice(_ASK[entry[0]])
    fields = list(entry[1:])
    if entry[0] == "why_failed":
        for now, then in _PAST:
            fields[0] = fields[0].replace(now, then)
    verb = ""
    if entry[0] == "left":
        verb = "was" if fields[1] == "one coin" else "were"
    # A first field with a capital is a name (of a person or a pet) and takes no article.
    the = fields[0] if fields[0][0].isupper() else f"the {fields[0]}"
    a = lx.with_article(fields[0])
    slots = {"a0": a, "A0": a[0].upper() + a[1:], "the0": the, "The0": the[0].upper() + the[1:], "verb": verb}
    text = answer.format(*fields, **slots)
    return (
        rng.choice(wordings).format(*fields, **slots),
        text[0].upper() + text[1:],
        (re.sub(r"^(a|an|the|some|on) ", "", key.format(*fields, **slots)),),
    )


def _yes_no(rng: Random, story: Story, entry: tuple[str, ...]) -> Question | None:
    """A question answered by yes or no and the truth."""
    kind, a, b = entry[0], story.characters[0], story.characters[1]
    if kind == "colour":
        noun, colour = entry[1], entry[2]
        asked = colour if rng.random() < 0.5 else rng.choice(lx.COLOURS)
        head = "Yes" if asked == colour else "No"
        return (
            f"Was the {noun} {asked}?",
            f"{head}, the {noun} was {colour}.",
            (f"{head}, the {noun} was {colour}",),
        )
    verbs = {
        "lost": ("lose", "lost"),
        "found": ("find", "found"),
        "broke": ("break", "broke"),
        "mended": ("mend", "mended"),
    }
    if kind in verbs and entry[1] in (a, b):
        asked = rng.choice((a, b))
        base, past = verbs[kind]
        head = "Yes" if asked == entry[1] else "No"
        truth = f"{head}, {entry[1]} {past} the {entry[2]}"
        return f"Did {asked} {base} the {entry[2]}?", f"{truth}.", (truth,)
    return None


_AGE = re.compile(r"(\w+) years old|(?:girl|boy) of (\w+)")


def _general(rng: Random, story: Story) -> Question:
    """Age, town, day, month or weather: answered if the text tells it, otherwise `The text does not say.`"""
    a, text, words = story.characters[0], story.text, story.words
    which = rng.randrange(5)
    if which == 0:
        found = _AGE.search(text)
        age = found and (found[1] or found[2])
        question = rng.choice((f"How old was {a}?", f"What was the age of {a}?"))
        return (question, f"{a} was {age} years old.", (age,)) if age else (question, *NOT_SAID)
    if which == 1:
        town = words["town"]
        question = rng.choice((f"In which town did {a} live?", f"What town was {a} from?"))
        return (
            (question, f"{a} lived in {town}.", (town,))
            if town in text and "town2" not in words
            else (question, *NOT_SAID)
        )
    if which == 2:
        day = words["weekday"]
        question = rng.choice(
            ("On which day of the week did it begin?", f"On which day does the story of {a} begin?")
        )
        named = [d for d in lx.WEEKDAYS if d in text]
        return (
            (question, f"It was on {day}.", (day,))
            if named == [day]
            else (question, *NOT_SAID)
            if not named
            else _open(rng, story)
        )
    if which == 3:
        month = words["month"]
        named = [m for m in lx.MONTHS if m in text]
        question = rng.choice(("In which month was it?", "Which month was it at the beginning?"))
        return (
            (question, f"It was {month}.", (month,))
            if named == [month] and f"in {month}" in text and "month2" not in words
            else (question, *NOT_SAID)
            if not named
            else _open(rng, story)
        )
    sky = words["sky"]
    question = rng.choice(("What was the weather like at first?", "What kind of day was it?"))
    told = re.search(rf"(a {sky} (morning|afternoon|\w+day))|(was {sky}\.)|One {sky} ", text)
    return (question, f"It was {sky}.", (sky,)) if told else _open(rng, story)


def _open(rng: Random, story: Story) -> Question:
    """A question that no story of this world answers."""
    a, b = story.characters
    return rng.choice(_OPEN).format(a=a, b=b), *NOT_SAID


def _askable(story: Story) -> list[tuple[str, ...]]:
    """Log entries whose questions have one answer in this story."""
    log = [e for e in story.log if e[0] in _ASK]
    n_gave = sum(e[0] == "gave" for e in log)
    n_went = sum(e[0] == "went" for e in log)
    out: list[tuple[str, ...]] = []
    for entry in log:
        kind = entry[0]
        if (kind == "gave" and n_gave > 1) or (kind == "went" and n_went > 1):
            continue
        if kind == "owner" and story.shape in ("secret", "visit", "journey", "snow", "night"):
            continue  # possession is implied there, not told
        if kind == "gave_food" and n_gave:
            continue
        if kind == "bond" and entry[1] not in story.text:
            continue
        if kind == "feel" and entry[1] not in story.text:
            continue
        out.append(entry)
    return out


def questions_about(rng: Random, story: Story, n: int) -> list[Question]:
    """Up to n different questions about a story, the answers derivable from its text."""
    entries = _askable(story)
    rng.shuffle(entries)
    out: list[Question] = []
    seen: set[str] = set()
    for entry in entries:
        if len(out) >= n:
            break
        draw = rng.random()
        if draw < 0.08:
            question = _open(rng, story)
        elif draw < 0.22:
            question = _general(rng, story)
        elif draw < 0.38:
            question = _yes_no(rng, story, entry) or _from_entry(rng, entry)
        else:
            question = _from_entry(rng, entry)
        if question[0] not in seen:
            seen.add(question[0])
            out.append(question)
    return out
