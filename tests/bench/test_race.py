"""`bench race`: real processes on real token files, timed from outside, ended as a whole."""

import json
import math
import os
import signal
import subprocess
import sys
import textwrap
import time
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from onesitting.bench.processes import MemoryWatch, descendants, run_watched
from onesitting.bench.race import Reports, _with_our_summary, prepare_course, run_race
from onesitting.bench.race_result import Point, Result, bits_per_byte, race_targets, ratios, standings
from onesitting.bench.race_spec import load_race
from onesitting.bench.race_text import draw_race
from onesitting.errors import UserError
from onesitting.tokenizer.bpe import Tokenizer

# Two real trainers of the simplest kind: counting tokens. One speaks on stdout, one in a file.
UNIGRAM = """
import json, sys, time
import numpy as np
train, val, n_val, info, vocab, steps = sys.argv[1:7]
dtype = json.load(open(info))["dtype"]
tokens, held_out = np.fromfile(train, dtype), np.fromfile(val, dtype)[: int(n_val)]
counts = np.ones(int(vocab))
print("reading done, nothing measured yet", flush=True)
time.sleep(0.2)
print("compiled in 0.2 s", flush=True)
for part in np.array_split(tokens, int(steps)):
    np.add.at(counts, part, 1)
    loss = -np.log(counts[held_out] / counts.sum()).mean()
    print(f"val {loss:.6f} tokens {int(counts.sum()) - int(vocab)} compile 0.2", flush=True)
    time.sleep(0.02)
"""
STUBBORN = """
import json, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
results, pids = sys.argv[1:3]
sleep = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
children = [subprocess.Popen([sys.executable, "-c", sleep], start_new_session=own) for own in (False, True)]
with open(pids, "w") as file:
    file.write(" ".join(str(child.pid) for child in children))
with open(results, "w") as file:
    file.write('no JSON\\n{"val_nats_per_token": "unknown"}\\n{"val_nats_per_token": NaN}\\n')  # no reports
    for step in range(1, 3):
        record = {"val_nats_per_token": 6.0 - step, "tokens": 100 * step, "n_parameters": 7}
        record["validation_s"] = 0.01 * step
        file.write(json.dumps(record) + "\\n")
        file.flush()
        time.sleep(0.1)
    file.write('{"val_nats_per_token": 1.0, "tok')  # a line that is never finished is no report
    file.flush()
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.setattr(
        "onesitting.bench.processes.TERM_S", 0.2
    )  # seconds that the stubborn one is waited for
    words = [
        "the",
        "cat",
        "sat",
        "on",
        "a",
        "mat",
        "and",
        "saw",
        "one",
        "small",
        "dog",
        "run",
        "over",
        "some",
        "green",
        "hill",
        "near",
        "her",
        "old",
        "house",
    ]
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(words, 40)) for _ in range(200)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    (tmp_path / "val.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts[:9]))
    (tmp_path / "unigram.py").write_text(textwrap.dedent(UNIGRAM))
    (tmp_path / "stubborn.py").write_text(textwrap.dedent(STUBBORN))
    return tmp_path


SPEC = """
seconds = {seconds}
seeds = [0, 1]
targets = {targets}

[corpus]
data = ["$RACE_TEXT/text.jsonl"]
val_data = ["$RACE_TEXT/val.jsonl"]
vocab_size = 320
tokenizer_mb = 0.1
val_tokens = 300

"""
UNIGRAM_RUNNER = """
[[runner]]
name = "unigram"
cwd = "$RACE_TEXT"
command = [
  "{python}", "{here}/unigram.py",
  "{train_tokens}", "{val_tokens}", "{n_val_tokens}", "{tokens_json}", "{vocab_size}", "4",
]
pattern = 'val (?P<val_nats_per_token>\\S+) tokens (?P<tokens>\\d+) compile (?P<compile_s>\\S+)'
"""
STUBBORN_RUNNER = """
[[runner]]
name = "stubborn"
command = ["{python}", "{here}/stubborn.py", "{results}", "{out}/pids"]
seconds = 1
grace_s = 0.5
"""


def write_spec(folder: Path, *runners: str, seconds: float = 20, targets: str = "[]") -> Path:
    path = folder / "race.toml"
    path.write_text(SPEC.format(seconds=seconds, targets=targets) + "".join(runners))
    return path


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_outside_trainers_race_on_the_same_tokens_and_the_outcome_is_written(folder, monkeypatch, capsys):
    monkeypatch.setenv("RACE_TEXT", str(folder))
    race = load_race(write_spec(folder, UNIGRAM_RUNNER, STUBBORN_RUNNER))
    out = folder / "out"
    results = run_race(race, out)
    assert [(r.runner, r.seed) for r in results] == [
        ("unigram", 0), ("stubborn", 0), ("unigram", 1), ("stubborn", 1),
    ]  # fmt: skip
    unigram = results[0]
    assert (unigram.exit_code, unigram.timed_out, len(unigram.points)) == (0, False, 4)

    # The last value, computed here from the token files that the runner was given.
    course = prepare_course(race, out)
    train = np.fromfile(course.tokens / "train.bin", f"<u{course.token_bytes}")
    val = np.fromfile(course.tokens / "val.bin", f"<u{course.token_bytes}")[:300]
    counts = np.bincount(train, minlength=course.vocab_size) + 1
    nats = -np.log(counts[val] / counts.sum()).sum()
    text = Tokenizer.load(course.tokenizer).decode_bytes(val.tolist())
    n_bytes = len(text) - sum(text.count(special) * len(special) for special in (b"<|endoftext|>",))
    assert course.n_val_bytes == n_bytes
    assert unigram.points[-1].bits_per_byte == pytest.approx(nats / n_bytes / math.log(2), rel=1e-5)
    assert unigram.points[-1].tokens == len(train) == course.n_train_tokens
    assert unigram.points[-1].compile_s == 0.2
    assert 0.2 < unigram.points[0].wall_s < unigram.points[-1].wall_s <= unigram.wall_s
    assert unigram.peak_memory_bytes > 1e6  # sampled now and then, and this process is short

    shown = capsys.readouterr().out
    record = json.loads((out / "results.json").read_text())
    assert len(record["results"]) == 4
    assert set(record["targets"]) == {"final of unigram", "final of stubborn"}
    for text in (shown, (out / "table.md").read_text()):
        assert "unigram" in text
        assert "stubborn" in text
    ET.fromstring((out / "curves.svg").read_text())


def test_a_runner_and_all_it_started_is_killed_at_its_time_limit(folder, monkeypatch):
    monkeypatch.setenv("RACE_TEXT", str(folder))
    out = folder / "out"
    result = run_race(load_race(write_spec(folder, STUBBORN_RUNNER)), out)[0]
    assert result.timed_out
    assert 1.5 <= result.wall_s < 30
    children = [int(pid) for pid in (out / "runs/stubborn-s0/pids").read_text().split()]
    assert len(children) == 2  # one in the runner's group, one that left it
    assert not any(is_alive(pid) for pid in children)
    assert [point.tokens for point in result.points] == [100, 200]  # the torn line is no point
    assert (result.n_parameters, result.points[-1].validation_s) == (7, 0.02)


def test_the_same_command_runs_only_what_is_not_done(folder, monkeypatch):
    monkeypatch.setenv("RACE_TEXT", str(folder))
    race, out = load_race(write_spec(folder, UNIGRAM_RUNNER)), folder / "out"
    first = run_race(race, out)
    began = (out / "runs/unigram-s0/output.log").stat().st_mtime_ns
    assert run_race(race, out) == first
    assert (out / "runs/unigram-s0/output.log").stat().st_mtime_ns == began


def test_results_of_other_settings_do_not_count_and_what_failed_is_tried_again(folder, monkeypatch, capsys):
    monkeypatch.setenv("RACE_TEXT", str(folder))
    path, out = write_spec(folder, UNIGRAM_RUNNER), folder / "out"
    run_race(load_race(path), out)
    path.write_text(path.read_text().replace('"{vocab_size}", "4"', '"{vocab_size}", "3"'))
    results = run_race(load_race(path), out)
    assert [len(result.points) for result in results] == [3, 3]
    assert "2 results of other settings are not used" in capsys.readouterr().out
    assert len(json.loads((out / "results.json").read_text())["results"]) == 2
    one = replace(load_race(path), seeds=(1,))
    assert [result.seed for result in run_race(one, out)] == [1]

    broken = folder / "unigram.py"
    program = broken.read_text()
    broken.write_text("raise SystemExit(1)")
    path.write_text(path.read_text().replace("seconds = 20", "seconds = 21"))
    assert [result.exit_code for result in run_race(load_race(path), out)] == [1, 1]
    broken.write_text(program)
    assert [len(result.points) for result in run_race(load_race(path), out)] == [3, 3]

    path.write_text(path.read_text().replace("vocab_size = 320", "vocab_size = 384"))
    with pytest.raises(UserError, match="another corpus or vocabulary"):
        run_race(load_race(path), out)


def test_a_runner_that_fails_is_counted_and_its_output_kept(folder, monkeypatch, capsys):
    monkeypatch.setenv("RACE_TEXT", str(folder))
    broken = '[[runner]]\nname = "broken"\ncommand = ["{python}", "-c", "print(1); raise SystemExit(3)"]\n'
    results = run_race(load_race(write_spec(folder, broken)), folder / "out")
    assert [r.exit_code for r in results] == [3, 3]
    shown = capsys.readouterr().out
    assert "reported nothing (exit code 3)" in shown
    assert "2 failed" in shown
    assert (folder / "out/runs/broken-s0/output.log").read_text() == "1\n"


def test_ours_runs_through_the_command_line_and_reports_the_same_bits_per_byte(folder, cli):
    ours = """
[[runner]]
name = "ours"
recipe = "tiny"
settings = { budget = "tokens=4096", device.device = "cpu", evaluation.every_fraction = 1.0 }
"""
    write_spec(folder, ours, UNIGRAM_RUNNER, targets="[9.0]")
    environment = {"RACE_TEXT": "."}  # from here, wherever a runner starts
    done = cli("bench", "race", "race.toml", "--seeds", "0", env=environment, timeout_s=300)
    assert done.returncode == 0, done.stderr
    record = json.loads((folder / "races/race/results.json").read_text())
    result = next(r for r in record["results"] if r["runner"] == "ours")
    summary = json.loads((folder / "races/race/runs/ours-s0/run/pretrain/summary.json").read_text())
    assert summary["seconds_compile"] == 0.0 < summary["seconds_setup"]
    assert {point["compile_s"] for point in result["points"]} == {0.0}
    assert result["points"][-1]["bits_per_byte"] == pytest.approx(summary["bits_per_byte"], rel=1e-6)
    assert result["points"][-1]["tokens"] == summary["tokens"]
    assert result["n_parameters"] == summary["n_parameters"]
    assert result["points"][-1]["validation_s"] > 0
    prepared = [path for path in (folder / "races/race/corpus/cache").iterdir() if path.is_dir()]
    assert len(prepared) == 1  # ours found the race's own token files
    assert [ratio["runner"] for ratio in record["ratios"]] == ["unigram"]
    assert "sooner by" in done.stdout


# ---- arithmetic --------------------------------------------------------------------------------------------


def test_of_our_runs_the_time_that_the_compiler_counts_is_taken_out_and_no_more(tmp_path):
    course = SimpleNamespace(n_val_tokens=300, n_val_bytes=900)
    reports = Reports(course, None, [])
    first = {"evaluation": {"val_nats_per_token": 2.0}, "tokens": 100, "evaluation_s": 1.0}
    reports.add(first | {"compile_s": 12.5}, 40.0)
    reports.add(first | {"compile_s": 14.0, "tokens": 200}, 60.0)
    assert [(p.seconds, p.compile_s) for p in reports.points] == [(27.5, 12.5), (46.0, 14.0)]
    plain = Reports(course, None, [])
    plain.add(first, 40.0)  # a processor: nothing is compiled, and the first step counts
    assert plain.points[0].seconds == 40.0
    summary = tmp_path / "summary.json"
    values = {"compiled": True, "seconds_setup": 30.0, "n_parameters": 5, "peak_memory_bytes": 7}
    summary.write_text(json.dumps(values | {"device_kind": "cuda"}))
    result = replace(run_of("ours", 0, (10, 2.0), ours=True), points=tuple(reports.points))
    done = _with_our_summary(result, summary)
    assert (done.points, done.n_parameters, done.device_memory_bytes) == (tuple(reports.points), 5, 7)


def run_of(runner: str, seed: int, *points: tuple[float, float], ours: bool = False, compile_s: float = 0.0):
    made = [
        Point(wall_s=s + compile_s, compile_s=compile_s, validation_s=0, tokens=int(100 * s), bits_per_byte=b)
        for s, b in points
    ]
    return Result(
        runner=runner, is_ours=ours, seed=seed, wall_s=99, exit_code=0, timed_out=False, peak_memory_bytes=1,
        points=tuple(made),
    )  # fmt: skip


RUNS = [
    run_of("ours", 0, (10, 2.0), (20, 1.0), ours=True, compile_s=100),
    run_of("ours", 1, (10, 2.1), (30, 1.0), ours=True),
    run_of("late", 0, (100, 3.0), (200, 2.0)),
    run_of("late", 1, (100, 3.0), (300, 1.0)),
]


def test_ratios_are_times_to_the_target_over_ours_with_the_spread_over_seeds():
    targets = race_targets([], RUNS)
    assert targets == {"final of late": 1.5}
    lines = standings(RUNS, targets)
    assert lines[0].seconds_to["final of late"].mean == 25  # 20 and 30: the compilation does not count
    (ratio,) = ratios(lines, targets)
    # late had its mean final value at the end of its runs, at 200 and 300 s.
    assert (ratio.times.mean, ratio.times.low, ratio.times.high) == (10, 200 / 30, 300 / 20)


def test_a_target_missed_with_one_seed_gives_no_ratio():
    targets = race_targets([1.2], RUNS)
    assert standings(RUNS, targets)[1].seconds_to["1.2"].n == 1
    assert ratios(standings(RUNS, targets), targets) == []


def test_of_several_entries_of_ours_the_soonest_that_always_gets_there_counts():
    quick = [run_of("quick", 0, (5, 1.4), ours=True), run_of("quick", 1, (5, 1.6), ours=True)]
    steady = [run_of("steady", seed, (12, 1.4), ours=True) for seed in (0, 1)]
    targets = race_targets(["late"], RUNS)
    (ratio,) = ratios(standings([*RUNS, *quick, *steady], targets), targets)
    assert (ratio.ours, ratio.times.mean) == ("steady", 250 / 12)


def test_tokens_a_second_leave_validations_and_the_first_stretch_out():
    points = [
        Point(wall_s=10, compile_s=4, validation_s=1, tokens=50, bits_per_byte=2),
        Point(wall_s=24, compile_s=4, validation_s=3, tokens=650, bits_per_byte=1),
    ]
    result = run_of("r", 0)
    assert result.tokens_per_s is None
    assert replace(result, points=tuple(points)).tokens_per_s == 600 / (24 - 10 - 2)


def test_bits_per_byte_is_nats_over_bytes_and_log_two():
    assert bits_per_byte(math.log(2) * 4, 10, 20) == pytest.approx(2.0)


def test_the_picture_has_one_line_a_run_in_one_colour_a_runner():
    tree = ET.fromstring(draw_race(RUNS, {"1.5": 1.5}, "a <race>"))
    lines = tree.findall(".//{*}polyline")
    assert len(lines) == 4
    assert len({line.get("stroke") for line in lines}) == 2
    ET.fromstring(draw_race([], {}, "empty"))


# ---- the specification -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("{train_tokens}", "{tokens}"), "unknown '{tokens}' in '{tokens}'"),
        (("(?P<tokens>", "(?P<steps>"), "pattern has the group 'steps'"),
        (("(?P<tokens>", "(?P<tokens"), "pattern is no regular expression"),
        (("$RACE_TEXT/text.jsonl", "$NOT_SET_ANYWHERE/text.jsonl"), "NOT_SET_ANYWHERE is not set"),
        (("seconds = 20", "seconds = -1"), "seconds = -1: a number above 0"),
        (("seeds", "seed"), "unknown entry 'seed'"),
        (("vocab_size = 320", 'vocab_size = "many"'), "vocab_size = 'many': a number"),
        (('name = "unigram"', 'title = "unigram"'), "'name' is missing"),
        (('cwd = "$RACE_TEXT"', 'recipe = "tiny"'), "either a recipe"),
        (("$RACE_TEXT/text.jsonl", "world"), "the world's text changes with the seed"),
        (("targets = []", 'targets = ["nobody"]'), "target 'nobody' is no runner"),
        (("command = [", "command = "), "not valid TOML"),
        (("seeds = [0, 1]", "seeds = 3"), "seeds = 3: a list of whole numbers"),
        (("targets = []", "targets = 2.4"), "targets = 2.4: a list"),
        (("[[runner]]", "[runner]"), "with two brackets"),
        (('"{vocab_size}", "4"', '"{vocab_size}", 4'), "a list of texts in brackets"),
        (('cwd = "$RACE_TEXT"', 'cwd = "{folder}"'), "unknown '{folder}'"),
        (('cwd = "$RACE_TEXT"', 'environment = ["A"]'), "a table is expected"),
    ],
)
def test_mistakes_in_a_race_are_named(folder, monkeypatch, change, message):
    monkeypatch.setenv("RACE_TEXT", str(folder))
    path = write_spec(folder, UNIGRAM_RUNNER)
    text = path.read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    with pytest.raises(UserError) as caught:
        load_race(path)
    assert message in str(caught.value)


def test_only_the_chosen_runners_need_their_environment_variables(folder, monkeypatch):
    monkeypatch.setenv("RACE_TEXT", str(folder))
    path = write_spec(folder, UNIGRAM_RUNNER, '[[runner]]\nname = "x"\ncommand = ["$NOT_SET_ANYWHERE"]\n')
    assert [runner.name for runner in load_race(path, ("unigram",)).runners] == ["unigram"]
    with pytest.raises(UserError, match="choose runners with --only"):
        load_race(path)
    with pytest.raises(UserError, match="no runner is named 'y'"):
        load_race(path, ("y",))


# ---- processes ---------------------------------------------------------------------------------------------


def test_memory_of_children_counts(tmp_path):
    child = "x = bytearray(60_000_000); x[::1000] = b'1' * len(x[::1000]); import time; time.sleep(1)"
    program = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    done = run_watched([sys.executable, "-c", program], cwd=tmp_path, limit_s=60, log=tmp_path / "log")
    assert (done.exit_code, done.timed_out) == (0, False)
    assert 60e6 < done.peak_memory_bytes < 200e6


def test_descendants_are_found_and_the_peak_stays_when_memory_is_given_back():
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    try:
        assert child.pid in descendants(os.getpid())
        with MemoryWatch(child.pid, every_s=0.01) as watch:
            deadline = time.time() + 20
            while watch.peak_bytes < 1e6 and time.time() < deadline:
                time.sleep(0.02)
    finally:
        child.kill()
        child.wait()
    assert watch.peak_bytes > 1e6
    assert child.pid not in descendants(os.getpid())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_race_that_is_ended_ends_what_it_runs(tmp_path, number):
    watched = "import time; print('on', flush=True); time.sleep(600)"
    program = (
        "import signal, sys; from pathlib import Path; from onesitting.bench.processes import run_watched\n"
        # A shell starts what runs in the background with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        f"run_watched([sys.executable, '-c', {watched!r}], cwd=Path('.'), limit_s=600, log=Path('log'))"
    )
    race = subprocess.Popen([sys.executable, "-c", program], cwd=tmp_path, stderr=subprocess.DEVNULL)
    try:
        deadline = time.time() + 60
        while time.time() < deadline and not ((log := tmp_path / "log").exists() and log.read_text()):
            time.sleep(0.05)
        below = [pid for pid in descendants(race.pid) if pid != race.pid]
        assert len(below) == 1
        race.send_signal(number)
        code = race.wait(30)
    finally:
        race.kill()
    assert code == {signal.SIGTERM: 128 + signal.SIGTERM, signal.SIGINT: -signal.SIGINT}[number]
    assert not any(is_alive(pid) for pid in below)


@pytest.mark.parametrize("name", ["cpu", "gpu"])
def test_the_races_of_the_repository_can_be_read(name, monkeypatch):
    for variable in ("PROSE", "NANOGPT", "MINIMIND", "NANOCHAT"):
        monkeypatch.setenv(variable, "/somewhere")
    race = load_race(Path(__file__).resolve().parents[2] / "benchmarks" / "race" / f"{name}.toml")
    assert any(runner.is_ours for runner in race.runners)
    for runner in race.runners:
        ours = race.here / runner.recipe
        assert not runner.recipe or runner.recipe == "26m" or ours.is_file()
