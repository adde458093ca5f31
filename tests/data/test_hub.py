"""Hub datasets, read over HTTP from a hub on this machine by the real `datasets` library.

The library reads HF_ENDPOINT when it is imported, so each test runs it in a process of its own.
"""

import io
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from local_hub import REVISION, LocalHub, local_hub
from makers import story

from onesitting.tokenizer.bpe import Tokenizer

ROOT = Path(__file__).parents[2]
TEXTS = [story(i) for i in range(40)]
CHATS = [
    {"conversations": [{"from": "human", "value": f"q{i}"}, {"from": "gpt", "value": f"a{i}"}]}
    for i in range(12)
]
DOCUMENTS = """
from onesitting.data.sources import Problems, read_documents
print(json.dumps([d.text for d in read_documents(specs, corpus, Problems())]))
"""
CONVERSATIONS = """
from onesitting.data.sources import Problems, read_conversations
print(json.dumps([c.messages for c in read_conversations(specs, corpus, Problems())]))
"""
PREPARE = """
from onesitting.data.prepare import prepare_documents
from onesitting.tokenizer.bpe import Tokenizer
folder = prepare_documents(specs, Tokenizer.load("tokenizer"), corpus, Path("out"), 0)
print(json.dumps([str(folder.path), folder.train.n_documents + folder.val.n_documents, folder.info["sources"]]))
"""


def as_parquet(texts: list[str]) -> bytes:
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(
        pyarrow.table({"id": list(range(len(texts))), "text": texts}), buffer, row_group_size=5
    )
    return buffer.getvalue()


def as_jsonl(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(r) + "\n" for r in records).encode()


@pytest.fixture(scope="module")
def hub() -> Iterator[LocalHub]:
    repositories = {
        "lab/stories": {
            "README.md": b"# Stories\n",
            "data/train-00000-of-00002.parquet": as_parquet(TEXTS[:20]),
            "data/train-00001-of-00002.parquet": as_parquet(TEXTS[20:30]),
            "data/test-00000-of-00001.parquet": as_parquet(TEXTS[30:]),
        },
        "lab/chats": {"train.jsonl": as_jsonl(CHATS)},
    }
    with local_hub(repositories) as running:
        yield running


def python(
    hub_url: str, tmp_path: Path, code: str, *specs: str, **settings: Any
) -> subprocess.CompletedProcess[str]:
    setup = f"""
import json
from pathlib import Path
from onesitting.config import CorpusConfig
from onesitting.errors import UserError
corpus, specs = CorpusConfig(**{ ({"cache": str(tmp_path / "cache"), **settings})!r}), {specs!r}
"""
    guarded = setup + "try:\n" + "".join(f"    {line}\n" for line in code.strip().splitlines())
    guarded += "except UserError as error:\n    print('error:', error)\n"
    environment = {
        **{k: v for k, v in os.environ.items() if not k.upper().endswith("_PROXY")},
        **{"PYTHONPATH": str(ROOT), "HF_ENDPOINT": hub_url, "HF_HOME": str(tmp_path / "hf")},
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "USE_TORCH": "0",  # `datasets` would import torch, which takes longer than the test
    }
    command = [sys.executable, "-c", guarded]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return done


def test_documents_of_a_hub_dataset_are_streamed_over_http(hub: LocalHub, tmp_path: Path):
    done = python(hub.url, tmp_path, DOCUMENTS, "hub:lab/stories")
    assert json.loads(done.stdout) == TEXTS[:30]
    assert any("train-00001-of-00002.parquet" in request for request in hub.requests)
    done = python(hub.url, tmp_path, DOCUMENTS, f"hub:lab/stories@{REVISION}", hub_split="test")
    assert json.loads(done.stdout) == TEXTS[30:]


def test_conversations_of_a_hub_dataset_are_read(hub: LocalHub, tmp_path: Path):
    done = python(hub.url, tmp_path, CONVERSATIONS, "hub:lab/chats")
    expected = [
        [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": f"a{i}"}] for i in range(12)
    ]
    assert json.loads(done.stdout) == expected


def test_a_prepared_hub_dataset_is_pinned_and_found_again_without_network(
    hub: LocalHub, tmp_path: Path, tokenizer: Tokenizer
):
    tokenizer.save(tmp_path / "tokenizer")
    folder, n_documents, sources = json.loads(python(hub.url, tmp_path, PREPARE, "hub:lab/stories").stdout)
    assert n_documents == 30
    assert sources == [f"hub:lab/stories@{REVISION}"]
    nowhere = "http://127.0.0.1:9"
    assert json.loads(python(nowhere, tmp_path, PREPARE, "hub:lab/stories").stdout)[0] == folder


@pytest.mark.parametrize(
    ("spec", "settings", "message"),
    [
        ("hub:lab/missing", {}, "hub:lab/missing"),
        ("hub:lab/stories", {"hub_split": "validation"}, "corpus.hub_split='validation'"),
        ("hub:lab/stories", {"hub_subset": "french"}, "corpus.hub_subset='french'"),
    ],
)
def test_what_the_hub_does_not_have_is_one_error(
    hub: LocalHub, tmp_path: Path, spec: str, settings: dict[str, str], message: str
):
    done = python(hub.url, tmp_path, DOCUMENTS, spec, **settings)
    assert done.stdout.startswith("error: hub:lab/")
    assert message in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_a_missing_datasets_library_is_named_with_its_remedy(tmp_path: Path):
    block = "import sys; sys.modules['datasets'] = None"
    done = python("http://127.0.0.1:9", tmp_path, f"{block}\n{DOCUMENTS.strip()}", "hub:lab/stories")
    assert "needs the datasets library: pip install 'onesitting[hub]'" in done.stdout
