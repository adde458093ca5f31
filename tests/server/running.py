"""A real server on a free port, with a small random model."""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import httpx2
import torch

from onesitting.config import ModelConfig
from onesitting.inference.engine import EngineSettings
from onesitting.model.transformer import Transformer
from onesitting.server.generation import Limits
from onesitting.server.metrics import Metrics
from onesitting.server.models import LoadSettings, ServedModel, serve_model
from onesitting.server.run import LOOPBACK, Server, _listen  # pyright: ignore[reportPrivateUsage]
from onesitting.server.service import Keys, Service
from onesitting.tokenizer.bpe import Tokenizer, train_tokenizer

TEXT = 'The cat sat on the mat. {"name": "Ann", "age": 7} What is 2 + 3? naïve café 漢字 😀 '
CONTEXT = 512


def random_model(
    tokenizer: Tokenizer, seed: int = 3, context: int = CONTEXT, unnamed_rows: int = 0
) -> Transformer:
    cfg = ModelConfig(
        n_layers=2, d_model=48, n_heads=4, n_kv_heads=2, head_dim=12, d_ff=64,
        vocab_size=tokenizer.vocab_size + unnamed_rows, context_length=context,
    )  # fmt: skip
    model = Transformer(cfg).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
    return model


@dataclass
class Running:
    url: str
    service: Service
    server: Server
    thread: threading.Thread

    @property
    def model(self) -> ServedModel:
        return self.service.models["tiny"]

    @property
    def no_end(self) -> dict[str, int]:
        """The `logit_bias` with which only `max_tokens` ends a text."""
        return {str(token): -100 for token in self.model.tokenizer.stop_ids}

    def wait_until_idle(self, timeout_s: float) -> float:
        """Seconds until no text is written or waits; fails when it takes longer."""
        started = time.monotonic()
        while self.model.engine.n_running or self.model.engine.n_waiting:
            assert time.monotonic() - started < timeout_s, "texts are still being written"
            time.sleep(0.005)
        return time.monotonic() - started


@contextmanager
def running(
    *,
    n_slots: int = 8,
    max_waiting: int = 64,
    context: int = CONTEXT,
    keys: Keys | None = None,
    limits: Limits | None = None,
    tokenizer: Tokenizer | None = None,
    unnamed_rows: int = 0,
    **more: object,
) -> Iterator[Running]:
    tokenizer = tokenizer or train_tokenizer([TEXT] * 20, vocab_size=384)
    settings = LoadSettings(
        device=torch.device("cpu"),
        dtype=torch.float32,
        engine=EngineSettings(n_slots=n_slots, max_waiting=max_waiting),
    )
    models = {
        name: serve_model(
            name,
            random_model(tokenizer, seed, context, unnamed_rows),
            tokenizer,
            settings,
            {"temperature": 0.9},
        )
        for seed, name in ((3, "tiny"), (4, "other"))
    }
    service = Service(
        models=models, keys=keys or Keys(), limits=limits or Limits(), metrics=Metrics(models), hosts=LOOPBACK,
        **more,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip
    listener = _listen("127.0.0.1", 0)
    server = Server(service, 120)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])), daemon=True)
    thread.start()
    url = f"http://127.0.0.1:{listener.getsockname()[1]}"
    for _ in range(500):
        try:
            httpx2.get(f"{url}/healthz")
            break
        except httpx2.TransportError:
            time.sleep(0.02)
    try:
        yield Running(url, service, server, thread)
    finally:
        server.should_exit = True
        thread.join(30)
