"""One server for all conformance tests."""

from collections.abc import Iterator

import anthropic
import httpx2
import openai
import pytest
from running import Running, running

from onesitting.server.generation import Limits


@pytest.fixture(scope="session")
def server() -> Iterator[Running]:
    with running() as one:
        yield one


@pytest.fixture(scope="session")
def slow() -> Iterator[Running]:
    """A server whose texts run for many seconds, so that a busy machine cannot miss them running."""
    with running(n_slots=8, max_waiting=1, context=16_384, limits=Limits(max_tokens=16_000)) as one:
        yield one


@pytest.fixture(scope="session")
def client(server: Running) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def claude(server: Running) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0, timeout=60)


@pytest.fixture(scope="session")
def http(server: Running) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=server.url, timeout=60) as one:
        yield one
