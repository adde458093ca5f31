"""The chat with a real model: one that has learnt a single conversation by heart, tool call and thought included."""

import argparse
import fcntl
import io
import itertools
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from user_command import Cli

from onesitting import chat_ui
from onesitting.chat_ui import Chat, answer, change_sampling, command, fit_prompt, fitting_tools
from onesitting.checkpoint import save_model
from onesitting.cli import main
from onesitting.config import ModelConfig
from onesitting.data.world.tools import CALCULATOR, TOOLS
from onesitting.errors import UserError
from onesitting.inference.sampling import Sampling
from onesitting.model.transformer import Transformer
from onesitting.terminal import Ink
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.tokenizer.chat import render

CALL = {"type": "function", "function": {"name": "calculator", "arguments": {"expression": "12 + 30"}}}
MEMORISED: list[dict[str, Any]] = [
    {"role": "user", "content": "Sum?"},
    {"role": "assistant", "content": "", "reasoning_content": "I add.", "tool_calls": [CALL]},
    {"role": "tool", "content": "42"},
    {"role": "assistant", "content": "It is 42."},
]


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    text = json.dumps(MEMORISED) + json.dumps(CALCULATOR)
    tokenizer = train_tokenizer([text] * 3, 320)
    ids, _ = render(tokenizer, MEMORISED, [CALCULATOR])
    assert len(ids) < 240
    cfg = ModelConfig(
        n_layers=2,
        d_model=64,
        n_heads=2,
        n_kv_heads=1,
        head_dim=32,
        d_ff=128,
        context_length=256,
        vocab_size=tokenizer.vocab_size,
    )
    model = Transformer(cfg)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    tokens = torch.tensor([ids])
    loss = torch.zeros(())
    for _ in range(160):
        logits = model(tokens[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), tokens[0, 1:])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.02, "the conversation is not known by heart"
    folder = tmp_path_factory.mktemp("chat") / "model"
    save_model(folder, model, tokenizer, generation={"temperature": 0.0})
    return folder


@pytest.fixture
def state(model_folder: Path) -> Chat:
    from onesitting.checkpoint import load_model

    return Chat(
        model=load_model(model_folder),
        tokenizer=Tokenizer.load(model_folder),
        sampling=Sampling(temperature=0.0),
        tools=[CALCULATOR],
    )


def test_a_tool_call_is_carried_out_and_its_result_is_seen_by_the_model(state: Chat):
    stream = io.StringIO()
    answer(state, "Sum?", Ink(stream))
    assert [message["role"] for message in state.messages] == ["user", "assistant", "tool", "assistant"]
    assert state.messages[1]["reasoning_content"] == "I add."
    assert state.messages[2]["content"] == "42"
    assert state.messages[3]["content"] == "It is 42."
    shown = stream.getvalue()
    assert "I add.\n" in shown
    assert shown.endswith("It is 42.\n")
    assert "<" not in shown


def test_tool_calls_end_after_four_rounds(
    state: Chat, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    # A model that calls for ever: whatever the result, it is asked the question that it answers with a call.
    monkeypatch.setattr(chat_ui, "fit_prompt", lambda state: fit_prompt_of_question(state))
    stream = io.StringIO()
    answer(state, "Sum?", Ink(stream))
    assert [message["role"] for message in state.messages].count("tool") == 4
    assert "stopped after 4 rounds of tool calls" in stream.getvalue()


def fit_prompt_of_question(state: Chat) -> tuple[list[int], Sampling]:
    ids, _ = render(state.tokenizer, MEMORISED[:1], state.tools, add_generation_prompt=True)
    return ids, state.sampling


def test_ctrl_c_stops_the_reply_and_not_the_chat(state: Chat, monkeypatch: pytest.MonkeyPatch):
    stream = io.StringIO()
    ink = Ink(stream)
    write = ink.write
    calls = itertools.count()

    def interrupted(text: str) -> None:
        if next(calls) == 1:
            raise KeyboardInterrupt
        write(text)

    monkeypatch.setattr(ink, "write", interrupted)
    answer(state, "Sum?", ink)
    assert [message["role"] for message in state.messages] == ["user", "assistant"]
    assert "[stopped]" in stream.getvalue()


def test_ctrl_c_during_a_call_stops_the_call_and_not_the_chat(state: Chat, monkeypatch: pytest.MonkeyPatch):
    def interrupted(call: object) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr(state.toolbox, "call", interrupted)
    answer(state, "Sum?", Ink(io.StringIO()))
    assert [message["role"] for message in state.messages] == ["user", "assistant", "tool"]
    assert state.messages[-1]["content"] == "error: stopped by the user"
    monkeypatch.undo()
    answer(state, "Sum?", Ink(io.StringIO()))
    assert [message["role"] for message in state.messages][3:] == ["user", "assistant", "tool", "assistant"]


def test_oldest_turns_are_left_out_when_the_context_is_full(state: Chat):
    state.tools = []
    state.sampling = Sampling(max_tokens=40)
    for number in range(30):
        state.messages += [
            {"role": "user", "content": f"Turn {number}"},
            {"role": "assistant", "content": "Yes."},
        ]
    state.messages.append({"role": "user", "content": "Last"})
    ids, sampling = fit_prompt(state)
    text = state.tokenizer.decode(ids, skip_special=False)
    assert len(ids) + sampling.max_tokens <= 256
    assert sampling.max_tokens == 40
    assert "Last" in text
    assert "Turn 29" in text
    assert "Turn 0" not in text
    assert text.startswith("<|im_start|>user\nTurn")
    assert len(state.messages) == 61, "what is shown again by the person is not forgotten by the chat"


def test_tools_leave_half_of_the_context_to_the_conversation(state: Chat):
    for tool_budget in (256, 1024, 2048):
        state.model.cfg = replace(state.model.cfg, context_length=tool_budget)
        tools = fitting_tools(state.model, state.tokenizer)
        ids, _ = render(state.tokenizer, [], tools)
        assert len(ids) <= tool_budget // 2
        assert tools == list(TOOLS[: len(tools)])
    assert len(tools) == 3


def test_a_message_longer_than_the_context_is_refused(state: Chat):
    state.messages.append({"role": "user", "content": "word " * 400})
    with pytest.raises(UserError, match="leave no room for a reply in a context of 256"):
        fit_prompt(state)


def test_commands_change_the_chat(state: Chat):
    stream = io.StringIO()
    ink = Ink(stream)
    state.messages.append({"role": "user", "content": "x"})
    assert command(state, "/system Be brief.", ink)
    assert (state.system, state.messages) == ("Be brief.", [])
    assert command(state, "/set temperature 0.7", ink)
    assert command(state, "/set top-k=5", ink)
    assert (state.sampling.temperature, state.sampling.top_k) == (0.7, 5)
    assert command(state, "/tools off", ink)
    assert state.tools == []
    assert command(state, "/tools on", ink)
    assert state.tools == [CALCULATOR]
    assert command(state, "/think on", ink)
    assert (state.thinking, state.thinking_tokens) == (True, None)
    assert command(state, "/think 12", ink)
    assert (state.thinking, state.thinking_tokens) == (True, 12)
    assert command(state, "/think auto", ink)
    assert (state.thinking, state.thinking_tokens) == (None, None)
    assert command(state, "/help", ink)
    assert "/reset" in stream.getvalue()
    assert not command(state, "/quit", ink)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "unknown command /nonsense; /help lists the commands"),
        ("/set heat 1", "cannot set 'heat'; use temperature, top_k"),
        ("/set temperature hot", "temperature = 'hot': a number expected"),
        ("/set temperature -1", "sampling setting temperature is -1.0; give 0 or more"),
        ("/tools maybe", "'maybe': use on, off"),
        ("/think hard", "think 'hard': use on, off, auto, or a number of tokens"),
    ],
)
def test_a_wrong_command_says_what_is_right(state: Chat, line: str, message: str):
    with pytest.raises(UserError) as refused:
        command(state, line, Ink(io.StringIO()))
    assert str(refused.value).startswith(message)


def test_sampling_comes_from_the_command_line_then_the_model_then_the_defaults(model_folder: Path):
    nothing = argparse.Namespace(temperature=None, top_k=None, max_tokens=7, stop=["x"])
    sampling = chat_ui._sampling(nothing, model_folder)  # pyright: ignore[reportPrivateUsage]
    assert sampling == Sampling(temperature=0.0, max_tokens=7, stop=("x",))
    given = argparse.Namespace(temperature=0.5)
    assert chat_ui._sampling(given, model_folder).temperature == 0.5  # pyright: ignore[reportPrivateUsage]
    assert change_sampling(sampling, "max_tokens 9") == Sampling(temperature=0.0, max_tokens=9, stop=("x",))


def test_piped_lines_are_answered_one_by_one(cli: Cli, model_folder: Path):
    done = cli(
        "chat", str(model_folder), "--max-tokens", "30", stdin="/tools on\nSum?\n\n/nonsense\n/quit\nSum?\n"
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0] == "tools: calculator"
    assert lines[-1] == "unknown command /nonsense; /help lists the commands"
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_generate_gives_the_same_texts_for_the_same_seed(cli: Cli, model_folder: Path):
    arguments = [
        "generate",
        str(model_folder),
        "--prompt",
        "It is",
        "--n",
        "2",
        "--temperature",
        "1",
        "--max-tokens",
        "8",
    ]
    first, again, other = (cli(*arguments, "--seed", seed).stdout for seed in ("1", "1", "2"))
    assert first.count("It is") == 2
    assert first == again
    assert first != other


def test_generate_refuses_a_prompt_that_fills_the_context(cli: Cli, model_folder: Path):
    done = cli("generate", str(model_folder), "--prompt", "word " * 400)
    assert done.returncode == 2
    assert "this model's context is 256" in done.stderr


def test_generate_reads_a_longer_prompt_in_a_stretched_context(cli: Cli, model_folder: Path):
    arguments = ["generate", str(model_folder), "--prompt", "word " * 400, "--max-tokens", "4"]
    done = cli(*arguments, "--context-factor", "16")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("word " * 400)


def test_a_draft_of_the_same_vocabulary_changes_no_text(
    model_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    tokenizer = Tokenizer.load(model_folder)
    cfg = ModelConfig(n_layers=1, d_model=32, n_heads=2, n_kv_heads=1, head_dim=16, d_ff=32, vocab_size=320)
    save_model(tmp_path / "small", Transformer(cfg), tokenizer)
    arguments = ["generate", str(model_folder), "--prompt", "It is", "--max-tokens", "20"]
    assert main(arguments) == 0
    alone = capsys.readouterr().out
    assert main([*arguments, "--draft", str(tmp_path / "small")]) == 0
    assert capsys.readouterr().out == alone
    other = train_tokenizer(["other words, " * 20], 320)
    save_model(tmp_path / "other", Transformer(replace(cfg, vocab_size=other.vocab_size)), other)
    assert main([*arguments, "--draft", str(tmp_path / "other")]) == 2
    assert "a draft needs the same tokenizer" in capsys.readouterr().err


def test_in_a_terminal_it_prompts_answers_and_leaves_at_the_end_of_input(model_folder: Path):
    main_end, terminal = pty.openpty()
    chat = subprocess.Popen(
        [sys.executable, "-m", "onesitting", "chat", str(model_folder)],
        cwd=Path(__file__).resolve().parents[1],
        stdin=terminal,
        stdout=terminal,
        stderr=terminal,
        start_new_session=True,
        preexec_fn=become_a_terminals_program,
    )
    os.close(terminal)
    try:
        assert "/help lists commands" in type_until(main_end, b"", "you> ")
        assert "Sum?" in type_until(main_end, b"Sum?\n", "you> ")
        assert type_until(
            main_end, b"\x03", "/quit or Ctrl-D leaves"
        )  # at the prompt it explains how to leave
        deadline = time.monotonic() + 20
        while chat.poll() is None and time.monotonic() < deadline:
            os.write(main_end, b"\x04")
            time.sleep(0.5)
        assert chat.returncode == 0
    finally:
        chat.kill()  # without effect on a program that has left
        chat.wait()
        os.close(main_end)


def become_a_terminals_program() -> None:
    """Without a controlling terminal the byte of Ctrl-C is no signal; tests run in the background ignore the signal."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def type_until(descriptor: int, keys: bytes, text: str) -> str:
    """What a terminal shows until `text` appears; control keys are typed again every second.

    A key typed before the prompt reads it is lost to the terminal, as it is for a person.
    """
    os.write(descriptor, keys)
    shown, deadline = "", time.monotonic() + 40
    while text not in shown and time.monotonic() < deadline:
        if select.select([descriptor], [], [], 1.0)[0]:
            try:
                shown += os.read(descriptor, 4096).decode(errors="replace")
            except OSError:  # the program has ended
                break
        elif keys.startswith((b"\x03", b"\x04")):
            os.write(descriptor, keys)
    assert text in shown, shown
    return shown
