"""The whole main job through the command line, on the tiny recipe: contracts 1, 4, 12 and 17."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onesitting.runlog import read_jsonl

TINY = (
    "tiny", "--corpus.world_mb", "0.4", "--tokenizer.train_mb", "0.2", "--device.dtype", "float32",
    "--evaluation.suite", "world", "--evaluation.suite_items", "2",
)  # fmt: skip


def command(*argv: str, cwd: Path, stdin: str = "", processes: int = 1) -> subprocess.CompletedProcess[str]:
    """Run onesitting as a user would, in `cwd`, with a data cache of its own."""
    launcher = [sys.executable, "-m"]
    if processes > 1:
        launcher += ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*launcher, "onesitting", *argv], cwd=cwd, input=stdin, capture_output=True, text=True,
        timeout=300, check=False, env=environment,
    )  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a finished tiny run in it."""
    cwd = tmp_path_factory.mktemp("place")
    done = command("run", *TINY, "--corpus.cache", str(cwd / "cache"), "--budget", "tokens=60k", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return cwd


def test_one_command_goes_from_text_to_report(place: Path) -> None:
    run = place / "runs" / "tiny"
    for name in ("config.toml", "report.md", "report.json", "timing.json", "tokenizer/tokenizer.json"):
        assert (run / name).is_file(), name
    for stage in ("pretrain", "sft"):
        for name in ("metrics.jsonl", "summary.json", "evaluation.json", "model/model.safetensors"):
            assert (run / stage / name).is_file(), f"{stage}/{name}"
    report = json.loads((run / "report.json").read_text())
    assert report["missing"] == []


def test_the_same_command_again_trains_nothing(place: Path) -> None:
    before = (place / "runs/tiny/sft/metrics.jsonl").read_bytes()
    again = command("run", *TINY, "--corpus.cache", str(place / "cache"), "--budget", "tokens=60k", cwd=place)
    assert again.returncode == 0, again.stderr
    assert "done before" in again.stdout
    assert (place / "runs/tiny/sft/metrics.jsonl").read_bytes() == before


def test_questions_that_are_asked_again_take_none_of_the_runs_time(place: Path) -> None:
    run = place / "runs" / "tiny"
    timing, asked = (run / "timing.json").read_bytes(), run / "sft/evaluation.json"
    results = json.loads(asked.read_text())
    asked.write_text(json.dumps({"facts": results["facts"] | {"left_out": 3}}))
    again = command("evaluate", "runs/tiny", cwd=place)
    assert again.returncode == 0, again.stdout + again.stderr
    assert json.loads(asked.read_text()) == results, "all of them, and the same replies"
    assert (run / "timing.json").read_bytes() == timing
    assert json.loads((run / "report.json").read_text())["missing"] == []


def test_a_stage_is_not_given_up_because_the_one_before_it_stalled(place: Path, tmp_path: Path) -> None:
    argv = ("run", *TINY, "--corpus.cache", str(place / "cache"), "--budget", "12s")
    assert command(*argv, cwd=tmp_path).returncode == 0
    run = tmp_path / "runs" / "tiny"
    shutil.rmtree(run / "sft")
    timing = json.loads((run / "timing.json").read_text())
    timing["phases"].append({"phase": "pretrain", "seconds": 60.0})
    (run / "timing.json").write_text(json.dumps(timing))
    late = command(*argv, cwd=tmp_path)
    assert late.returncode == 0, late.stdout + late.stderr
    assert "the run ends late" in late.stdout
    assert (run / "sft/model/model.safetensors").is_file()


def test_other_settings_for_the_same_folder_are_refused_with_the_difference(place: Path) -> None:
    refused = command("run", *TINY, "--budget", "tokens=60k", "--model.d_ff", "160", cwd=place)
    assert refused.returncode == 2
    assert "model.d_ff" in refused.stderr
    assert "--name" in refused.stderr


def test_the_finished_run_chats_and_generates(place: Path) -> None:
    chat = command(
        "chat", "runs/tiny", "--temperature", "0", "--max-tokens", "8", cwd=place, stdin="Hello!\n"
    )
    assert chat.returncode == 0, chat.stderr
    text = command(
        "generate",
        "runs/tiny",
        "--prompt",
        "One day",
        "--n",
        "2",
        "--seed",
        "1",
        "--max-tokens",
        "8",
        cwd=place,
    )
    assert text.returncode == 0, text.stderr
    assert text.stdout.count("One day") == 2


def test_transformers_gives_the_same_logits_and_greedy_text(place: Path) -> None:
    transformers = pytest.importorskip("transformers")
    import torch

    from onesitting.checkpoint import load_model
    from onesitting.inference.generate import generate
    from onesitting.inference.sampling import Sampling
    from onesitting.tokenizer.bpe import Tokenizer
    from onesitting.tokenizer.chat import render

    folder = place / "runs/tiny/sft/model"
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    their_tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ours, tokenizer = load_model(folder), Tokenizer.load(folder)
    messages = [{"role": "user", "content": "What colour is the kite?"}]
    ids, _ = render(tokenizer, messages, add_generation_prompt=True)
    rendered = their_tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    assert their_tokenizer(rendered, add_special_tokens=False)["input_ids"] == ids
    with torch.inference_mode():
        prompt = torch.tensor([ids])
        assert torch.allclose(ours(prompt), theirs(prompt).logits, atol=1e-4)
        written = theirs.generate(prompt, max_new_tokens=24, do_sample=False)[0, len(ids) :].tolist()
        done = generate(ours, tokenizer, [ids], Sampling(temperature=0.0, max_tokens=24), tokenizer.stop_ids)[
            0
        ]
    stops = [i for i, token in enumerate(written) if token in tokenizer.stop_ids]
    assert done.ids == (written[: stops[0]] if stops else written)


@pytest.mark.parametrize("shard", ["ddp", "fsdp"])
def test_two_processes_train_as_one(place: Path, shard: str) -> None:
    name = f"two-{shard}"
    done = command(
        "run", *TINY, "--corpus.cache", str(place / "cache"), "--budget", "tokens=60k", "--name", name,
        "--device.shard", shard, "--device.threads", "1", cwd=place, processes=2,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    for stage in ("pretrain", "sft"):
        one = [r for r in read_jsonl(place / "runs/tiny" / stage / "metrics.jsonl") if "loss" in r]
        two = [r for r in read_jsonl(place / "runs" / name / stage / "metrics.jsonl") if "loss" in r]
        assert [r["tokens"] for r in one] == [r["tokens"] for r in two], "together they read the same tokens"
        if stage == "pretrain":
            assert two[0]["loss"] == pytest.approx(one[0]["loss"], rel=1e-5)
            assert two[0]["grad_norm"] == pytest.approx(one[0]["grad_norm"], rel=1e-4)
        assert two[-1]["loss"] == pytest.approx(one[-1]["loss"], rel=2e-2)
    assert done.stdout.count("done before") == 0
    assert done.stdout.count("asking the question suite") == 2, "one process reports"


def test_a_new_model_with_an_output_matrix_of_its_own_begins_from_counted_pairs(
    place: Path, tmp_path: Path
) -> None:
    argv = (
        "pretrain", *TINY, "--corpus.cache", str(place / "cache"), "--model.tie_embeddings", "false",
        "--optim.embed_lr", "0.015", "--optim.head_lr", "0.003", "--pretrain.tokens", "4096",
    )  # fmt: skip
    losses, norms = {}, {}
    for name, more, processes in (
        ("none", ("--pretrain.bigram_steps", "0"), 1),
        ("one", (), 1),
        ("two", (), 2),
        ("half", ("--pretrain.counting", "0.5"), 1),
        ("nothing", ("--pretrain.counting", "0"), 1),
    ):
        done = command(*argv, *more, "--name", name, cwd=tmp_path, processes=processes)
        assert done.returncode == 0, done.stdout + done.stderr
        assert ("counted pairs" in done.stdout) == (name not in ("none", "nothing"))
        first = read_jsonl(tmp_path / "runs" / name / "pretrain/metrics.jsonl")[0]
        losses[name], norms[name] = first["loss"], first["grad_norm"]
    assert losses["none"] == pytest.approx(6.24, abs=0.05)  # ln 512
    assert losses["nothing"] == losses["none"]
    assert losses["one"] < 4.7
    assert losses["one"] + 0.01 < losses["half"] < 5.5, "half of the steps that fit it"
    assert losses["two"] == pytest.approx(losses["one"], rel=1e-5)
    assert norms["two"] == pytest.approx(norms["one"], rel=1e-4)  # its targets are soft
