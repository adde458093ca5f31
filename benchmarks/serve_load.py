"""Many streams at once against a server, each compared with what the server writes when it is alone.

    onesitting serve runs/demo --port 8000 &
    python benchmarks/serve_load.py --url http://127.0.0.1:8000 --streams 64 --seconds 180 --pid $!

First every prompt is asked for alone, greedily: that is the reference, and the one-at-a-time speed. Then `--streams`
clients ask for random prompts without a pause until the time is up. Every text must be its reference, character for
character. Prints one JSON object: p50 and p99 of the time to the first token and of the time between tokens, tokens a
second, their ratio to one at a time, and the slope of the server's resident memory. Exit code 1 when a text differs or
a stream is dropped. httpx (of the openai package) is all it needs.
"""

import argparse
import asyncio
import json
import random
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2

QUESTIONS = (
    "Hello! Who are you?", "What is 17 + 25?", "Tell me a short story.", "What is the capital of nowhere?", "Thanks!",
    "What day is three days after Monday?", "Write one sentence about a dog.",
    "How many apples are 3 apples and 4 apples?",
    "Say something kind.", "Why is the sky blue?", "What did the cat do?", "Name a colour.",
)  # fmt: skip
SYSTEM = "Answer in one or two short sentences, and be kind."


@dataclass
class Tally:
    """What the clients saw."""

    first_s: list[float] = field(default_factory=list)
    between_s: list[float] = field(default_factory=list)
    n_tokens: int = 0
    n_texts: int = 0
    wrong: list[str] = field(default_factory=list)
    dropped: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)
    """(seconds, resident bytes of the server)"""


def requests(model: str, n: int, max_tokens: int) -> list[dict[str, Any]]:
    """n different conversations; every second one shares a system message."""
    rng = random.Random(0)
    bodies: list[dict[str, Any]] = []
    for number in range(n):
        question = f"{QUESTIONS[number % len(QUESTIONS)]} {'please ' * (number // len(QUESTIONS))}".strip()
        messages = [{"role": "user", "content": question}]
        if rng.random() < 0.5:
            messages.insert(0, {"role": "system", "content": SYSTEM})
        bodies.append({"model": model, "messages": messages, "temperature": 0, "max_tokens": max_tokens, "stream": True,
                       "stream_options": {"include_usage": True}})  # fmt: skip
    return bodies


async def ask(http: httpx2.AsyncClient, body: dict[str, Any], tally: Tally) -> str:
    """One streamed text; its times go into the tally."""
    started = time.perf_counter()
    last = 0.0
    text = ""
    done = False
    async with http.stream("POST", "/v1/chat/completions", json=body) as answer:
        answer.raise_for_status()
        async for line in answer.aiter_lines():
            if not line.startswith("data: "):
                continue
            if line == "data: [DONE]":
                done = True
                break
            chunk = json.loads(line[6:])
            if chunk.get("usage"):
                tally.n_tokens += chunk["usage"]["completion_tokens"]
            if chunk["choices"]:
                now = time.perf_counter()
                (tally.between_s if last else tally.first_s).append(now - (last or started))
                last = now
                text += chunk["choices"][0]["delta"].get("content") or ""
    if not done:
        raise httpx2.ReadError("the stream ended before [DONE]")
    tally.n_texts += 1
    return text


async def client(
    http: httpx2.AsyncClient, seed: int, bodies: list[Any], texts: list[str], end: float, tally: Tally
) -> None:
    """Asks random prompts until the time is up."""
    rng = random.Random(seed)
    while time.perf_counter() < end:
        number = rng.randrange(len(bodies))
        try:
            text = await ask(http, bodies[number], tally)
        except httpx2.HTTPError as error:
            tally.dropped.append(f"{type(error).__name__}: {error}")
            await asyncio.sleep(0.1)
            continue
        if text != texts[number]:
            tally.wrong.append(
                f"{bodies[number]['messages'][-1]['content']!r}: {text!r}, alone {texts[number]!r}"
            )


async def watch_memory(pid: int, end: float, tally: Tally) -> None:
    """Notes the server's resident memory once a second (Linux)."""
    started = time.perf_counter()
    while time.perf_counter() < end:
        pages = int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1])
        tally.memory.append((time.perf_counter() - started, pages * 4096))
        await asyncio.sleep(1)


def slope_mb_per_minute(points: list[tuple[float, int]]) -> float | None:
    """Least-squares slope of the second half: the first one fills the prefix cache and the allocator's pools."""
    points = points[len(points) // 2 :]
    if len(points) < 3:
        return None
    n = len(points)
    mean_t = sum(t for t, _ in points) / n
    mean_b = sum(b for _, b in points) / n
    spread = sum((t - mean_t) ** 2 for t, _ in points)
    return sum((t - mean_t) * (b - mean_b) for t, b in points) / spread * 60 / 1e6


def quantiles(values: list[float]) -> dict[str, float]:
    """p50 and p99 in milliseconds."""
    ordered = sorted(values)
    return {
        f"p{q}_ms": round(ordered[min(len(ordered) - 1, len(ordered) * q // 100)] * 1e3, 1) for q in (50, 99)
    }


async def run(options: argparse.Namespace) -> dict[str, Any]:
    """The whole measurement."""
    limits = httpx2.Limits(max_connections=options.streams + 1, max_keepalive_connections=options.streams + 1)
    async with httpx2.AsyncClient(base_url=options.url, timeout=600, limits=limits) as http:
        model = options.model or (await http.get("/v1/models")).json()["data"][0]["id"]
        bodies = requests(model, options.prompts, options.max_tokens)
        alone = Tally()
        started = time.perf_counter()
        texts = [await ask(http, body, alone) for body in bodies]
        alone_s = time.perf_counter() - started
        tally = Tally()
        started = time.perf_counter()
        end = started + options.seconds
        clients = [client(http, seed, bodies, texts, end, tally) for seed in range(options.streams)]
        watching = [watch_memory(options.pid, end, tally)] if options.pid else []
        await asyncio.gather(*clients, *watching)
        elapsed_s = time.perf_counter() - started
    speed, speed_alone = tally.n_tokens / elapsed_s, alone.n_tokens / alone_s
    return {
        "streams": options.streams,
        "seconds": round(elapsed_s, 1),
        "texts": tally.n_texts,
        "texts_that_differ": len(tally.wrong),
        "streams_dropped": len(tally.dropped),
        "first_token": quantiles(tally.first_s),
        "between_tokens": quantiles(tally.between_s),
        "tokens_per_s": round(speed, 1),
        "tokens_per_s_one_at_a_time": round(speed_alone, 1),
        "times_one_at_a_time": round(speed / speed_alone, 2),
        "first_token_alone": quantiles(alone.first_s),
        "memory_mb_per_minute": slope_mb_per_minute(tally.memory),
        "memory_mb_at_end": round(tally.memory[-1][1] / 1e6) if tally.memory else None,
        "examples": (tally.wrong + tally.dropped)[:3],
    }


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", default="", help="name of the model [the first]")
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=180)
    parser.add_argument("--prompts", type=int, default=48, help="different conversations")
    parser.add_argument("--max-tokens", type=int, default=80)
    parser.add_argument("--pid", type=int, default=0, help="the server's process, for its memory")
    result = asyncio.run(run(parser.parse_args()))
    print(json.dumps(result, indent=2, ensure_ascii=False))
    return int(bool(result["texts_that_differ"] or result["streams_dropped"]))


if __name__ == "__main__":
    sys.exit(main())
