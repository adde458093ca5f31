"""A report as Markdown, and as a compact card for the terminal.

What is missing is shown as —, never filled in.
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from onesitting.evaluation.curves import short_number
from onesitting.evaluation.limits import plain_name

if TYPE_CHECKING:
    from onesitting.evaluation.report import BudgetReport, Report, StageReport

MISSING = "—"
STAGE_NOTE = (
    "Bits per byte are those of held-out text; for sft, of the replies in held-out conversations. The "
    "machine's limit is what its matrix products reach at this model's shapes, measured before training."
)
SUITE_NOTE = (
    "In brackets: the 95 % confidence interval. Guessing: what a reply scores that ignores the question."
)
PREFERENCE_NOTE = (
    "Ranking: how often the chosen reply of a held-out pair is likelier than the rejected one. Right replies and the "
    "win rate are those of greedy replies to held-out prompts under the world's rules; a tie is half a win."
)
CHANGE_NOTE = (
    "Bits per byte of held-out text, less is better, and right answers. General: what the model that this run started "
    "from was trained on; what got worse there was forgotten."
)
CHANGE_NAMES = {
    "documents": "own documents, bits per byte",
    "replies": "own conversations, bits per byte",
    "general_documents": "general documents, bits per byte",
    "general_replies": "general conversations, bits per byte",
}
PREFERENCE_NAMES = {
    "ranking_accuracy": "Ranks pairs right",
    "ranking_accuracy_per_token": "Ranks pairs right, per token",
    "right_replies": "Right replies",
    "win_rate": "Win rate against the model before",
    "decided_win_rate": "Wins where only one of the two is right",
}
CARD_ROWS = ("", "tokens", "time", "tokens a second", "share of the machine's limit", "bits per byte")
Table = list[list[str]]
"""Rows of cells; the first row is the head."""


def to_markdown(report: "Report", curves_file: str | None) -> str:
    """The whole report card. curves_file: name of the picture beside it, None if there is none."""
    parts = [f"# Report card: {report.name}", _headline(report), ""]
    if report.missing:
        parts += ["**Missing:** " + "; ".join(report.missing) + ".", ""]
    if curves_file:
        parts += [
            f"![Loss, bits per byte, learning rate and the goal of each stage against tokens]({curves_file})",
            "",
        ]
    parts += ["## Model", "", *_markdown(_model_table(report)), ""]
    parts += ["## Training", "", *_markdown(_stage_table(report.stages)), ""]
    parts += [STAGE_NOTE, "", "## What it can do", ""]
    suite = _suite_table(report.stages)
    if len(suite) > 1:
        parts += [
            *_markdown(suite),
            "",
            SUITE_NOTE,
        ]
    else:
        parts += ["No question suite was run."]
    change = change_table(report)
    if len(change) > 1:
        parts += ["", "## Before and after", "", *_markdown(change), "", CHANGE_NOTE]
    for stage in report.stages:
        if stage.preferences:
            parts += ["", f"## Preferences: {stage.stage}", "", *_markdown(_preference_table(stage)), ""]
            parts += [PREFERENCE_NOTE]
    parts += ["", "## What it cannot do", "", *(f"- {line}" for line in report.limits), ""]
    parts += ["## Samples", "", *_samples(report.stages)]
    parts += ["## Time", "", budget_sentence(report.budget), ""]
    if report.budget.phases:
        parts += [*_markdown(_phase_table(report.budget)), ""]
    parts += ["## How to go on", ""]
    parts += [f"- {purpose}: `{command}`" for purpose, command in report.commands]
    return "\n".join(parts) + "\n"


def print_card(report: "Report") -> None:
    """Print headline, stages, scores, limits in one sentence, and the next commands."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table as RichTable

    console = Console(highlight=False, soft_wrap=True)
    console.print(f"\n[bold]{escape(report.name)}[/bold]  {_headline(report)}")
    if not console.is_terminal:
        console.width = 120  # a pipe has no width of its own, and 80 would break the table of scores
    stages = [row for row in _stage_table(report.stages) if row[0] in CARD_ROWS]
    preferences = [_preference_table(stage) for stage in report.stages if stage.preferences]
    for table in (stages, _suite_table(report.stages), change_table(report), *preferences):
        if len(table) > 1:
            shown = RichTable(box=None, header_style="bold", padding=(0, 2))
            for index, cell in enumerate(table[0]):
                shown.add_column(cell, justify="left" if index == 0 else "right")
            for row in table[1:]:
                shown.add_row(*row)
            console.print(shown)
    console.print(budget_sentence(report.budget))
    for line in report.missing:
        console.print(f"missing: {line}", style="yellow", markup=False)
    width = max((len(purpose) for purpose, _ in report.commands), default=0)
    for purpose, command in report.commands:
        console.print(f"{purpose:<{width}}  [bold]{escape(command)}[/bold]")
    console.print(f"full report: {report.path}/report.md", style="dim", markup=False)


def _headline(report: "Report") -> str:
    """One sentence: size, text, result."""
    done = [stage for stage in report.stages if stage.status == "done"]
    if not done:
        return "An unfinished run."
    numbers = done[-1].numbers
    size = short_number(numbers["n_parameters"]) if numbers["n_parameters"] else "?"
    read = sum(stage.numbers["tokens"] or 0 for stage in done)
    line = f"A language model of {size} parameters, trained on {short_number(read)} tokens"
    if report.budget.actual_s is not None:
        line += f" in {duration(report.budget.actual_s)}"
    return line + (f" ({numbers['device']})." if numbers["device"] else ".")


def _model_table(report: "Report") -> Table:
    config = report.config
    sizes = [stage.numbers["n_parameters"] for stage in report.stages if stage.numbers["n_parameters"]]
    heads = f"{config['model.n_heads']} query, {config['model.n_kv_heads']} key/value"
    return [
        ["", ""],
        ["parameters", f"{sizes[0]:,}" if sizes else MISSING],
        ["layers, width", f"{config['model.n_layers']}, {config['model.d_model']}"],
        ["heads", f"{heads}, {config['model.head_dim']} wide"],
        ["hidden width of the MLP", f"{config['model.d_ff']}"],
        ["vocabulary", f"{config['model.vocab_size'] or config['tokenizer.vocab_size']:,}"],
        ["context, tokens", f"{config['model.context_length']:,}"],
        ["text", ", ".join(config["data"]) if "pretrain" in config["stages"] else MISSING],
        [
            "conversations",
            ", ".join(config["chat"]) if {"sft", "distill"} & set(config["stages"]) else MISSING,
        ],
        *([["started from", config["start_from"]]] if config["start_from"] else []),
        ["seed", str(config["seed"])],
    ]


def _stage_table(stages: Sequence["StageReport"]) -> Table:
    """A column a stage."""
    rows: list[tuple[str, str, Callable[[Any], str]]] = [
        ("steps", "steps", lambda v: f"{v:,}"),
        ("tokens", "tokens", lambda v: f"{v:,}"),
        ("time", "seconds", duration),
        ("of it until the first step was done", "seconds_setup", duration),
        ("tokens a second", "tokens_per_s", lambda v: f"{v:,.0f}"),
        ("share of the machine's limit", "fraction_of_limit", percent),
        ("real tokens, not padding", "real_token_fraction", percent),
        ("peak memory", "peak_memory_bytes", lambda v: f"{v / 1e9:.2f} GB"),
        ("skipped steps (not finite)", "nonfinite_steps", str),
        ("final training loss, nats per token", "final_loss", lambda v: f"{v:.3f}"),
        ("bits per byte", "bits_per_byte", lambda v: f"{v:.4f}"),
        ("arithmetic", "dtype", str),
        ("compiled", "compiled", lambda v: "yes" if v else "no"),
    ]
    head = ["", *(s.stage if s.status == "done" else f"{s.stage} ({s.status})" for s in stages)]
    return [head, *([label, *(_cell(s.numbers[key], show) for s in stages)] for label, key, show in rows)]


def _suite_table(stages: Sequence["StageReport"]) -> Table:
    """A row a task, a column a stage: scores before and after fine-tuning side by side."""
    tasks = list(dict.fromkeys(task for stage in stages for task in stage.suite))
    head = ["ability", "questions", "guessing", *(f"after {stage.stage}" for stage in stages)]
    table = [head]
    for task in tasks:
        results = [stage.suite.get(task) for stage in stages]
        first = next(result for result in results if result is not None)
        counts = [result["n"] for result in results if result is not None]
        asked = f"{min(counts)}" if min(counts) == max(counts) else f"{min(counts)}–{max(counts)}"
        row = [plain_name(task), asked, _cell(first["baseline"], percent)]
        table.append([*row, *(_score(result) for result in results)])
    return table


def _preference_table(stage: "StageReport") -> Table:
    """A row a measure: before and after the stage."""
    table = [["held out", "cases", "before", f"after {stage.stage}"]]
    for name, sides in stage.preferences.items():
        results = [
            {**side, "accuracy": side["value"]} if side else None
            for side in (sides["before"], sides["after"])
        ]
        cases = f"{sides['after']['n']}"
        table.append([PREFERENCE_NAMES.get(name, name), cases, *(_score(result) for result in results)])
    return table


def change_table(report: "Report") -> Table:
    """A row a measure: before the run, and after each of its stages; the head alone if nothing was measured before."""
    columns = [report.before, *report.stages]
    table = [["held out", "before", *(f"after {stage.stage}" for stage in report.stages)]]
    for name in report.before.held_out:
        values = [stage.held_out.get(name) for stage in columns]
        table.append(
            [CHANGE_NAMES.get(name, name), *(_cell(v and v["value"], "{:.4f}".format) for v in values)]
        )
    for part, kind in (("suite", "own questions"), ("general", "general questions")):
        for task in getattr(report.before, part):
            scores = [_score(getattr(stage, part).get(task)) for stage in columns]
            table.append([f"{kind}: {plain_name(task).lower()}", *scores])
    return table


def _score(result: dict[str, Any] | None) -> str:
    if result is None or not result["n"]:
        return MISSING
    return f"{percent(result['accuracy'])} ({100 * result['ci_low']:.0f}–{100 * result['ci_high']:.0f})"


def _phase_table(budget: "BudgetReport") -> Table:
    total = budget.actual_s or 1.0
    rows = [[p["phase"], duration(p["seconds"]), percent(p["seconds"] / total)] for p in budget.phases]
    return [["phase", "time", "share"], *rows, ["all", duration(total), ""]]


def budget_sentence(budget: "BudgetReport") -> str:
    """Whether the budget was kept, in one sentence."""
    if budget.actual_s is None:
        return f"The budget was {budget.setting}; no timing was recorded."
    if budget.budget_s is None:
        return f"The budget was {budget.setting}; everything together took {duration(budget.actual_s)}."
    sentence = f"The budget was {duration(budget.budget_s)}; "
    if budget.difference is None:
        return sentence + f"{duration(budget.actual_s)} are used so far, and the run is not finished."
    verdict = "kept" if budget.kept else "not kept (promised: −5 % to +2 %)"
    if not budget.kept and budget.difference < 0 and budget.reasons:
        verdict += f"; what may have ended it early: {', '.join(budget.reasons)}"
    difference = _signed(100 * budget.difference)
    return f"{sentence}the run took {duration(budget.actual_s)}, {difference} %: {verdict}."


def _signed(value: float) -> str:
    return f"{value:+.1f}".replace("-", "−")


def _samples(stages: Sequence["StageReport"]) -> list[str]:
    lines: list[str] = []
    for stage in stages:
        for sample in stage.samples:
            prompt, text = str(sample.get("prompt", "")), str(sample.get("text", ""))
            lines += [f"After {stage.stage}, step {sample.get('step', MISSING)}:", ""]
            lines += [*_fenced(f"{prompt.rstrip()} ⟶ {text.strip()}"), ""]
    return lines or ["None were written.", ""]


def _fenced(text: str) -> list[str]:
    """Text as a block that Markdown leaves alone, whatever it holds."""
    fence = "```"
    while fence in text:
        fence += "`"
    return [f"{fence}text", text, fence]


def _cell(value: Any, show: Callable[[Any], str]) -> str:
    return MISSING if value is None else show(value)


def _markdown(table: Table) -> list[str]:
    """A table in Markdown; columns after the first are right-aligned."""

    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    return [line(table[0]), line(["---", *["---:"] * (len(table[0]) - 1)]), *map(line, table[1:])]


def percent(fraction: float) -> str:
    """`0.841` -> `84 %`; one digit more below ten percent."""
    return f"{100 * fraction:.0f} %" if fraction >= 0.0995 or fraction == 0 else f"{100 * fraction:.1f} %"


def duration(seconds: float) -> str:
    """`75` -> `1 min 15 s`; tenths below ten seconds."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    if minutes and rest:
        return f"{minutes} min {rest} s"
    return f"{minutes} min" if minutes else f"{rest} s"
