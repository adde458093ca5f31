"""Parts of a reply: by the control tokens that were written, however the text is cut into deltas."""

import json
import random

import pytest

from onesitting.inference.engine import Delta
from onesitting.inference.row import Row, RowSettings
from onesitting.inference.sampling import Sampling
from onesitting.inference.text_stream import spelled_bytes
from onesitting.server.reply import Reply, ReplyParser
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.tokenizer.chat import parse_assistant

CALL = '\n{"name": "add", "arguments": {"a": 2, "b": [1, "é"]}}\n'


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer(["The cat sat on the mat. " + CALL] * 20, vocab_size=384)


def ids_of(tokenizer: Tokenizer, parts: list[str]) -> list[int]:
    """Ids of texts and control tokens; only a part that is one as a whole is a control token."""
    return [
        i
        for part in parts
        for i in ([tokenizer.special_ids[part]] if part in tokenizer.special_ids else tokenizer.encode(part))
    ]


def parsed(
    tokenizer: Tokenizer, ids: list[int], stop: tuple[str, ...] = (), seed: int | None = None
) -> Reply:
    """The reply of ids written one by one and delivered in deltas of random sizes (seed None: of one token)."""
    rng = random.Random(seed)
    settings = RowSettings(sampling=Sampling(stop=stop, max_tokens=10_000), stop_ids=tokenizer.stop_ids)
    row = Row([9], settings, tokenizer, spelled_bytes(tokenizer), 100_000)
    parser, reply = ReplyParser(tokenizer), Reply()
    n_pieces = n_marks = 0
    for token in [*ids, tokenizer.im_end_id]:
        row.add(token)
        if row.finish_reason is None and seed is not None and rng.random() < 0.6:
            continue
        delta = Delta(
            0, "".join(row.pieces[n_pieces:]), row.marks[n_marks:], [], [], row.finish_reason, None, None
        )
        n_pieces, n_marks = len(row.pieces), len(row.marks)
        for part in parser.feed(delta):
            reply.add(part)
        if row.finish_reason is not None:
            break
    return reply


REPLIES = [
    ["Plain text. é漢😀 "],
    ["<think>", "Hm. ", "</think>", "\nYes. "],
    ["<think>", "</think>", "\nYes."],
    ["Let me see.\n", "<tool_call>", CALL, "</tool_call>"],
    [
        "<think>",
        "a\n\nb",
        "</think>",
        "\n",
        "<tool_call>",
        CALL,
        "</tool_call>",
        "\n",
        "<tool_call>",
        CALL,
        "</tool_call>",
    ],
    ["one ", "<tool_call>", CALL, "</tool_call>", " two"],
    [""],
]


@pytest.mark.parametrize("parts", REPLIES)
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_parts_are_those_of_the_chat_format(tokenizer: Tokenizer, parts: list[str], seed: int | None) -> None:
    ids = ids_of(tokenizer, parts)
    expected = parse_assistant(tokenizer.decode(ids, skip_special=False))
    reply = parsed(tokenizer, ids, seed=seed)
    assert reply.text == expected["content"]
    assert reply.thought == (expected["reasoning_content"] or "")
    assert [(call.name, json.loads(call.text)) for call in reply.calls] == [
        (call["function"]["name"], call["function"]["arguments"]) for call in expected["tool_calls"]
    ]


def test_tags_spelled_with_ordinary_tokens_are_text(tokenizer: Tokenizer) -> None:
    text = f"<tool_call>{CALL}</tool_call> and <think>x</think>"
    reply = parsed(tokenizer, tokenizer.encode(text))
    assert (reply.text, reply.thought, reply.calls) == (text, "", [])


@pytest.mark.parametrize("written", ["\nno JSON\n", '\n{"arguments": {}}\n', ""])
def test_call_that_cannot_be_read_is_text(tokenizer: Tokenizer, written: str) -> None:
    reply = parsed(tokenizer, ids_of(tokenizer, ["<tool_call>", written, "</tool_call>"]))
    assert reply.calls == []
    assert reply.text == f"<tool_call>{written}</tool_call>"


def test_call_that_is_cut_off_is_text(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, ["Hm.\n", "<tool_call>", CALL, "</tool_call>"])
    reply = parsed(tokenizer, ids, ('"a"',))
    assert (reply.text, reply.calls) == ('Hm.\n<tool_call>\n{"name": "add", "arguments": {', [])


def test_stop_string_inside_a_tag_leaves_no_half_of_it(tokenizer: Tokenizer) -> None:
    ids = ids_of(tokenizer, ["The cat.\n", "<tool_call>", CALL, "</tool_call>"])
    reply = parsed(tokenizer, ids, ("call",))
    assert (reply.text, reply.calls) == ("The cat.", [])


@pytest.mark.parametrize("stop", ["<t", "at", "\n<"])
def test_stop_strings_may_hold_back_tags(tokenizer: Tokenizer, stop: str) -> None:
    ids = ids_of(tokenizer, ["The c", "at sat.\n", "<tool_call>", CALL, "</tool_call>"])
    whole = tokenizer.decode(ids, skip_special=False)
    expected = parse_assistant(whole[: whole.index(stop)])
    assert parsed(tokenizer, ids, (stop,), seed=3).text == expected["content"]


@pytest.mark.parametrize("tag", ["</think>", "<think>", "</tool_call>", "<tool_call>", "<|im_end|>"])
def test_a_tag_that_an_argument_spells_ends_no_call(tokenizer: Tokenizer, tag: str) -> None:
    arguments = {"word": f"a {tag} b"}
    text = json.dumps({"name": "say", "arguments": arguments})
    ids = [
        tokenizer.special_ids["<tool_call>"],
        *tokenizer.encode(text),
        tokenizer.special_ids["</tool_call>"],
    ]
    reply = parsed(tokenizer, ids)
    assert [(call.name, json.loads(call.text)) for call in reply.calls] == [("say", arguments)]
    assert reply.text == ""


@pytest.mark.parametrize("mark", ["<tool_call>", "<think>"])
def test_a_call_that_another_mark_cuts_off_is_no_call(tokenizer: Tokenizer, mark: str) -> None:
    reply = parsed(
        tokenizer, ids_of(tokenizer, ["<tool_call>", '{"name": "say", "arguments": {}}', mark, "x"])
    )
    assert not reply.calls
    assert reply.text.startswith('<tool_call>{"name": "say"')
    assert "</tool_call>" not in reply.text


@pytest.mark.parametrize(
    "arguments", ['{"x": 1e999}', '{"x": NaN}', '{"x": "\\ud83d"}', '{"x": ' + "[" * 5000 + "]" * 5000 + "}"]
)
def test_arguments_that_no_other_program_reads_are_no_call(tokenizer: Tokenizer, arguments: str) -> None:
    text = f'{{"name": "say", "arguments": {arguments}}}'
    [call] = parse_assistant(f"<tool_call>{text}</tool_call>")["tool_calls"]
    assert call["type"] == "invalid"
    if len(text) < 1000:
        assert not parsed(tokenizer, ids_of(tokenizer, ["<tool_call>", text, "</tool_call>"])).calls
