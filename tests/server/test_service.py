"""A server in use: clients that leave, too many of them, keys, the end, what is counted and logged."""

import json
import logging
import threading
import time
from pathlib import Path
from typing import Any

import httpx2
import openai
import pytest
import torch
from running import TEXT, Running, random_model, running

from onesitting.checkpoint import save_model
from onesitting.errors import UserError
from onesitting.server.generation import Limits
from onesitting.server.models import LoadSettings, load_served
from onesitting.server.service import Keys, new_key, read_keys
from onesitting.tokenizer.bpe import train_tokenizer

ENDLESS: dict[str, Any] = {
    "model": "tiny",
    "prompt": "The cat",
    "max_tokens": 500,
    "logit_bias": {},
    "seed": 1,
}


def endless(server: Running, **more: Any) -> dict[str, Any]:
    """A request that only max_tokens ends: its stop tokens are impossible."""
    return {**ENDLESS, "logit_bias": server.no_end, **more}


@pytest.mark.parametrize("n_clients", [1, 8])
def test_client_that_leaves_mid_stream_frees_its_slot_within_a_second(slow: Running, n_clients: int) -> None:
    cancelled = slow.model.engine.statistics.finished.get("cancelled", 0)
    asked = endless(slow, stream=True, max_tokens=16_000)
    with httpx2.Client(base_url=slow.url, timeout=30) as http:
        streams = [
            http.send(http.build_request("POST", "/v1/completions", json=asked), stream=True)
            for _ in range(n_clients)
        ]
        texts = [stream.iter_bytes() for stream in streams]  # kept: one that is thrown away closes its stream
        for text in texts:
            next(text)
        assert slow.model.engine.n_running == n_clients
        for stream in streams:
            stream.close()
    assert slow.wait_until_idle(5) < 1
    assert slow.model.engine.statistics.finished["cancelled"] == cancelled + n_clients


def test_client_that_leaves_before_an_answer_frees_its_slot(slow: Running) -> None:
    with pytest.raises(httpx2.TimeoutException):
        httpx2.post(f"{slow.url}/v1/completions", json=endless(slow, n=8, max_tokens=16_000), timeout=0.2)
    assert slow.wait_until_idle(5) < 1


def test_full_queue_is_429_with_the_time_to_come_back(slow: Running) -> None:
    with httpx2.Client(base_url=slow.url, timeout=30) as http:
        with http.stream("POST", "/v1/completions", json=endless(slow, stream=True, n=8, max_tokens=16_000)):
            answers = [http.post("/v1/completions", json=endless(slow, n=2)) for _ in range(2)]
        for answer in answers:
            assert answer.status_code == 429
            assert 1 <= int(answer.headers["retry-after"]) <= 60
            assert answer.json()["error"]["type"] == "rate_limit_error"
    slow.wait_until_idle(5)


def test_shutdown_finishes_running_streams_and_takes_no_new_ones() -> None:
    with running() as server:
        text: list[str] = []
        begun = threading.Event()

        def read() -> None:
            client = openai.OpenAI(base_url=f"{server.url}/v1", api_key="none")
            for chunk in client.completions.create(**endless(server, stream=True, max_tokens=150)):
                text.append(chunk.choices[0].finish_reason or "")
                begun.set()

        reader = threading.Thread(target=read)
        reader.start()
        assert begun.wait(20)
        server.server.handle_exit(15, None)
        assert server.service.is_draining
        reader.join(30)
        assert text[-1] == "length"
        server.thread.join(30)
        assert not server.thread.is_alive()
        assert not server.model.engine.is_alive
        with pytest.raises(httpx2.TransportError):
            httpx2.get(f"{server.url}/healthz")


def test_deadline_ends_a_request() -> None:
    with (
        running(limits=Limits(deadline_s=0.0)) as server,
        httpx2.Client(base_url=server.url, timeout=30) as http,
    ):
        answer = http.post("/v1/completions", json=endless(server)).json()
        assert answer["choices"][0]["finish_reason"] == "length"
        assert answer["usage"]["completion_tokens"] < 500


def test_operators_longest_reply_bounds_every_request() -> None:
    with (
        running(limits=Limits(max_tokens=3)) as server,
        httpx2.Client(base_url=server.url, timeout=30) as http,
    ):
        assert http.post("/v1/completions", json=endless(server)).json()["usage"]["completion_tokens"] == 3


@pytest.fixture(scope="module")
def locked() -> Any:
    key, digest = new_key()
    with running(keys=Keys(owners={digest: "anna"}), origins=frozenset({"https://ours.example"})) as server:
        yield server, key


@pytest.mark.parametrize("path", ["/v1/models", "/metrics", "/openapi.json", "/nowhere"])
@pytest.mark.parametrize(
    "headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic x"}, {"x-api-key": "wrong"}]
)
def test_without_the_key_everything_but_health_is_closed(
    locked: Any, path: str, headers: dict[str, str]
) -> None:
    answer = httpx2.get(f"{locked[0].url}{path}", headers=headers)
    assert answer.status_code == 401
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.parametrize("headers", ["Authorization", "x-api-key"])
def test_with_the_key_it_is_open(locked: Any, headers: str) -> None:
    server, key = locked
    value = f"Bearer {key}" if headers == "Authorization" else key
    assert httpx2.get(f"{server.url}/v1/models", headers={headers: value}).status_code == 200


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/", "/page.js", "/page.css"])
def test_health_and_the_page_need_no_key(locked: Any, path: str) -> None:
    assert httpx2.get(f"{locked[0].url}{path}").status_code == 200


def test_named_site_may_use_the_server_from_a_browser(locked: Any) -> None:
    server, key = locked
    wanted = "authorization, x-stainless-os"  # official clients send headers of their own
    asked = {
        "Origin": "https://ours.example",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": wanted,
    }
    answer = httpx2.options(f"{server.url}/v1/models", headers=asked)
    assert (answer.status_code, answer.headers["access-control-allow-headers"]) == (204, wanted)
    answer = httpx2.get(
        f"{server.url}/v1/models", headers={"Origin": "https://ours.example", "x-api-key": key}
    )
    assert answer.headers["access-control-allow-origin"] == "https://ours.example"
    assert "retry-after" in answer.headers["access-control-expose-headers"]


def test_keys_come_from_file_and_environment_and_only_hashes_are_kept(tmp_path: Any) -> None:
    key, digest = new_key()
    path = tmp_path / "keys"
    path.write_text(f"# ours\nanna {digest}  # hers\n\n")
    keys = read_keys(str(path), {"ONESITTING_API_KEYS": "one, two"})
    assert [keys.owner(it) for it in (key, "one", "two", "three", "")] == [
        "anna", "environment-1", "environment-2", None, None,
    ]  # fmt: skip
    assert key not in repr(keys)


@pytest.mark.parametrize("line", ["anna", "anna abc", "anna " + "g" * 64, "# none"])
def test_wrong_key_file_is_refused_with_its_line(tmp_path: Any, line: str) -> None:
    path = tmp_path / "keys"
    path.write_text(line)
    with pytest.raises(UserError, match="--new-key"):
        read_keys(str(path), {})


def test_metrics_count_what_happened(server: Running, http: httpx2.Client) -> None:
    http.post("/v1/completions", json={"model": "other", "prompt": "x", "max_tokens": 7})
    http.get("/nowhere")
    lines = http.get("/metrics").text.splitlines()
    values = {line.rsplit(" ", 1)[0]: float(line.rsplit(" ", 1)[1]) for line in lines if line[0] != "#"}
    assert values['onesitting_requests_total{route="/v1/completions",status="200"}'] >= 1
    assert values['onesitting_requests_total{route="other",status="404"}'] >= 1
    assert values['onesitting_written_tokens_total{model="other"}'] >= 1
    assert values['onesitting_slots{model="tiny"}'] == 8


def test_log_line_names_the_request_and_no_word_of_it(
    http: httpx2.Client, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="onesitting.access"):
        answer = http.post(
            "/v1/completions", json={"model": "tiny", "prompt": "a secret wish", "max_tokens": 2}
        )
        for _ in range(100):
            if caplog.records:
                break
            time.sleep(0.01)
    record = json.loads(caplog.records[-1].getMessage())
    assert record["request_id"] == answer.headers["x-request-id"]
    assert (record["route"], record["status"]) == ("/v1/completions", 200)
    assert "secret" not in caplog.text


def test_a_stretched_context_is_that_of_the_served_model(tmp_path: Path) -> None:
    tokenizer = train_tokenizer([TEXT] * 20, vocab_size=384)
    model = random_model(tokenizer, 1)
    save_model(tmp_path / "m", model, tokenizer)
    settings = LoadSettings(device=torch.device("cpu"), dtype=torch.float32, context_factor=4.0)
    served = load_served("m", tmp_path / "m", settings)
    assert served.context_length == 4 * model.cfg.context_length
    served.engine.close(1)
