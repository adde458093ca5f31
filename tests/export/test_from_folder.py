"""Contract 12, the other way round: folders that transformers wrote become runs, with the same logits and text."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from small_models import Done
from tokenizers import decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from onesitting.checkpoint import find_model_folder, load_model
from onesitting.inference.generate import generate
from onesitting.inference.sampling import Sampling
from onesitting.tokenizer.bpe import QWEN2_PATTERN, Tokenizer
from onesitting.tokenizer.chat import render

Command = Callable[..., Done]

WORDS = [
    "the cat sat on the mat",
    "naïve café 日本語 😀",
    "user assistant system 123",
    "Be brief. Hello there.",
] * 20
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m['role'] }}<|end_header_id|>\n\n"
    "{{ m['content'] }}<|eot_id|>{% endfor %}"
)
SPECIALS = {
    "qwen3": ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
    "llama": [
        "<|begin_of_text|>",
        "<|end_of_text|>",
        "<|start_header_id|>",
        "<|end_header_id|>",
        "<|eot_id|>",
    ],
    "gpt2": ["<|endoftext|>"],
}
TEMPLATES = {"qwen3": CHATML, "llama": LLAMA3, "gpt2": None}


def foreign_tokenizer(kind: str) -> PreTrainedTokenizerFast:
    """A tokenizer as that family has it: special tokens at the end, Llama 3 with its beginning and ignored merges."""
    backend: Any = tokenizers.Tokenizer(models.BPE(ignore_merges=kind == "llama"))
    pattern = QWEN2_PATTERN.replace(r"|\p{N}|", r"|\p{N}{1,3}|") if kind == "llama" else QWEN2_PATTERN
    bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=kind == "gpt2")
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")
    backend.pre_tokenizer = bytes_only if kind == "gpt2" else pre_tokenizers.Sequence([split, bytes_only])
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        WORDS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet, show_progress=False)
    )
    backend.add_special_tokens(SPECIALS[kind])
    if kind == "llama":
        bos = SPECIALS[kind][0]
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A", special_tokens=[(bos, backend.token_to_id(bos))]
        )
    ends = {"qwen3": "<|im_end|>", "llama": "<|eot_id|>", "gpt2": "<|endoftext|>"}
    fast = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=ends[kind])
    fast.chat_template = TEMPLATES[kind]
    return fast


def foreign_folder(kind: str, folder: Path, shard: str = "60KB") -> torch.nn.Module:
    """A random model with its tokenizer, written by transformers in several files; the model comes back."""
    tokenizer = foreign_tokenizer(kind)
    rope: dict[str, Any] = {
        "vocab_size": len(tokenizer) + 3, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 200,
    }  # fmt: skip
    config = {
        "qwen3": lambda: Qwen3Config(**rope, head_dim=16, tie_word_embeddings=True),
        "llama": lambda: LlamaConfig(**rope, tie_word_embeddings=False),
        "gpt2": lambda: GPT2Config(
            vocab_size=len(tokenizer), n_embd=48, n_layer=2, n_head=4, n_positions=200
        ),
    }[kind]()
    torch.manual_seed(3)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.15)
    model.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    return model


@pytest.mark.parametrize("kind", SPECIALS)
def test_a_foreign_folder_becomes_a_run_with_the_same_logits_ids_and_greedy_text(
    kind: str, tmp_path: Path, command: Command
) -> None:
    reference = foreign_folder(kind, tmp_path / "theirs")
    assert (tmp_path / "theirs/model.safetensors.index.json").exists()
    done = command("import", "theirs", "--name", "mine")
    assert done.returncode == 0, done.stderr
    folder = find_model_folder(tmp_path / "runs/mine")
    ours, tokenizer = load_model(folder), Tokenizer.load(tmp_path / "runs/mine/tokenizer")
    for text in [*WORDS[:4], "  12345\n\n<|endoftext|> x", "\ufeff😀é"]:
        expected = foreign_tokenizer(kind)(text, add_special_tokens=False, split_special_tokens=True)[
            "input_ids"
        ]
        assert tokenizer.encode(text) == expected
        assert tokenizer.decode(expected) == text
    prompt = tokenizer.encode("the cat")
    theirs = reference.generate(torch.tensor([prompt]), max_new_tokens=40, do_sample=False, eos_token_id=None)
    written = generate(ours, tokenizer, [prompt], Sampling(temperature=0, max_tokens=40), set())[0]
    assert theirs[0, len(prompt) :].tolist() == written.ids
    with torch.no_grad():
        logits = reference(torch.tensor([written.ids])).logits
        torch.testing.assert_close(ours(torch.tensor([written.ids])), logits, atol=2e-5, rtol=1e-4)


def test_what_a_foreign_chat_format_means_is_said(tmp_path: Path, command: Command) -> None:
    for kind, line, stage in (
        ("qwen3", "chat: same format as the model's own template", "sft"),
        ("llama", "chat: not as it is, its own chat format is another", "pretrain"),
        ("gpt2", "chat: not as it is, it has no chat format", "pretrain"),
    ):
        foreign_folder(kind, tmp_path / kind)
        done = command("import", kind, "--name", f"my-{kind}")
        assert line in done.stdout, done.stdout + done.stderr
        assert (tmp_path / f"runs/my-{kind}/{stage}/model/config.json").exists()
    template = CHATML.replace("{% for", "{{ '<|im_start|>system\\nYou are X.<|im_end|>\\n' }}{% for", 1)
    settings = tmp_path / "qwen3/chat_template.jinja"
    assert settings.exists()  # where transformers 5 puts it
    settings.write_text(template)
    done = command("import", "qwen3", "--name", "differing")
    assert "own template writes one message, a system message, several turns otherwise" in done.stdout


def test_an_imported_chat_model_sees_the_ids_of_its_own_template(tmp_path: Path, command: Command) -> None:
    foreign_folder("qwen3", tmp_path / "theirs")
    command("import", "theirs", "--name", "mine")
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    ids, _ = render(Tokenizer.load(tmp_path / "runs/mine/tokenizer"), messages, add_generation_prompt=True)
    theirs = foreign_tokenizer("qwen3").apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False
    )
    assert ids == theirs


def test_an_imported_run_is_generated_from_fine_tuned_and_exported_by_command(
    tmp_path: Path, command: Command
) -> None:
    foreign_folder("qwen3", tmp_path / "theirs")
    chats = [{"messages": [{"role": "user", "content": f"hi {i}"}, {"role": "assistant", "content": f"yo {i}"}]}
             for i in range(80)]  # fmt: skip
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(c) + "\n" for c in chats))
    assert command("import", "theirs", "--name", "mine").returncode == 0
    written = command(
        "generate", "runs/mine", "--prompt", "the cat", "--max-tokens", "5", "--temperature", "0"
    )
    assert written.returncode == 0, written.stderr
    tuned = command(
        "sft", "demo", "--from", "runs/mine", "--name", "tuned", "--chat", "chats.jsonl", "--budget", "tokens=4096",
        "--sft.step_tokens", "1024", "--model.context_length", "128", "--corpus.cache", "cache",
        "--corpus.val_fraction", "0.1", "--evaluation.suite", "none",
    )  # fmt: skip
    assert tuned.returncode == 0, tuned.stderr
    before = load_model(find_model_folder(tmp_path / "runs/mine")).state_dict()
    after = load_model(find_model_folder(tmp_path / "runs/tuned")).state_dict()
    assert before.keys() == after.keys()
    assert any(not torch.equal(before[name], after[name]) for name in before)
    assert command("export", "runs/tuned", "--to", "gguf").returncode == 0
    assert (tmp_path / "runs/tuned/export/gguf/tuned-f16.gguf").stat().st_size > 10_000


def test_an_imported_base_model_without_chat_tokens_is_pretrained_further(
    tmp_path: Path, command: Command
) -> None:
    foreign_folder("gpt2", tmp_path / "theirs")
    assert command("import", "theirs", "--name", "mine").returncode == 0
    done = command(
        "run", "demo", "--stages", "pretrain", "--from", "runs/mine", "--name", "more", "--budget", "tokens=2048",
        "--pretrain.step_tokens", "1024", "--model.context_length", "128", "--corpus.cache", "cache",
        "--corpus.world_mb", "1", "--evaluation.suite_items", "2", "--pretrain.chat_fraction", "0",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs/more/pretrain/evaluation.json").is_file()
    eos = load_json(tmp_path / "runs/more/pretrain/model/generation_config.json")["eos_token_id"]
    assert eos == [Tokenizer.load(tmp_path / "runs/more/tokenizer").eos_id]


def load_json(path: Path) -> Any:
    return json.loads(path.read_text())


def test_importing_reads_no_weight_and_loading_maps_them(tmp_path: Path) -> None:
    """A model of 200 MB is imported and loaded within 20 MB of memory of its own."""
    program = """
import json, resource, sys
from argparse import Namespace
from pathlib import Path
from onesitting.checkpoint import find_model_folder, load_model
from onesitting.export import chat_check
from onesitting.export.from_folder import import_folder

def own_mb():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("RssAnon")).split()[1]) / 1024

before = own_mb()
import_folder(Namespace(folder="theirs", name="mine", out="runs", link=False))
model = load_model(find_model_folder(Path("runs/mine")))
print(own_mb() - before, sum(p.numel() for p in model.parameters()) * 4 / 2**20)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("memory is read from /proc, which this system lacks")
    tokenizer = foreign_tokenizer("llama")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=3,
        num_attention_heads=8,
    )
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(
        tmp_path / "theirs", max_shard_size="90MB"
    )
    tokenizer.save_pretrained(tmp_path / "theirs")
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    grown_mb, model_mb = map(float, done.stdout.splitlines()[-1].split())
    assert model_mb > 190
    assert grown_mb < 20


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f: shutil.rmtree(f), "theirs/config.json does not exist"),
        (lambda f: (f / "tokenizer.json").unlink(), "tokenizer.json"),
        (
            lambda f: next(f.glob("model-00002*")).unlink(),
            "only safetensors weights are read, convert others first",
        ),
        (lambda f: next(f.glob("model-00001*")).write_bytes(b"x" * 40), "is not a whole safetensors file"),
        (lambda f: edit(f / "config.json", hidden_size=40), "weights do not fit config.json"),
        (lambda f: edit(f / "config.json", model_type="mistral"), "model_type is 'mistral'"),
        (lambda f: edit(f / "tokenizer.json", model={"type": "Unigram"}), "not a byte-level BPE"),
    ],
)
def test_a_folder_that_cannot_be_a_run_is_refused_with_the_reason(
    spoil: Any, message: str, tmp_path: Path, command: Command
) -> None:
    foreign_folder("qwen3", tmp_path / "theirs")
    spoil(tmp_path / "theirs")
    done = command("import", "theirs", "--name", "mine")
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists() or not list((tmp_path / "runs").iterdir())


def edit(path: Path, **change: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | change))


def test_every_row_of_the_embedding_has_an_entry_in_the_runs_tokenizer(
    tmp_path: Path, command: Command
) -> None:
    model = foreign_folder("llama", tmp_path / "theirs")
    command("import", "theirs", "--name", "mine")
    tokenizer = Tokenizer.load(tmp_path / "runs/mine/tokenizer")
    assert (
        tokenizer.vocab_size == model.config.vocab_size == Tokenizer.load(tmp_path / "theirs").vocab_size + 3
    )
    assert tokenizer.n_unused == 3
    assert tokenizer.decode([tokenizer.vocab_size - 1]) == ""


def test_a_run_of_that_name_is_not_overwritten_and_links_save_the_space(
    tmp_path: Path, command: Command
) -> None:
    foreign_folder("gpt2", tmp_path / "theirs")
    assert command("import", "theirs", "--name", "mine", "--link").returncode == 0
    weights = next((tmp_path / "runs/mine/pretrain/model").glob("model-00001*"))
    assert weights.stat().st_nlink == 2
    again = command("import", "theirs", "--name", "mine")
    assert again.returncode == 2
    assert "runs/mine is there already" in again.stderr
