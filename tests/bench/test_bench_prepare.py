"""`bench prepare`: real preparations of a text and of ten times the text."""

import json

import pytest

from onesitting.bench.prepare import bench_prepare, write_texts
from onesitting.config import CorpusConfig
from onesitting.errors import UserError


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "text.jsonl"
    lines = [json.dumps({"text": f"Line {i}: the cat sat on the mat, é {i * i}. " * 5}) for i in range(2500)]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_both_sizes_are_prepared_by_the_real_command_and_measured(text, tmp_path, capsys):
    save = tmp_path / "speed.json"
    found = bench_prepare([str(text)], sizes_mb=(0.3, 0.03), vocab_size=320, workers=1, save=save)
    assert json.loads(save.read_text()) == found
    small, large = found["sizes"]
    assert (small["mb"], large["mb"]) == (pytest.approx(0.03, abs=0.001), pytest.approx(0.3, abs=0.001))
    assert large["n_tokens"] > 9 * small["n_tokens"]
    for one in (small, large):
        assert one["mb_per_s"] == pytest.approx(one["mb"] / one["prepare_s"])
        assert one["command_s"] > one["prepare_s"]
        assert one["peak_memory_bytes"] > 1e7
    assert "10 times the text" in capsys.readouterr().out


def test_the_texts_hold_the_first_documents_up_to_their_size(text, tmp_path):
    small, large = write_texts((str(text),), CorpusConfig(), (0.01, 0.1), tmp_path)
    assert large.read_text().startswith(small.read_text())
    n_bytes = sum(len(json.loads(line)["text"].encode()) for line in small.read_text().splitlines())
    assert 10_000 <= n_bytes < 10_400


def test_less_text_than_the_largest_size_is_refused_with_what_there_is(text, tmp_path):
    with pytest.raises(UserError, match=r"holds 0\.\d MB of text and 50 are asked for"):
        write_texts((str(text),), CorpusConfig(), (1, 50), tmp_path)
