"""Numbers for Prometheus, and one log line a request."""

import json
import logging
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from onesitting.server.models import ServedModel

access = logging.getLogger("onesitting.access")


class Metrics:
    """Counters of a server; what the engines count is read when somebody asks."""

    def __init__(self, models: "Mapping[str, ServedModel]") -> None:
        self.registry = CollectorRegistry()
        self._models = models
        self.requests = Counter(
            "onesitting_requests", "Requests answered", ["route", "status"], registry=self.registry
        )
        self.duration = Histogram(
            "onesitting_request_seconds",
            "From a request's arrival to its last byte",
            ["route"],
            registry=self.registry,
        )
        self.first_byte = Histogram(
            "onesitting_first_byte_seconds", "From a request's arrival to the first byte of the answer's body",
            ["route"], registry=self.registry,
        )  # fmt: skip
        self.registry.register(self)  # pyright: ignore[reportArgumentType]  # anything with collect()

    def collect(self) -> Iterable[Metric]:
        """What the engines say now."""
        gauges = {
            "onesitting_running_texts": ("Texts that are being written", lambda e: e.n_running),
            "onesitting_waiting_texts": ("Texts in the queue", lambda e: e.n_waiting),
            "onesitting_slots": ("Texts that can be written at the same time", lambda e: e.settings.n_slots),
            "onesitting_prefix_cache_bytes": ("Memory of the prefix cache", lambda e: e.prefixes.n_bytes),
        }
        counters = {
            "onesitting_prompt_tokens": ("Tokens of prompts", lambda e: e.statistics.prompt_tokens),
            "onesitting_cached_prompt_tokens": (
                "Prompt tokens not read again",
                lambda e: e.prefixes.n_hit_tokens,
            ),
            "onesitting_written_tokens": ("Tokens written", lambda e: e.statistics.written_tokens),
            "onesitting_steps": ("Steps of the engine", lambda e: e.statistics.steps),
            "onesitting_step_seconds": ("Time in steps", lambda e: e.statistics.step_s),
        }
        for family, table in ((GaugeMetricFamily, gauges), (CounterMetricFamily, counters)):
            for name, (text, read) in table.items():
                metric = family(name, text, labels=["model"])
                for model in self._models.values():
                    metric.add_metric([model.name], read(model.engine))
                yield metric
        finished = CounterMetricFamily(
            "onesitting_finished_texts", "Texts by how they ended", labels=["model", "reason"]
        )
        for model in self._models.values():
            for reason, count in dict(model.engine.statistics.finished).items():
                finished.add_metric([model.name, reason], count)
        yield finished

    def text(self) -> bytes:
        """The page that Prometheus reads."""
        return generate_latest(self.registry)

    def answered(self, record: dict[str, Any], started: float, first_byte: float | None) -> None:
        """Count one answer and write its log line."""
        now = time.monotonic()
        route = record["route"]
        self.requests.labels(route, record["status"]).inc()
        self.duration.labels(route).observe(now - started)
        if first_byte is not None:
            self.first_byte.labels(route).observe(first_byte - started)
        access.info(json.dumps({**record, "elapsed_s": round(now - started, 4)}, ensure_ascii=True))
