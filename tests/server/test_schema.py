"""Requests made up from the OpenAPI document, valid and not: none brings the server to a 5xx.

Slow: `pytest -m slow tests/server`, with schemathesis installed. ONESITTING_CASES: requests for each operation.
"""

import os
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from running import Running, running

from onesitting.server.generation import Limits

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

CASES = int(os.environ.get("ONESITTING_CASES", "60"))
HYPOTHESIS: dict[str, Any] = {
    "max_examples": CASES,
    "deadline": None,
    "derandomize": True,
    "suppress_health_check": list(HealthCheck),
}
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def brief() -> Iterator[Running]:
    """A server of short replies: what the model says is of no interest here."""
    with running(limits=Limits(max_tokens=3)) as one:
        yield one


def aim(case: Any) -> None:
    """Make a request one for the model that is served; otherwise all are a 404."""
    if isinstance(case.body, dict) and isinstance(case.body.get("model"), str):
        case.body["model"] = "tiny"


@pytest.mark.parametrize("mode", ["positive", "negative"])
def test_no_request_is_a_fault_of_the_server(brief: Running, mode: str) -> None:
    api = schemathesis.openapi.from_url(f"{brief.url}/openapi.json")
    statuses: dict[str, dict[int, int]] = {}

    def check(case: Any) -> None:
        aim(case)
        answer = case.call(timeout=60)
        counts = statuses.setdefault(f"{case.method} {case.path}", {})
        counts[answer.status_code] = counts.get(answer.status_code, 0) + 1
        assert answer.status_code < 500, answer.text
        assert "api_error" not in answer.text  # a stream has begun with 200 before it fails
        if answer.status_code >= 400:
            assert answer.json()["error"]["message"]

    for found in api.get_all_operations():
        operation = found.ok()
        if mode == "negative" and not operation.body:
            continue  # without a body or parameters there is nothing to do wrong
        cases = operation.as_strategy(generation_mode=schemathesis.GenerationMode(mode))
        settings(**HYPOTHESIS)(given(cases)(check))()
    print(mode, sum(sum(one.values()) for one in statuses.values()), statuses)
    assert {"POST /v1/chat/completions", "POST /v1/messages"} <= set(statuses)
