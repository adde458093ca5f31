"""Contracts 10, 12, 13 and 21 for GGUF: llama.cpp and transformers read what we wrote, and all three agree."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from llama_cpp import LlamaCpp, llama_cpp
from small_models import QWEN3, SHAPES, Done, random_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from onesitting.checkpoint import load_model, save_model
from onesitting.errors import UserError
from onesitting.export.gguf import FILE_TYPES, llama_cpp_template, write_gguf
from onesitting.export.gguf_vocab import CONTROL, NORMAL, UNUSED, pre_tokenizer_name, tokens_and_types
from onesitting.export.hub import write_hf
from onesitting.export.source import Source, open_source
from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.model.transformer import Transformer
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer
from onesitting.tokenizer.chat import render
from onesitting.tokenizer.spec import GPT2_PATTERN

gguf = pytest.importorskip("gguf")
MakeSource = Callable[[str], Source]

ODD_TEXTS = [
    "",
    " ",
    "The cat  sat\n\n on\tthe\r\n mat .",
    "12345678 3.14 ٣٤ ½ ²",
    "don't DON'T we'LL I'M",
    "naïve café e\u0301 ﬁ ß ſ",
    "日本語 漢字 한국어 हिन्दी עברית",
    "😀👩\u200d👩\u200d👧\u200d👦🇩🇪 ✈️",
    "\u00a0\u2003\u3000x\u200b\ufeff",
    "\x00\x01\x7f\ufffd",
    "<|im_start|>system\nobey<|im_end|>\n<|endoftext|>",
    "<think></think><tool_call>{}</tool_call> <|unused_0|> <|im_end",
    "a" * 300 + " " * 50 + "!" * 20,
    "{'json': [1, 2.5e-3]} -- /path\\to ~ ©™",
]
CALL = {"type": "function", "function": {"name": "add", "arguments": {"a": 1.5, "text": 'é "q" \\ /'}}}
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "description": "Adds — é.",
        "parameters": {"type": "object", "properties": {"a": {"type": "number"}}},
    },
}
CONVERSATIONS: list[tuple[list[dict[str, Any]], list[dict[str, Any]] | None]] = [
    ([{"role": "user", "content": "  hello\n"}], None),
    (
        [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "日本 \"q\" 'x' <b> & 😀"}],
        None,
    ),
    ([{"role": "user", "content": "add"}], [TOOL, TOOL]),
    (
        [
            {"role": "system", "content": "S"},
            {"role": "user", "content": "add"},
            {"role": "assistant", "content": "Let me.", "tool_calls": [CALL, CALL]},
            {"role": "tool", "content": "2.5", "tool_call_id": "1"},
            {"role": "tool", "content": "2.5", "tool_call_id": "2"},
            {"role": "assistant", "content": "2.5"},
            {"role": "user", "content": "thanks"},
        ],
        [TOOL],
    ),
]


@pytest.fixture(scope="module")
def qwen3(make_source: MakeSource, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LlamaCpp]:
    path = write_gguf(make_source("qwen3"), tmp_path_factory.mktemp("gguf") / "m.gguf", "f32")
    with llama_cpp(path) as loaded:
        yield loaded


@pytest.mark.parametrize("shape", SHAPES)
def test_llama_cpp_transformers_and_we_write_the_same_100_greedy_tokens(
    shape: str, make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source(shape)
    prompt = source.tokenizer.encode("The cat sat on the")
    model = load_model(source.folder)
    ours = generate(model, source.tokenizer, [prompt], Sampling(temperature=0, max_tokens=100), set())[0].ids
    reference = AutoModelForCausalLM.from_pretrained(source.folder, dtype=torch.float32)
    theirs = reference.generate(
        torch.tensor([prompt]),
        max_length=len(prompt) + 100,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    assert theirs[0, len(prompt) :].tolist() == ours
    assert len(set(ours)) > 20  # a text, not one token again and again
    with llama_cpp(write_gguf(source, tmp_path / "m.gguf", "f32")) as loaded:
        assert loaded.greedy(prompt, 100) == ours


@pytest.mark.parametrize("text", ODD_TEXTS)
def test_llama_cpp_gives_the_same_token_ids(text: str, qwen3: LlamaCpp, tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(text)
    assert qwen3.tokenize(text) == ids
    assert qwen3.detokenize(ids) == text


@pytest.mark.parametrize("conversation", range(len(CONVERSATIONS)))
def test_llama_cpp_renders_the_same_conversation(
    conversation: int, qwen3: LlamaCpp, make_source: MakeSource
) -> None:
    messages, tools = CONVERSATIONS[conversation]
    tokenizer = make_source("qwen3").tokenizer
    ids, _ = render(tokenizer, messages, tools, add_generation_prompt=True)
    text = tokenizer.decode(ids, skip_special=False)
    as_openai = json.loads(json.dumps(messages))
    assert qwen3.render(as_openai, **({"tools": tools} if tools else {})) == text
    assert qwen3.tokenize(text, parse_special=True) == ids
    hf = AutoTokenizer.from_pretrained(make_source("qwen3").folder)
    chat = hf.apply_chat_template(messages, tools=tools, add_generation_prompt=True, return_dict=False)
    assert chat == ids


def test_an_empty_thought_is_rendered_when_thinking_is_switched_off(
    qwen3: LlamaCpp, tokenizer: Tokenizer
) -> None:
    messages = [{"role": "user", "content": "hi"}]
    ids, _ = render(tokenizer, messages, add_generation_prompt=True, thinking=False)
    shown = qwen3.render(messages, chat_template_kwargs={"enable_thinking": False})
    assert shown == tokenizer.decode(ids, skip_special=False)


@pytest.mark.parametrize("dtype", FILE_TYPES)
def test_every_dtype_is_near_the_weights_and_loads(
    dtype: str, make_source: MakeSource, tmp_path: Path
) -> None:
    source = make_source("llama_bias")  # 96 and 64 wide: quantizable
    path = write_gguf(source, tmp_path / "m.gguf", dtype)
    reader = gguf.GGUFReader(path)
    whole = {t.name: t for t in gguf.GGUFReader(write_gguf(source, tmp_path / "f32.gguf", "f32")).tensors}
    limit = {"f32": 0.0, "f16": 1e-3, "bf16": 4e-3, "q8_0": 0.01, "q4_0": 0.13}[dtype]
    for tensor in reader.tensors:
        wanted = gguf.dequantize(whole[tensor.name].data, whole[tensor.name].tensor_type)
        found = gguf.dequantize(tensor.data, tensor.tensor_type).reshape(wanted.shape)
        assert np.abs(found - wanted).max() <= limit * np.abs(wanted).max(), tensor.name
    stored = {tensor.tensor_type.name for tensor in reader.tensors if len(tensor.shape) == 2}
    assert stored == ({"Q4_0", "Q8_0"} if dtype == "q4_0" else {dtype.upper()})
    prompt = source.tokenizer.encode("The cat")
    with llama_cpp(path) as loaded:
        assert len(loaded.greedy(prompt, 5)) == 5


def test_rows_that_cannot_be_quantized_are_kept_in_f16(tokenizer: Tokenizer, tmp_path: Path) -> None:
    cfg = replace(SHAPES["qwen3"], d_model=40, vocab_size=tokenizer.vocab_size)
    save_model(tmp_path / "m", random_model(cfg), tokenizer)
    path = write_gguf(open_source(str(tmp_path / "m")), tmp_path / "m.gguf", "q8_0")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(path).tensors}
    assert kinds["blk.0.ffn_up.weight"] == "F16"
    assert kinds["blk.0.ffn_down.weight"] == "Q8_0"  # 96 wide


def test_tied_weights_are_stored_once_and_untied_ones_twice(make_source: MakeSource, tmp_path: Path) -> None:
    for shape, names in (("qwen3_tied", 0), ("qwen3", 1)):
        path = write_gguf(make_source(shape), tmp_path / f"{shape}.gguf", "f32")
        assert sum(t.name == "output.weight" for t in gguf.GGUFReader(path).tensors) == names


def test_tokens_keep_their_kind_and_rows_without_a_token_are_unused(tokenizer: Tokenizer) -> None:
    tokens, types = tokens_and_types(tokenizer, tokenizer.vocab_size + 7)
    assert len(tokens) == len(types) == len(set(tokens)) == tokenizer.vocab_size + 7
    assert types[tokenizer.special_ids["<think>"]] == CONTROL  # a user's "<think>" stays text
    assert types[tokenizer.encode("a")[0]] == NORMAL
    assert types[-7:] == [UNUSED] * 7


def test_splitting_rule_has_llama_cpps_name_or_is_refused() -> None:
    gpt2 = train_tokenizer(["a b c"], 300, pattern=GPT2_PATTERN)
    assert pre_tokenizer_name(gpt2) == "gpt-2"
    with pytest.raises(UserError, match=r"the way this tokenizer cuts text into words.*qwen2"):
        pre_tokenizer_name(train_tokenizer(["a b c"], 300, pattern=r"\p{L}+|\s+|."))


def test_a_shape_without_a_format_is_refused_with_the_switches_to_change(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    cfg = replace(SHAPES["qwen3"], norm="layer", vocab_size=tokenizer.vocab_size)
    save_model(tmp_path / "m", random_model(cfg), tokenizer)
    with pytest.raises(UserError, match=r'nearest is qwen3: set model\.norm="rms"'):
        write_gguf(open_source(str(tmp_path / "m")), tmp_path / "m.gguf")
    assert not (tmp_path / "m.gguf").exists()


def test_an_unknown_dtype_is_refused(make_source: MakeSource, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--dtype 'q5_k' is unknown; use one of f32, f16, bf16, q8_0, q4_0"):
        write_gguf(make_source("qwen3"), tmp_path / "m.gguf", "q5_k")


def test_a_stretched_context_has_llama_cpps_keys_and_others_have_none(
    make_source: MakeSource, tmp_path: Path
) -> None:
    keys = {
        "context_length": 160,
        "scaling.type": "yarn",
        "scaling.factor": 4.0,
        "scaling.original_context_length": 40,
    }
    for shape, wanted in (("qwen3_yarn", keys), ("qwen3", {"context_length": 160})):
        fields = gguf.GGUFReader(write_gguf(make_source(shape), tmp_path / f"{shape}.gguf")).fields
        found = {
            name.split(".", 2 if "rope" in name else 1)[-1]: field.contents()
            for name, field in fields.items()
            if "rope.scaling" in name or name.endswith(".context_length")
        }
        assert found == wanted


def test_a_file_that_is_there_a_reward_model_and_options_of_other_targets_are_refused(
    make_source: MakeSource, tokenizer: Tokenizer, tmp_path: Path, command: Callable[..., Done]
) -> None:
    source, path = make_source("qwen3"), tmp_path / "x.gguf"
    path.write_text("mine")
    with pytest.raises(UserError, match="is there already"):
        write_gguf(source, path)
    assert path.read_text() == "mine"
    judge = Transformer(replace(QWEN3, vocab_size=tokenizer.vocab_size, n_scores=1), seed=0)
    save_model(tmp_path / "judge", judge, tokenizer)
    for target in ("gguf", "onnx", "ollama", "docker"):
        done = command("export", "judge", "--to", target)
        assert done.returncode == 2
        assert "a reward model writes no text" in done.stderr
    done = command("export", str(source.folder), "--to", "gguf", "--push", "me/x")
    assert done.returncode == 2
    assert "--push is for hf, not for gguf" in done.stderr
    done = command("export", str(source.folder), "--to", "hf", "--push", "me")
    assert done.returncode == 2
    assert not (tmp_path / "export/hf").exists()  # refused before anything is written
    (tmp_path / "here").mkdir()
    assert command("export", str(source.folder), "--to", "hf", "--out", "here").returncode == 0
    assert (tmp_path / "here/config.json").is_file()


def test_a_template_in_a_file_of_its_own_comes_along(make_source: MakeSource, tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    shutil.copytree(make_source("qwen3").folder, folder)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    template = settings.pop("chat_template")
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "chat_template.jinja").write_text(template)
    source = open_source(str(folder))
    write_gguf(source, tmp_path / "x.gguf")
    reader = gguf.GGUFReader(tmp_path / "x.gguf")
    assert reader.fields["tokenizer.chat_template"].contents() == llama_cpp_template(template)
    assert (write_hf(source, tmp_path / "hf") / "chat_template.jinja").read_text() == template
