"""Data from a teacher: a server over HTTP and a model here; going on, duplicates, replies that are no use."""

import argparse
import json
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from onesitting.data.preference_records import prompt_of
from onesitting.data.sources import expand
from onesitting.distill_data import write_dataset
from onesitting.errors import UserError
from onesitting.runlog import read_jsonl


class Teacher(BaseHTTPRequestHandler):
    """A chat completions server that answers with the question; it knows some words to misbehave at."""

    asked: list[dict[str, Any]] = []  # noqa: RUF012, of the whole server
    busy = 0
    key = ""

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        question = body["messages"][-1]["content"]
        if type(self).busy > 0:
            type(self).busy -= 1
            self.answer(503, {"error": "busy"})
        elif "broken" in question:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")  # and it hangs up
        elif "too much" in question:
            self.answer(400, {"error": "this model reads 512 tokens"})
        elif "forbidden" in question:
            self.answer(401, {"error": "no key"})
        else:
            type(self).asked.append(body)
            type(self).key = self.headers.get("Authorization", "")
            reason = "length" if "long" in question and body["max_tokens"] < 64 else "stop"
            reason = "content_filter" if "rude" in question else reason
            content = "" if "silent" in question else f"You asked: {question}"
            choice = {"message": {"role": "assistant", "content": content}, "finish_reason": reason}
            self.answer(200, {"choices": [choice]})

    def answer(self, code: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    Teacher.asked, Teacher.busy, Teacher.key = [], 0, ""
    running = ThreadingHTTPServer(("127.0.0.1", 0), Teacher)
    thread = threading.Thread(target=running.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{running.server_port}/v1"
    running.shutdown()
    running.server_close()


def options(tmp_path: Path, teacher: str, questions: list[str], **changes: Any) -> argparse.Namespace:
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": q}) + "\n" for q in questions))
    settings: dict[str, Any] = {
        "teacher": teacher, "out": str(tmp_path / "out.jsonl"), "prompts": [str(prompts)], "n": 100, "samples": 1,
        "model": "big", "api_key_env": "TEACHER_KEY", "concurrency": 3, "system": "", "temperature": 0.5,
        "max_tokens": 16, "seed": 0, "world_seed": 0, "device": "cpu", **changes,
    }  # fmt: skip
    return argparse.Namespace(**settings)


def test_each_prompt_becomes_a_conversation_to_train_on(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEACHER_KEY", "secret")
    asked = options(tmp_path, server, ["One?", "Two?"], system="Be kind.")
    progress = write_dataset(asked)
    lines = read_jsonl(tmp_path / "out.jsonl")
    assert progress.n_written == 2
    assert [line["messages"][-1]["content"] for line in lines] == ["You asked: One?", "You asked: Two?"]
    assert lines[0]["messages"][0] == {"role": "user", "content": "One?"}, (
        "the system message is the teacher's alone"
    )
    assert Teacher.key == "Bearer secret"
    assert Teacher.asked[0]["messages"][0] == {"role": "system", "content": "Be kind."}
    assert {body["model"] for body in Teacher.asked} == {"big"}
    assert Teacher.asked[0]["temperature"] == 0.5


def test_the_same_command_goes_on_and_asks_nothing_twice(tmp_path: Path, server: str) -> None:
    write_dataset(options(tmp_path, server, ["One?", "Two?", "One?"]))
    assert len(Teacher.asked) == 2
    progress = write_dataset(options(tmp_path, server, ["One?", "Two?", "Three?"]))
    assert (progress.n_known, progress.n_written) == (2, 1)
    assert len(Teacher.asked) == 3
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 3


def test_replies_that_are_cut_empty_or_said_before_are_left_out_and_counted(
    tmp_path: Path, server: str
) -> None:
    progress = write_dataset(options(tmp_path, server, ["a long one", "a silent one", "One?"], samples=2))
    assert progress.n_written == 1
    assert progress.left_out == {"cut at --max-tokens": 2, "empty": 2, "said before": 1}


def test_answers_of_no_use_are_not_asked_for_again_unless_they_may_be_longer_now(
    tmp_path: Path, server: str
) -> None:
    questions = ["a long one", "a silent one", "a rude one", "One?"]
    first = write_dataset(options(tmp_path, server, questions, samples=2))
    assert first.left_out == {
        "cut at --max-tokens": 2, "empty": 2, "filtered by the server": 2, "said before": 1
    }  # fmt: skip
    n_asked = len(Teacher.asked)
    again = write_dataset(options(tmp_path, server, questions, samples=2))
    assert len(Teacher.asked) == n_asked
    assert (again.n_known, again.n_left_before, again.n_written) == (1, 7, 0)
    longer = write_dataset(options(tmp_path, server, questions, samples=2, max_tokens=64))
    assert len(Teacher.asked) == n_asked + 2
    assert longer.n_written == 1
    assert [path.name for path in expand(str(tmp_path))] == ["out.jsonl", "prompts.jsonl"], (
        "no data by accident"
    )


def test_a_busy_server_is_asked_again_and_a_refusal_is_said(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onesitting.distill_data.RETRY_S", 0.01)
    Teacher.busy = 2
    assert write_dataset(options(tmp_path, server, ["One?"])).n_written == 1
    with pytest.raises(UserError, match=r"401.*--model and the key"):
        write_dataset(options(tmp_path, server, ["forbidden"]))


def test_what_was_answered_beside_a_refusal_is_kept_and_a_prompt_of_its_own_fault_is_counted(
    tmp_path: Path, server: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onesitting.distill_data.RETRY_S", 0.0)
    with pytest.raises(UserError, match="401"):
        write_dataset(options(tmp_path, server, ["forbidden", "One?", "Two?"]))
    assert len(read_jsonl(tmp_path / "out.jsonl")) == 2
    progress = write_dataset(options(tmp_path, server, ["too much", "Three?", "Four?"]))
    assert progress.n_written == 2
    assert progress.left_out == {"the server refused: HTTP 400": 1}
    with pytest.raises(UserError, match=r"refused all requests.*512 tokens"):
        write_dataset(options(tmp_path, server, ["too much", "far too much"]))
    with pytest.raises(UserError, match="did not answer after 6 attempts"):
        write_dataset(options(tmp_path, server, ["a broken one"]))
    with pytest.raises(UserError, match="is no address"):
        write_dataset(options(tmp_path, "http://127.0.0.1:1/a b", ["Five?"]))


def test_sources_of_prompts_take_turns(tmp_path: Path, server: str) -> None:
    asked = options(tmp_path, server, ["One?", "Two?"], n=5)
    asked.prompts = ["world", *asked.prompts]
    assert write_dataset(asked).n_written == 5
    questions = [line["messages"][-2]["content"] for line in read_jsonl(tmp_path / "out.jsonl")]
    assert questions[1] == "One?"
    assert questions[3] == "Two?"


def test_a_server_that_is_not_there_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onesitting.distill_data.RETRY_S", 0.0)
    with pytest.raises(UserError, match="did not answer after"):
        write_dataset(options(tmp_path, "http://127.0.0.1:9/v1", ["One?"]))


def test_a_conversation_is_asked_for_its_last_reply() -> None:
    user, reply = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    assert prompt_of({"messages": [user, reply, user, reply]})[0] == [user, reply, user]
    assert prompt_of({"prompt": "Hi"})[0] == [user]


def test_a_model_here_answers_and_its_file_is_data_for_sft(tmp_path: Path) -> None:
    sys.path.insert(0, str(Path(__file__).parent / "stages"))
    import tiny

    from onesitting.config import CorpusConfig
    from onesitting.data.problems import Problems
    from onesitting.data.sources import read_conversations

    words = tiny.tokenizer()
    teacher = tiny.trained_start(tmp_path, words, tiny.shape(words.vocab_size))
    progress = write_dataset(
        options(tmp_path, str(teacher), ["One?", "Two?"], max_tokens=64, temperature=1.0)
    )
    assert progress.n_written + sum(progress.left_out.values()) == 2
    (tmp_path / "out.jsonl").open("a").write(
        json.dumps({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]})
        + "\n"
    )
    problems = Problems()
    talks = list(read_conversations([str(tmp_path / "out.jsonl")], CorpusConfig(), problems))
    assert len(talks) == progress.n_written + 1
    assert problems.n_bad == 0


def test_the_teacher_is_asked_about_its_own_world_whatever_the_seed_of_sampling(
    tmp_path: Path, server: str
) -> None:
    asked = []
    for number, (seed, world_seed) in enumerate(((0, 5), (1, 5), (1, 6))):
        changes = {"prompts": ["world"], "n": 3, "seed": seed, "world_seed": world_seed}
        Teacher.asked = []
        write_dataset(options(tmp_path, server, [], out=str(tmp_path / f"{number}.jsonl"), **changes))
        asked.append(sorted(str(body["messages"]) for body in Teacher.asked))
    assert asked[0] == asked[1] != asked[2]
