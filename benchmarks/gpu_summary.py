"""What gpu.py has found so far, as JSON and for people."""

import json
from pathlib import Path
from typing import Any


def write_summary(record: dict[str, Any], out: Path) -> str:
    """Write summary.json and summary.txt, each whole or not at all; the text comes back."""
    text = summary(record)
    for name, content in (("summary.json", json.dumps(record, indent=1) + "\n"), ("summary.txt", text)):
        part = out / f".{name}"
        part.write_text(content)
        part.replace(out / name)
    return text


def summary(record: dict[str, Any]) -> str:
    """The record for people: a line or two a step, in the order that they were done."""
    steps: dict[str, Any] = record["steps"]
    policy = steps.get("check device policy", {})
    lines = [f"{policy.get('name', '?')}, {policy.get('dtype', '?')}, torch {policy.get('torch', '?')}"]
    for title, found in steps.items():
        took = f"({found['step_s']:.0f} s)"
        if "skipped" in found:
            lines.append(f"{title}: left out: {found['skipped']}")
        elif "error" in found:
            lines.append(f"{title}: FAILED {took}: {found['error']}")
        elif title.startswith("limit "):
            tera = {n: found[n] / 1e12 for n in ("matrix", "matrix_training", "attention_training")}
            memory = f"memory {found['memory_bytes_per_s'] / 1e9:,.0f} GB/s"
            lines.append(
                f"{title}: {tera['matrix']:,.2f} TFLOP/s (with gradients {tera['matrix_training']:,.2f}, "
                f"attention {tera['attention_training']:,.2f}), {memory} {took}"
            )
        elif title.startswith("train "):
            lines.append(f"{title}: {_speed(found)} {took}")
        elif title.startswith("budget "):
            bits = found["bits_per_byte"]
            lines.append(
                f"{title}: took {found['wall_s']:.1f} s; {found['tokens']:,} tokens, "
                f"{found['tokens_per_s']:,.0f} a second, "
                f"{'no validation' if bits is None else f'{bits:.3f} bits per byte'}, "
                f"{found['seconds_compile']:.1f} s of compiling"
            )
        else:
            lines.append(f"{title}: ok {took}")
    wall_s, build_s = record.get("wall_s", 0.0), record["build_s"]
    lines.append(f"all of it took {wall_s:.0f} s of {record['deadline_s']:.0f}, {build_s:.0f} to build")
    return "\n".join(lines) + "\n"


def _speed(found: dict[str, Any]) -> str:
    step_s = sum(found["parts_s"].values())
    shares = ", ".join(f"{name} {seconds / step_s:.0%}" for name, seconds in found["parts_s"].items())
    return (
        f"{found['tokens_per_s']:,.0f} tokens/s, {found['flops_per_s'] / 1e12:,.2f} TFLOP/s, "
        f"{found['fraction_of_limit']:.1%} of the limit ({found['fraction_of_limit_6n']:.1%} by 6N), "
        f"{found['peak_memory_bytes'] / 1e9:.2f} GB, {found['micro_batch_rows']} rows, "
        f"first step {found['first_step_s']:.0f} s; {shares}"
    )
