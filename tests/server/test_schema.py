"""Requests made up from the OpenAPI document, valid and not: none brings the server to a 5xx.

Slow: `pytest -m slow tests/server`, with schemathesis installed. ONESITTING_CASES: requests for each operation.
"""

import os

import pytest
from hypothesis import HealthCheck, settings
from running import Running

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")

CASES = int(os.environ.get("ONESITTING_CASES", "60"))
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def api(server: Running) -> object:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


schema = schemathesis.pytest.from_fixture("api")


@schema.parametrize()
@settings(max_examples=CASES, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_no_request_is_a_fault_of_the_server(case: object) -> None:
    answer = case.call()  # pyright: ignore[reportAttributeAccessIssue]
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert answer.json()["error"]["message"]
