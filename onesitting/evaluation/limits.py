"""What a model cannot do, in plain words, from its measured scores. Nothing here imports torch."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from onesitting.config import RunConfig

if TYPE_CHECKING:
    from onesitting.evaluation.report import StageReport

SURE, MOSTLY, HALF = 0.95, 0.80, 0.50  # accuracies that part reliable, mostly right, unreliable and weak
TOKENS_PER_PARAMETER = 20  # of a compute-optimal model: Hoffmann et al. 2022, arXiv:2203.15556
WORDS_PER_TOKEN = 0.7  # English prose with a vocabulary of a few thousand entries

PLAIN_NAMES = {
    "stories": "Stories without a fault",
    "stories_grammatical": "Grammatical stories",
    "stories_consistent": "Stories free of contradictions",
    "reading": "Questions about a passage",
    "facts": "Facts of the world",
    "arithmetic": "Arithmetic",
    "instructions": "Following instructions",
    "tools": "Right tool calls",
    "tools_valid": "Valid tool calls",
    "memory": "Remembering earlier turns",
    "stops": "Stopping by itself",
}
"""Tasks of the world's suite, and the parts of their scores."""


def describe_limits(cfg: RunConfig, stages: Sequence["StageReport"]) -> list[str]:
    """Sentences for the report card: size, knowledge, memory, then each ability from the weakest."""
    # A reward model writes nothing: what the run can do is the model's before it.
    done = [stage for stage in stages if stage.status == "done" and stage.stage != "reward"]
    if not done:
        return ["No stage is done, so nothing is known about this model yet."]
    return [
        *_size(done),
        _knowledge(cfg),
        _memory(cfg),
        *_manner(done),
        *_abilities(done[-1]),
    ]


def _size(done: Sequence["StageReport"]) -> list[str]:
    first = done[0].numbers
    n_parameters, tokens = first["n_parameters"], first["tokens"]
    if not n_parameters:
        return []
    kind = "tiny" if n_parameters < 10e6 else "very small" if n_parameters < 200e6 else "small"
    lines = [
        f"It is a {kind} model: {n_parameters:,} parameters, where the assistants that "
        "people know have thousands of times as many. Expect fluent form long before reliable content."
    ]
    if done[0].stage == "pretrain" and tokens and tokens < TOKENS_PER_PARAMETER * n_parameters:
        lines.append(
            f"It has read {tokens / n_parameters:.1f} tokens for each parameter; "
            f"about {TOKENS_PER_PARAMETER} is what a model of its size can use well, "
            "so a longer budget should make it better."
        )
    return lines


def _knowledge(cfg: RunConfig) -> str:
    if cfg.start_from:
        given = cfg.data if "pretrain" in cfg.stages else cfg.chat if "sft" in cfg.stages else ()
        new = f", and what stands in the text it was given ({', '.join(given)})" if given else ""
        return (
            f"It knows what {cfg.start_from} knew, perhaps less well{new}. Whatever it says beyond that is made up, "
            "and it does not say so."
        )
    if cfg.data == ("world",):
        return (
            "It knows one small invented world and nothing about the real one. Whatever it says about real "
            "people, places, dates or laws is made up."
        )
    return (
        f"It knows only what stands in the text it was given ({', '.join(cfg.data)}). Whatever it says "
        "beyond that is made up, and it does not say so."
    )


def _memory(cfg: RunConfig) -> str:
    context = cfg.model.context_length
    n_words = round(context * WORDS_PER_TOKEN, -1)
    if cfg.start_from:  # which may read more than the rows of this run hold
        return (
            f"It was trained here on at most {context:,} tokens at once, about {n_words:,.0f} words; "
            "how it does with longer texts was not measured."
        )
    return (
        f"It sees at most {context:,} tokens at once, about {n_words:,.0f} words; "
        "what was said before that is gone."
    )


def _manner(done: Sequence["StageReport"]) -> list[str]:
    if done[-1].stage == "pretrain":
        return ["It was not fine-tuned on conversations: it continues texts and does not answer questions."]
    return [
        "It was not trained to tell harmful requests from harmless ones; do not put it before the public."
    ]


def _abilities(stage: "StageReport") -> list[str]:
    """A sentence for each kind of score, weakest first."""
    if not stage.suite:
        return ["No question suite was run on it, so nothing is known about what it answers rightly."]
    lines: list[str] = []
    for task, result in sorted(stage.suite.items(), key=lambda item: item[1]["accuracy"]):
        if result["n"] > 0:
            lines.append(_ability(plain_name(task), result))
    return lines


def _ability(name: str, result: dict[str, Any]) -> str:
    accuracy, n = result["accuracy"], result["n"]
    score = f"{100 * accuracy:.0f} % of {n}"
    baseline = result["baseline"]
    if accuracy == 0:
        return f"{name}: not at all ({score})."
    if accuracy < SURE and baseline is not None and result["ci_low"] <= baseline:
        return f"{name}: cannot be told from guessing ({score}; guessing gives {100 * baseline:.0f} %)."
    if accuracy < HALF:
        return f"{name}: weak, more often wrong than right ({score})."
    if accuracy < MOSTLY:
        return f"{name}: unreliable, wrong about {_one_in(accuracy)} ({score})."
    if accuracy < SURE:
        return f"{name}: mostly right, still wrong about {_one_in(accuracy)} ({score})."
    return f"{name}: reliable on questions like those of the suite ({score}); nothing is known beyond them."


def _one_in(accuracy: float) -> str:
    return f"one time in {max(2, round(1 / (1 - accuracy)))}"


def plain_name(task: str) -> str:
    """What a task measures, in words; `tool_use` -> `Tool use` for one without a name here."""
    if task in PLAIN_NAMES:
        return PLAIN_NAMES[task]
    words = task.replace("_", " ").strip()
    return words[:1].upper() + words[1:]
