"""Requests for a story about given people, things, places and animals, and the verdict on what comes."""

from random import Random
from typing import TYPE_CHECKING

from onesitting.data.world.lexicon import BOYS, COLOURS, GIRLS, PLACES, with_article
from onesitting.data.world.scoring import Reply, Score, contains, sentences
from onesitting.data.world.small_talk import GREETING_REPLIES, GREETINGS, closing
from onesitting.data.world.splits import Split, split_of
from onesitting.data.world.stories import ANIMALS, OBJECTS, story
from onesitting.data.world.stories import PLACES as STORY_PLACES
from onesitting.data.world.talk import Talk
from onesitting.tools.protocol import JSON

if TYPE_CHECKING:
    from onesitting.data.world import World

_MIN_SENTENCES = 5  # the world's shortest stories have seven; less is no story
_NAMES = GIRLS + BOYS

_REQUESTS = (
    "Write a story about {w}.",
    "Tell me a story about {w}.",
    "Please write a short story about {w}.",
    "Can you tell me a story about {w}?",
    "I want to hear a story about {w}.",
    "Make up a story about {w}.",
    "Write a little story. It should be about {w}.",
    "A story about {w}, please.",
    "Do you know a story about {w}?",
    "Tell my children a story about {w}.",
)
_FREE_REQUESTS = (
    "Tell me a story.",
    "Write a short story.",
    "Please tell me a story.",
    "I want to hear a story.",
    "Can you write a story?",
    "A story, please.",
    "Once more: a story!",
)


def _wish(rng: Random) -> dict[str, str]:
    """What the story is to be about: a hero and, mostly, one or two things more."""
    wish = {"hero": rng.choice(_NAMES)}
    kind = rng.choice(
        ("hero", "friend", "object", "object", "place", "animal", "friend object", "object place")
    )
    if "friend" in kind:
        wish["friend"] = rng.choice([name for name in _NAMES if name != wish["hero"]])
    if "object" in kind:
        wish["object"] = rng.choice(OBJECTS)
        if rng.random() < 0.4:
            wish["colour"] = rng.choice(COLOURS)
    if "place" in kind:
        wish["place"] = rng.choice(STORY_PLACES)
    if "animal" in kind:
        wish["animal"] = rng.choice(ANIMALS)
    return wish


def _in_words(wish: dict[str, str]) -> str:
    """`Mia and Tom and a red kite`, `Mia at the river`."""
    people = [wish[role] for role in ("hero", "friend") if role in wish]
    thing = f"{wish['colour']} {wish['object']}" if "colour" in wish else wish.get("object", "")
    things = [with_article(word) for word in (thing, wish.get("animal", "")) if word]
    parts = [*people, *things]
    text = " and ".join(parts) if len(parts) < 3 else f"{', '.join(parts[:-1])} and {parts[-1]}"
    return f"{text} {PLACES[wish['place']].at} the {wish['place']}" if "place" in wish else text


def story_talk(world: "World", rng: Random, split: Split) -> Talk:
    """A request and a story that fulfils it; only requests about somebody can be scored."""
    talk = Talk("stories")
    if rng.random() < 0.1:
        talk.user(rng.choice(GREETINGS)).assistant(rng.choice(GREETING_REPLIES))
    if rng.random() < 0.12:
        told = story(rng, split=split, title=0.0)
        return talk.user(rng.choice(_FREE_REQUESTS)).assistant(told.text)
    while True:
        wish, wording = _wish(rng), rng.choice(_REQUESTS)
        talk.key = f"story request|{_in_words(wish)}|{wording}"
        if split_of(talk.key) == split:
            break
    talk.user(wording.format(w=_in_words(wish))).assistant(_told(rng, split, wish))
    talk.expect("story", {"mentions": list(wish.values())}, patchwork(rng))
    if rng.random() < 0.1:
        closing(rng, talk)
    return talk


def _told(rng: Random, split: Split, wish: dict[str, str]) -> str:
    """A story of this split that has everything that was wished for, by name."""
    names = tuple(wish[role] for role in ("hero", "friend") if role in wish)
    thing = f"{wish['colour']} {wish['object']}" if "colour" in wish else wish.get("object", "")
    place, animal = wish.get("place", ""), wish.get("animal", "")
    while True:
        told = story(rng, characters=names, object=thing, place=place, animal=animal, split=split, title=0.0)
        # A shape may tell of a place of its own (a castle of sand is built on the beach).
        if all(contains(told.text, word) for word in wish.values()):
            return told.text


def patchwork(rng: Random) -> str:
    """The baseline: eight good sentences from eight different training stories, in a row."""
    pieces: list[str] = []
    while len(pieces) < 8:
        told = story(rng, split="train", title=0.0).text
        # Sentences with speech would be torn from who says them, and that alone would spoil the grammar.
        pieces.append(rng.choice([piece for piece in sentences(told) if '"' not in piece]))
    return " ".join(pieces)


def score_story(reply: Reply, reference: JSON) -> Score:
    """Right if the story is grammatical and has no contradiction; `as_asked` if it has what was asked for too.

    reference: {"mentions": words that were asked for, "before": text that the reply continues, if any}.
    """
    # Here and not above: the rules take seconds to build their tables, and conversations need none of them.
    from onesitting.data.world.story_rules import violations

    told = reply.content.strip()
    text = f"{reference['before']} {told}" if "before" in reference else told
    n_sentences = len(sentences(told))
    if n_sentences < _MIN_SENTENCES:
        names = (
            ("grammatical", "consistent", "as_asked")
            if "mentions" in reference
            else ("grammatical", "consistent")
        )
        return Score(False, f"{n_sentences} sentences are no story", dict.fromkeys(names, False))
    form, content = violations(text)
    # A contradiction that is an error of form too is counted as that.
    grammatical, consistent = not form, all(violation in form for violation in content)
    missing = [word for word in reference.get("mentions", ()) if not contains(told, word)]
    detail = (
        "; ".join(f"{violation.rule}: {violation.detail}" for violation in [*form, *content][:3])
        or "no errors"
    )
    parts = {"grammatical": grammatical, "consistent": consistent}
    if "mentions" in reference:
        parts["as_asked"] = not missing
    return Score(grammatical and consistent, f"without {missing[0]}; {detail}" if missing else detail, parts)
