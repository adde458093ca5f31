"""Ways to spoil a story, to measure what the checker notices. Each returns None where it does not apply."""

import re
from collections.abc import Callable
from random import Random

from onesitting.data.world import lexicon as lx
from onesitting.data.world.grammar import CHARACTERS
from onesitting.data.world.stories import Story

_OTHER = {
    "he": "she",
    "she": "he",
    "He": "She",
    "She": "He",
    "his": "her",
    "him": "her",
    "himself": "herself",
}
_SENTENCE = re.compile(r"[^.!?\"]*(?:\"[^\"]*\"[^.!?\"]*)*[.!?]+|\"[^\"]*\"")
_MOVE = re.compile(r"[^.!?\"]*\b(?:went|walked|ran|hurried|set off)\b[^.!?\"]* (?:to|for) the [^.!?\"]*\. ")


def _tokens(text: str) -> list[str]:
    return re.findall(r"\w+|\W+", text)


def _sentences(text: str) -> list[str]:
    return [s.strip() for s in _SENTENCE.findall(text.replace("\n\n", " ")) if s.strip()]


def _replace(rng: Random, text: str, words: tuple[str, ...], *, first: int, after: str = "") -> str | None:
    """One of the words (from occurrence `first` on) becomes another one that is not in the text."""
    found = list(re.finditer(rf"\b(?:{'|'.join(sorted(words, key=len, reverse=True))})\b{after}", text))
    if len(found) <= first:
        return None
    match = rng.choice(found[first:])
    return (
        text[: match.start()]
        + rng.choice([w for w in words if not re.search(rf"\b{w}\b", text)])
        + text[match.end() :]
    )


def strange_name(rng: Random, story: Story) -> str | None:
    return _replace(rng, story.text, tuple(CHARACTERS), first=2)


def swapped_name(rng: Random, story: Story) -> str | None:
    tokens = _tokens(story.text)
    a, b = story.characters
    at = rng.choice([i for i, t in enumerate(tokens) if t in (a, b)][1:])
    tokens[at] = b if tokens[at] == a else a
    return "".join(tokens)


def wrong_pronoun(rng: Random, story: Story) -> str | None:
    tokens = _tokens(story.text)
    at = [i for i, t in enumerate(tokens) if t in _OTHER]
    if not at:
        return None
    i = rng.choice(at)
    tokens[i] = _OTHER[tokens[i]]
    return "".join(tokens)


def swapped_giver(rng: Random, story: Story) -> str | None:
    match = re.search(r"(\w+) ((?:gave|handed|lent) [^.]*?) to (\w+)\b", story.text)
    if not match or match[1] not in story.characters or match[3] not in story.characters:
        return None
    swapped = f"{match[3]} {match[2]} to {match[1]}"
    return story.text[: match.start()] + swapped + story.text[match.end() :]


def move_left_out(rng: Random, story: Story) -> str | None:
    match = _MOVE.search(story.text)
    return story.text[: match.start()] + " " + story.text[match.end() :] if match else None


def introduction_left_out(rng: Random, story: Story) -> str | None:
    for match in _SENTENCE.finditer(story.text):
        if re.search(rf"\b{story.characters[1]}\b", match[0]):
            return story.text[: match.start()] + story.text[match.end() :]
    return None


def other_thing(rng: Random, story: Story) -> str | None:
    return _replace(rng, story.text, tuple(lx.OBJECTS), first=1)


def other_place(rng: Random, story: Story) -> str | None:
    return _replace(rng, story.text, tuple(lx.PLACES), first=1)


def other_price(rng: Random, story: Story) -> str | None:
    found = list(re.finditer(rf"\b(?:{'|'.join(lx.NUMBERS[2:])})(?= coins)", story.text))
    if not found:
        return None
    match = rng.choice(found)
    number = rng.choice([n for n in lx.NUMBERS[2:] if n != match[0]])
    return story.text[: match.start()] + number + story.text[match.end() :]


def cut_in_a_sentence(rng: Random, story: Story) -> str | None:
    words = story.text.split(" ")
    return " ".join(words[: int(len(words) * rng.uniform(0.4, 0.95))])


def cut_after_a_sentence(rng: Random, story: Story) -> str | None:
    sentences = _sentences(story.text)
    return " ".join(sentences[: rng.randint(len(sentences) // 2, len(sentences) - 1)])


def shuffled_sentences(rng: Random, story: Story) -> str | None:
    sentences = _sentences(story.text)
    rng.shuffle(sentences)
    return " ".join(sentences)


def neighbours_swapped(rng: Random, story: Story) -> str | None:
    sentences = _sentences(story.text)
    i = rng.randrange(len(sentences) - 1)
    sentences[i], sentences[i + 1] = sentences[i + 1], sentences[i]
    return " ".join(sentences)


def word_left_out(rng: Random, story: Story) -> str | None:
    words = story.text.split(" ")
    del words[rng.randrange(3, len(words) - 1)]
    return " ".join(words)


def word_doubled(rng: Random, story: Story) -> str | None:
    words = story.text.split(" ")
    i = rng.randrange(3, len(words) - 1)
    return " ".join([*words[:i], words[i], *words[i:]])


def words_swapped(rng: Random, story: Story) -> str | None:
    words = story.text.split(" ")
    i = rng.randrange(3, len(words) - 2)
    words[i], words[i + 1] = words[i + 1], words[i]
    return " ".join(words)


def wrong_article(rng: Random, story: Story) -> str | None:
    found = list(re.finditer(r"\b(a|an) (?=\w)", story.text))
    if not found:
        return None
    match = rng.choice(found)
    return story.text[: match.start()] + ("an " if match[1] == "a" else "a ") + story.text[match.end() :]


def small_letter(rng: Random, story: Story) -> str | None:
    i = rng.choice([m.start() for m in re.finditer(r"(?<=\. )[A-Z]", story.text)])
    return story.text[:i] + story.text[i].lower() + story.text[i + 1 :]


def open_quotation(rng: Random, story: Story) -> str | None:
    at = [i for i, c in enumerate(story.text) if c == '"']
    if not at:
        return None
    i = rng.choice(at)
    return story.text[:i] + story.text[i + 1 :]


CORRUPTIONS: dict[Callable[[Random, Story], str | None], float] = {
    # the share of spoiled stories that the checker must at least notice
    strange_name: 0.85, swapped_name: 0.40, wrong_pronoun: 0.60, swapped_giver: 0.30, move_left_out: 0.30,
    introduction_left_out: 0.80, other_thing: 0.30, other_place: 0.20, other_price: 0.70,
    cut_in_a_sentence: 0.90, cut_after_a_sentence: 0.70, shuffled_sentences: 0.80, neighbours_swapped: 0.05,
    word_left_out: 0.20, word_doubled: 0.85, words_swapped: 0.75, wrong_article: 0.98, small_letter: 0.90,
    open_quotation: 0.98,
}  # fmt: skip


def detection_rates(n: int, check: Callable[[str], object]) -> dict[str, tuple[float, int]]:
    """Per corruption: share of spoiled stories in which `check` finds something, and how many were spoiled."""
    from onesitting.data.world.stories import story

    rates: dict[str, tuple[float, int]] = {}
    for corrupt in CORRUPTIONS:
        rng = Random(f"spoil {corrupt.__name__}")
        noticed = spoiled = 0
        for _ in range(40 * n):
            if spoiled == n:
                break
            told = story(rng, title=0)
            text = corrupt(rng, told)
            if text is not None and text != told.text:
                spoiled += 1
                noticed += bool(check(text))
        rates[corrupt.__name__] = (noticed / spoiled, spoiled)
    return rates
