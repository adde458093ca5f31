"""Black-box distillation: a teacher answers prompts, and the answers are conversations to train on.

The teacher is a model here, or a server that speaks OpenAI's chat completions. Each line of the file is one
conversation with what it was made from; lines that are there are never asked for again, so that the same command goes
on where it stopped, and the file is plain data for `--chat`. Answers of no use are noted in a file beside it.
"""

import argparse
import hashlib
import http.client
import itertools
import json
import os
import time
import urllib.error
import urllib.request
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from onesitting.cli_settings import Parser
from onesitting.config import CorpusConfig, DeviceConfig
from onesitting.data.files import read_records
from onesitting.data.preference_records import prompt_of
from onesitting.data.problems import Problems
from onesitting.data.records import RecordError
from onesitting.data.sources import WORLD, expand
from onesitting.errors import UserError
from onesitting.runlog import append_jsonl, read_jsonl

Message = dict[str, Any]
LOCAL_BATCH = 64  # prompts that a local teacher answers together
RETRIES = 5
RETRY_S = 1.0
"""Seconds before the first retry; each further one waits twice as long."""
CUT = "cut at --max-tokens"
PATIENCE_S = 120.0
"""Seconds that a server may take for one reply."""


OPTIONS: tuple[tuple[str, type, str | int | float, str, str], ...] = (
    ("--n", int, 1000, "N", "prompts that are asked, at most"),
    ("--samples", int, 1, "N", "replies to each prompt"),
    ("--system", str, "", "TEXT", "system message for prompts without one; not written to the file"),
    ("--temperature", float, 0.7, "X", "0: always the likeliest token"),
    ("--max-tokens", int, 512, "N", "longest reply, in tokens"),
    ("--seed", int, 0, "N", "seed of the random choices"),
    ("--world-seed", int, 0, "N", "seed of the synthetic world: that of the teacher's run"),
    ("--device", str, "auto", "NAME", "teacher on this machine: auto, cuda, mps, xpu or cpu"),
    ("--model", str, "", "NAME", "server: its name of the model"),
    ("--api-key-env", str, "OPENAI_API_KEY", "NAME", "server: variable that holds the key"),
    ("--concurrency", int, 8, "N", "server: requests at a time"),
)
"""Option, type, default, its name in the help, the help."""


def main(argv: list[str]) -> None:
    """The command `distill-data`."""
    parser = Parser(
        "distill-data",
        "--teacher RUN|URL --out FILE [options]",
        "Let a teacher write conversations to train on. Goes on where it stopped.",
    )
    for name, metavar, text in (
        ("--teacher", "RUN|URL", "a run, a model folder, or the address of an OpenAI-compatible server"),
        ("--out", "FILE", "file of conversations (.jsonl); what is in it stays"),
    ):
        parser.add_argument(name, required=True, metavar=metavar, help=text)
    prompts = "files of prompts or conversations, or world [world]"
    parser.add_argument("--prompts", nargs="+", default=[WORLD], metavar="FILE", help=prompts)
    for name, kind, default, metavar, text in OPTIONS:
        shown = default if default != "" else "empty"
        parser.add_argument(name, type=kind, default=default, metavar=metavar, help=f"{text} [{shown}]")
    write_dataset(parser.parse_args(argv))


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """What a teacher is asked."""

    messages: list[Message]
    tools: list[dict[str, Any]] | None
    sample: int
    """Number of the reply, where several are wanted."""

    @property
    def key(self) -> str:
        """A hash of the content: the same prompt is asked once."""
        content = json.dumps([self.messages, self.tools, self.sample], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came back."""

    message: Message
    finished: bool
    """Whether it ended by itself; a reply that was cut would teach not to stop."""
    fault: str = ""
    """What else keeps it from being an example: filtered by the server, a call that cannot be read."""
    refused: str = ""
    """Why the server would not answer this prompt, where it was that."""


@dataclass
class Progress:
    """What happened to the prompts of one call."""

    n_known: int = 0
    n_left_before: int = 0
    n_written: int = 0
    left_out: Counter[str] = field(default_factory=Counter[str])


def write_dataset(options: argparse.Namespace) -> Progress:
    """Ask the teacher what is not in the file yet; append each answer as it comes. options: those of `main`.

    Raises UserError for a teacher that is not there or refuses, and for prompts that cannot be read.
    """
    out = Path(options.out).expanduser()
    if out.suffix != ".jsonl":
        raise UserError(f"--out {options.out}: a file of JSON lines is written; name it ….jsonl")
    done = {record.get("prompt_id", "") for record in read_jsonl(out)}
    seen = {_reply_key(record["messages"]) for record in read_jsonl(out) if record.get("messages")}
    left_before = _left_out_before(out, options.max_tokens)
    progress = Progress()
    wanted: list[Prompt] = []
    for prompt in read_prompts(options.prompts, options.n, options.samples, options.world_seed):
        progress.n_known += prompt.key in done
        progress.n_left_before += prompt.key in left_before - done
        if prompt.key not in done | left_before:
            done.add(prompt.key)
            wanted.append(prompt)
    is_url = options.teacher.startswith(("http://", "https://"))
    answers = ask_server(wanted, options) if is_url else ask_local(wanted, options)
    for prompt, answer in answers:
        conversation = [*prompt.messages, answer.message]
        reason = _reason_to_leave_out(answer, _reply_key(conversation) in seen)
        if reason:
            progress.left_out[reason] += 1
            if not answer.refused:  # another time the server may take it
                record = {"prompt_id": prompt.key, "reason": reason, "max_tokens": options.max_tokens}
                append_jsonl(_left_out_file(out), record)
            continue
        seen.add(_reply_key(conversation))
        tools = {"tools": prompt.tools} if prompt.tools else {}
        teacher = options.model or str(options.teacher)
        append_jsonl(out, {"messages": conversation, **tools, "teacher": teacher, "prompt_id": prompt.key})
        progress.n_written += 1
    left_out = "".join(f", {n} left out ({reason})" for reason, n in progress.left_out.items())
    before = f", {progress.n_left_before} left out before" if progress.n_left_before else ""
    print(f"{out}: {progress.n_written} written, {progress.n_known} there before{left_out}{before}")
    return progress


def _left_out_file(out: Path) -> Path:
    """Beside the conversations, under a name that no folder of data reads."""
    return out.with_name(f"{out.name}.left-out")


def _left_out_before(out: Path, max_tokens: int) -> set[str]:
    """Prompts whose answers were left out; those that were cut may be asked again with more room."""
    records = [record for record in read_jsonl(_left_out_file(out)) if "prompt_id" in record]
    return {r["prompt_id"] for r in records if r["reason"] != CUT or r["max_tokens"] >= max_tokens}


def _reply_key(messages: Sequence[Message]) -> str:
    content = [(m["role"], m.get("content"), m.get("tool_calls")) for m in messages]
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _reason_to_leave_out(answer: Answer, is_known: bool) -> str:
    if answer.refused:
        return f"the server refused: {answer.refused.partition(':')[0]}"
    if answer.fault:
        return answer.fault
    if not answer.finished:
        return CUT
    if not (answer.message.get("content") or "").strip() and not answer.message.get("tool_calls"):
        return "empty"
    return "said before" if is_known else ""


# ---- prompts -------------------------------------------------------------------------------------------------


def read_prompts(specs: Sequence[str], n: int, samples: int, world_seed: int) -> Iterator[Prompt]:
    """n prompts of the specs, each `samples` times: of a conversation, what stands before its last reply.

    Specs take turns, so that `world`, which is endless, leaves room for the others.
    """
    for messages, tools in itertools.islice(_messages(specs, n, world_seed), n):
        for sample in range(samples):
            yield Prompt(messages=messages, tools=tools, sample=sample)


def _messages(
    specs: Sequence[str], n: int, world_seed: int
) -> Iterator[tuple[list[Message], list[dict[str, Any]] | None]]:
    problems = Problems(CorpusConfig().max_bad_fraction)
    turns = deque(_of_spec(spec, n, world_seed, problems) for spec in specs)
    while turns:
        one = turns.popleft()
        for prompt in itertools.islice(one, 1):
            yield prompt
            turns.append(one)
    problems.raise_if_too_many()


def _of_spec(
    spec: str, n: int, world_seed: int, problems: Problems
) -> Iterator[tuple[list[Message], list[dict[str, Any]] | None]]:
    if spec == WORLD:
        from onesitting.data.world import World

        yield from ((p["messages"], p["tools"]) for p in World(world_seed).prompts("train", n))
        return
    for path in expand(spec):
        for line, record in read_records(path, problems):
            try:
                if not isinstance(record, dict):
                    raise RecordError("not an object")
                yield prompt_of(record)
            except RecordError as error:
                problems.report_bad(f"{path}:{line}", str(error))


# ---- teachers ------------------------------------------------------------------------------------------------


def ask_local(prompts: Sequence[Prompt], options: argparse.Namespace) -> Iterator[tuple[Prompt, Answer]]:
    """Answers of a model of ours (or a Hugging Face folder that we can load), in batches."""
    from onesitting.checkpoint import find_model_folder, load_model
    from onesitting.inference.generate import generate
    from onesitting.inference.sampling import Sampling
    from onesitting.tokenizer.chat import parse_assistant, render
    from onesitting.tokenizer.unused import tokenizer_of_model
    from onesitting.train.device import detect, plan_device

    folder = find_model_folder(Path(options.teacher).expanduser())
    device = plan_device(DeviceConfig(device=options.device), detect())
    device.apply()
    model = load_model(folder, device.torch_device)
    tokenizer = tokenizer_of_model(folder, model.cfg.vocab_size)
    for first in range(0, len(prompts), LOCAL_BATCH):
        batch = prompts[first : first + LOCAL_BATCH]
        ids = [
            render(tokenizer, _asked(p, options.system), p.tools, add_generation_prompt=True)[0]
            for p in batch
        ]
        # A seed of the batch's content: an interrupted run that goes on does not repeat its random choices.
        seed = int(batch[0].key[:7], 16) + options.seed
        sampling = Sampling(temperature=options.temperature, max_tokens=options.max_tokens, seed=seed)
        for prompt, done in zip(batch, generate(model, tokenizer, ids, sampling), strict=True):
            message = {k: v for k, v in parse_assistant(done.text).items() if v or k in ("role", "content")}
            calls = message.get("tool_calls") or []
            valid = all(call["type"] == "function" for call in calls)
            fault = "" if valid else "a call that cannot be read"
            yield prompt, Answer(message=message, finished=done.finish_reason == "stop", fault=fault)


def ask_server(prompts: Sequence[Prompt], options: argparse.Namespace) -> Iterator[tuple[Prompt, Answer]]:
    """Answers of a server, `concurrency` requests at a time, in the order of the prompts."""
    url = options.teacher.rstrip("/")
    url = url if url.endswith("/chat/completions") else f"{url}/chat/completions"
    headers = {"Content-Type": "application/json"}
    if key := os.environ.get(options.api_key_env, ""):
        headers["Authorization"] = f"Bearer {key}"

    def ask(prompt: Prompt) -> tuple[Prompt, Answer] | UserError:
        body: dict[str, Any] = {
            "model": options.model or "default",
            "messages": _asked(prompt, options.system),
            "temperature": options.temperature,
            "max_tokens": options.max_tokens,
            "seed": options.seed + prompt.sample,
        }
        if prompt.tools:
            body["tools"] = prompt.tools
        try:
            return prompt, _answer(_post(url, body, headers), url)
        except Refused as error:
            return prompt, Answer(message={"role": "assistant"}, finished=False, refused=str(error))
        except UserError as error:
            return error

    with ThreadPoolExecutor(max(1, options.concurrency)) as pool:
        # A few at a time, so that what was answered is written before the next is asked.
        size = 4 * max(1, options.concurrency)
        for first in range(0, len(prompts), size):
            done = list(pool.map(ask, prompts[first : first + size]))
            found = [one for one in done if not isinstance(one, UserError)]
            if first == 0 and found and all(answer.refused for _, answer in found):
                raise UserError(
                    f"{url} refused all requests ({found[0][1].refused}); check --model and the prompts"
                )
            yield from found
            for one in done:  # what was answered beside it is written by now
                if isinstance(one, UserError):
                    raise one


def _asked(prompt: Prompt, system: str) -> list[Message]:
    has_system = bool(prompt.messages) and prompt.messages[0].get("role") == "system"
    return (
        prompt.messages
        if has_system or not system
        else [{"role": "system", "content": system}, *prompt.messages]
    )


def _answer(reply: dict[str, Any], url: str) -> Answer:
    try:
        choice = reply["choices"][0]
        found = choice["message"]
        message: Message = {"role": "assistant", "content": found.get("content") or ""}
    except (KeyError, IndexError, TypeError, AttributeError):
        raise UserError(
            f"{url} answered without choices[0].message: {json.dumps(reply)[:200]}; is it a chat completions server?"
        ) from None
    for name in ("tool_calls", "reasoning_content"):
        if found.get(name):
            message[name] = found[name]
    reason = choice.get("finish_reason")
    fault = "filtered by the server" if reason == "content_filter" else ""
    return Answer(message=message, finished=reason not in ("length", "content_filter"), fault=fault)


class Refused(Exception):
    """The server will not answer this one request: it is too long, say."""


def _post(
    url: str, body: dict[str, Any], headers: dict[str, str], wait: Callable[[float], None] = time.sleep
) -> dict[str, Any]:
    """The JSON answer to a request; again after a while where the server is busy or away for a moment.

    Raises Refused for this request alone, UserError for what no other prompt would change.
    """
    data, problem = json.dumps(body).encode(), ""
    for attempt in range(RETRIES + 1):
        try:
            request = urllib.request.Request(url, data=data, headers=headers)
            with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
                return json.loads(response.read())
        except urllib.error.HTTPError as error:
            problem = f"HTTP {error.code}: {error.read()[:200].decode(errors='replace')}"
            if error.code in (400, 413, 422):
                raise Refused(problem) from None
            if error.code not in (408, 409, 429) and error.code < 500:
                raise UserError(
                    f"{url} refused the request ({problem}); check the address, --model and the key"
                ) from None
        except http.client.InvalidURL as error:
            raise UserError(f"{url} is no address ({error})") from None
        except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
            problem = str(getattr(error, "reason", error)) or type(error).__name__
        except ValueError as error:
            raise UserError(
                f"{url} answered with something else than JSON ({error}); check the address"
            ) from None
        if attempt < RETRIES:
            wait(RETRY_S * 2**attempt)
    raise UserError(
        f"{url} did not answer after {RETRIES + 1} attempts ({problem}); start the server, or try again later: "
        "what was answered is kept"
    )
