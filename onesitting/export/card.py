"""The model card: README.md of a published model, written from the run's report.

Every number comes from files of the run folder; what was not measured is not in the card. The text in front of it
(YAML) is what the hub's search and its table of results read.
"""

import json
from typing import Any

from onesitting.evaluation.limits import plain_name
from onesitting.evaluation.report import CURVES_FILE, Report, StageReport, read_report
from onesitting.evaluation.report_text import to_markdown
from onesitting.export.source import Source

NO_LICENCE = (
    "The author has not chosen a licence yet. Until then nobody else may use this model; "
    "`onesitting export … --license apache-2.0` names one."
)


def model_card(source: Source, license_id: str, repository: str) -> str:
    """README.md of the model. license_id: the hub's name of a licence, or empty; repository: where it will be."""
    has_curves = source.run is not None and (source.run.path / CURVES_FILE).exists()
    report = read_report(source.run, source.stage) if source.run and has_curves else None
    has_report = report is not None and any(stage.status == "done" for stage in report.stages)
    parts = [_front_matter(source, report if has_report else None, license_id)]
    if report is not None and has_report:
        body = to_markdown(report, CURVES_FILE)
        parts += [f"# {source.name}", body.split("\n", 1)[1].split("## How to go on")[0].rstrip(), ""]
    else:
        parts += [
            f"# {source.name}",
            "",
            "No report lay beside this model, so nothing is said about its quality.",
            "",
        ]
    parts += ["## Use", "", *_use(source, repository), "", "## Licence", ""]
    parts += [f"`{license_id}`" if license_id else NO_LICENCE, ""]
    parts += ["The data it was trained on may carry other terms; see Model above for what it was.", ""]
    parts += ["Made with onesitting."]
    return "\n".join(parts) + "\n"


def _front_matter(source: Source, report: Report | None, license_id: str) -> str:
    """The YAML block. JSON is YAML, so each value is written as JSON."""
    fields: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "text-classification" if source.cfg.n_scores else "text-generation",
        "tags": ["onesitting", *(["conversational"] if source.chats else [])],
    }
    if license_id:
        fields["license"] = license_id
    if report is not None:
        specs = [*report.config["data"], *(report.config["chat"] if "sft" in report.config["stages"] else [])]
        hub = [spec.removeprefix("hub:").split("@")[0] for spec in specs if spec.startswith("hub:")]
        if hub:
            fields["datasets"] = list(dict.fromkeys(hub))
        results = _results(report.stages)
        if results:
            fields["model-index"] = [{"name": source.name, "results": results}]
    lines = [f"{key}: {json.dumps(value, ensure_ascii=False)}" for key, value in fields.items()]
    return "\n".join(["---", *lines, "---", ""])


def _results(stages: list[StageReport]) -> list[dict[str, Any]]:
    """The last stage's measured numbers in the form of the hub's `model-index`."""
    done = [stage for stage in stages if stage.status == "done"]
    last = done[-1]
    dataset = {"name": "held-out text of the run", "type": "own"}
    metrics: list[tuple[str, str, float]] = []
    if last.numbers["bits_per_byte"] is not None:
        metrics.append(("bits_per_byte", "bits per byte", round(last.numbers["bits_per_byte"], 4)))
    metrics += [
        ("accuracy", plain_name(task), round(result["accuracy"], 4))
        for task, result in last.suite.items()
        if result["n"]
    ]
    return [
        {
            "task": {"type": "text-generation"},
            "dataset": dataset
            if kind == "bits_per_byte"
            else {"name": f"onesitting suite: {name}", "type": "own"},
            "metrics": [{"type": kind, "name": name, "value": value}],
        }
        for kind, name, value in metrics
    ]


def _use(source: Source, repository: str) -> list[str]:
    """Code that runs the model with transformers, chat or plain."""
    kind = "AutoModelForSequenceClassification" if source.cfg.n_scores else "AutoModelForCausalLM"
    call = [
        "```python",
        f"from transformers import {kind}, AutoTokenizer",
        "",
        f'tokenizer = AutoTokenizer.from_pretrained("{repository}")',
        f'model = {kind}.from_pretrained("{repository}")',
    ]
    if source.cfg.n_scores:
        messages = '[{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hello."}]'
        return [
            *call,
            f'inputs = tokenizer.apply_chat_template({messages}, return_tensors="pt", return_dict=True)',
            "print(model(**inputs).logits)  # the higher, the better the reply",
            "```",
        ]
    if source.chats:
        call += [
            'messages = [{"role": "user", "content": "Hello!"}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        call += ['inputs = tokenizer("Once", return_tensors="pt")']
    call += [
        "output = model.generate(**inputs, max_new_tokens=100)",
        "print(tokenizer.decode(output[0], skip_special_tokens=True))",
        "```",
    ]
    return call
