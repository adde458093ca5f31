"""A small domain that anybody can write again: the facts of another world, as documents and as a few dialogues.

    python benchmarks/another_world.py write my_domain --seed 7      # my_domain/documents/, my_domain/dialogues.jsonl
    python benchmarks/another_world.py ask runs/demo runs/mine --seed 7

The world of another seed has the same kinds of people, towns and prices, and other facts, which contradict what a
model of the first world has learned. `ask` puts the world's own test questions about them, in wordings that neither
documents nor dialogues have for these facts.
"""

import argparse
import json
from pathlib import Path
from random import Random

from onesitting.data.world import World
from onesitting.data.world.encyclopedia import paragraph
from onesitting.data.world.fact_questions import GROUPS, fact_question
from onesitting.data.world.state import state

OWN_GROUPS = ("prices", "towns", "people")
"""Kinds of facts that differ between worlds; what a cow eats does not."""


def write(folder: Path, seed: int, n_documents: int, n_dialogues: int) -> None:
    """Documents of three paragraphs each, and conversations of one to three questions."""
    documents = folder / "documents"
    documents.mkdir(parents=True, exist_ok=True)
    rng = Random(seed)
    for number in range(n_documents):
        text = "\n\n".join(_own_paragraph(rng, seed) for _ in range(3))
        (documents / f"{number:05}.txt").write_text(text + "\n", encoding="utf-8")
    with open(folder / "dialogues.jsonl", "w", encoding="utf-8") as file:
        for _ in range(n_dialogues):
            messages: list[dict[str, str]] = []
            for _ in range(rng.randint(1, 3)):
                found = fact_question(World(seed), rng, "train", rng.choice(OWN_GROUPS))
                messages.append({"role": "user", "content": found.question})
                messages.append({"role": "assistant", "content": found.answer})
            file.write(json.dumps({"messages": messages}, ensure_ascii=False) + "\n")


def _own_paragraph(rng: Random, seed: int) -> str:
    """A paragraph about this world's people, towns or prices."""
    names = ("coin", *state(seed).people, *state(seed).towns)
    while True:
        text = paragraph(rng, "train", seed)
        if any(name in text for name in names):
            return text


def ask(runs: list[str], seed: int, n: int) -> None:
    """Print how many of the questions about the world's own facts, n with the others, each model answers."""
    from onesitting.checkpoint import find_model_folder, load_model
    from onesitting.evaluation.suite import run_suite
    from onesitting.tokenizer.bpe import Tokenizer

    kinds = [f"fact|{kind}:" for group in OWN_GROUPS for kind in GROUPS[group][1]]
    items = {"facts": [item for item in World(seed).suite(n)["facts"] if item.key.startswith(tuple(kinds))]}
    for run in runs:
        folder = find_model_folder(Path(run))
        result = run_suite(load_model(folder), Tokenizer.load(folder), items)["facts"]
        interval = f"{100 * result.ci_low:.0f}-{100 * result.ci_high:.0f} %"
        print(f"{run}: {result.correct} of {result.n}, {result.accuracy:.1%} ({interval})", flush=True)


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=("write", "ask"))
    parser.add_argument("places", nargs="+", help="write: a folder; ask: runs or model folders")
    parser.add_argument("--seed", type=int, default=7, help="the world")
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--dialogues", type=int, default=400)
    parser.add_argument("--questions", type=int, default=600, help="questions about facts of all kinds")
    options = parser.parse_args()
    if options.what == "write":
        write(Path(options.places[0]), options.seed, options.documents, options.dialogues)
    else:
        ask(options.places, options.seed, options.questions)


if __name__ == "__main__":
    main()
