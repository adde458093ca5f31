"""llama.cpp's own server on this machine, in this process, as the independent reader of GGUF files."""

import json
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class LlamaCpp:
    """One loaded file. Everything goes over HTTP, as from any other program."""

    def __init__(self, url: str) -> None:
        self.url = url

    def post(self, path: str, **body: Any) -> Any:
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=120) as response:
            return json.load(response)

    def get(self, path: str) -> Any:
        with urllib.request.urlopen(self.url + path, timeout=120) as response:
            return json.load(response)

    def tokenize(self, text: str, parse_special: bool = False) -> list[int]:
        """Ids of a text; special tokens in it are recognised only on request."""
        return self.post("/tokenize", content=text, add_special=False, parse_special=parse_special)["tokens"]

    def detokenize(self, ids: list[int]) -> str:
        return self.post("/detokenize", tokens=ids)["content"]

    def greedy(self, prompt: list[int], n: int) -> list[int]:
        """The n likeliest tokens, one after the other, past any end of text."""
        answer = self.post(
            "/completion", prompt=prompt, n_predict=n, temperature=0.0, top_k=1, ignore_eos=False,
            return_tokens=True, cache_prompt=False, samplers=["top_k"],
        )  # fmt: skip
        return answer["tokens"]

    def render(self, messages: list[dict[str, Any]], **options: Any) -> str:
        """The prompt that the file's chat template makes of messages."""
        return self.post("/apply-template", messages=messages, **options)["prompt"]


@contextmanager
def llama_cpp(path: Path) -> Iterator[LlamaCpp]:
    """The file, loaded; keys and values are kept in float32, so that nothing but the file rounds."""
    xllamacpp = pytest.importorskip("xllamacpp")
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx = 0  # the model's own
    params.n_parallel = 1
    params.cpuparams.n_threads = 1
    params.cpuparams_batch.n_threads = 1
    params.cache_type_k = params.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    params.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    params.warmup = False
    params.verbosity = -1
    params.port = 0
    server = xllamacpp.Server(params)
    yield LlamaCpp(server.listening_address)
    del server
