"""Many requests for text at once, from any thread: a queue, a thread that writes, and deltas that come back.

A request waits in its client's line; the lines take turns, so that a client with many requests delays only
itself. The queue has a bound beyond which requests are refused at once. A request ends by itself, when it is
cancelled (its slot is free within one step), or at its deadline. Two requests never influence each other's text:
see `model/kv_cache.py`.
"""

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import TYPE_CHECKING

import torch

from onesitting.errors import UserError
from onesitting.inference.batch import Batch, PrefixCache
from onesitting.inference.generate import for_decoding
from onesitting.inference.row import Completion, Constraint, FinishReason, Row, RowSettings, TokenLogprob
from onesitting.inference.text_stream import spelled_bytes
from onesitting.model.transformer import Transformer

if TYPE_CHECKING:
    from onesitting.tokenizer.bpe import Tokenizer

log = logging.getLogger("onesitting.engine")


class QueueFull(Exception):
    """More texts wait than the engine's bound allows."""

    def __init__(self, retry_after_s: int) -> None:
        super().__init__(f"the queue is full; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class Closed(Exception):
    """The engine finishes what it has and takes nothing new."""


@dataclass(frozen=True, kw_only=True)
class EngineSettings:
    """What an engine may use."""

    n_slots: int = 64
    """Texts that are written at the same time."""
    prefill_tokens: int = 512
    """Tokens of prompts that are read in one step; more delay the texts that are being written."""
    prefix_bytes: int = 256 << 20
    """Memory for the beginnings of prompts."""
    max_waiting: int = 256
    """Texts that may wait for a slot."""
    dtype: torch.dtype | None = None
    """Of the computation; None: the model's."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """`n` texts after one prompt."""

    prompt: Sequence[int]
    settings: RowSettings
    """Of each text; its `index` is counted up."""
    n: int = 1
    constrain: Callable[[], Constraint] | None = None
    """Makes the grammar that each text follows."""
    client: str = ""
    """Whose line it waits in."""
    deadline_s: float | None = None
    """Seconds after which it ends, waiting included."""


@dataclass(frozen=True)
class Delta:
    """What one step added to a text."""

    index: int
    text: str
    marks: list[tuple[int, int, int]]
    """(begin, end, id) of each new special token, in characters of the whole text."""
    tokens: list[int]
    logprobs: list[TokenLogprob]
    finish_reason: FinishReason | None
    stop_id: int | None
    stop_string: str | None
    error: str = ""
    """Why the engine failed, with finish_reason "error"."""


@dataclass
class Statistics:
    """Counts since the start."""

    prompt_tokens: int = 0
    written_tokens: int = 0
    steps: int = 0
    step_s: float = 0.0
    finished: dict[str, int] = field(default_factory=dict[str, int])
    """Texts by finish reason."""
    text_s: float = 1.0
    """Recent mean time that a text holds its slot."""


class Job:
    """A request on its way. `deliver` is called in the engine's thread, once for each delta."""

    def __init__(self, request: Request, rows: list[Row], deliver: Callable[[Delta], None]) -> None:
        self.request, self.rows, self.deliver = request, rows, deliver
        self.prompt_tokens = len(rows[0].prompt)
        self.cancelled = False
        self.deadline = None if request.deadline_s is None else time.monotonic() + request.deadline_s

    def given_up(self, now: float) -> FinishReason | None:
        """Why it should end before it is done."""
        if self.cancelled:
            return "cancelled"
        return "deadline" if self.deadline is not None and now > self.deadline else None


class _Sent:
    """How much of a row its client has."""

    def __init__(self, job: Job, started: float) -> None:
        self.job, self.started = job, started
        self.pieces = self.marks = self.ids = self.top = 0

    def delta(self, row: Row, error: str = "") -> Delta:
        delta = Delta(
            row.settings.index,
            "".join(row.pieces[self.pieces :]),
            row.marks[self.marks :],
            row.ids[self.ids :],
            row.top[self.top :],
            row.finish_reason,
            row.stop_id,
            row.stop_string,
            error,
        )
        self.pieces, self.marks = len(row.pieces), len(row.marks)
        self.ids, self.top = len(row.ids), len(row.top)
        return delta


class Engine:
    """Writes texts in a thread of its own until it is closed."""

    def __init__(
        self, model: Transformer, tokenizer: "Tokenizer", settings: EngineSettings | None = None
    ) -> None:
        self.settings = settings or EngineSettings()
        self.model, self.tokenizer = for_decoding(model, self.settings.dtype), tokenizer
        self.statistics = Statistics()
        self.prefixes = PrefixCache(self.settings.prefix_bytes)
        self._spelled = spelled_bytes(tokenizer)
        with torch.inference_mode():
            self._batch = self._new_batch()
        self._sent: dict[Row, _Sent] = {}
        self._lines: OrderedDict[str, deque[tuple[Job, Row]]] = OrderedDict()
        self._changed = threading.Condition()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    @property
    def n_waiting(self) -> int:
        """Texts without a slot."""
        return sum(map(len, list(self._lines.values())))

    @property
    def n_running(self) -> int:
        """Texts that hold a slot."""
        return len(self._sent)

    @property
    def is_alive(self) -> bool:
        """Whether new requests are taken and written."""
        return self._thread.is_alive() and not self._closing

    def submit(self, request: Request, deliver: Callable[[Delta], None]) -> Job:
        """Queue a request; deltas come from the engine's thread.

        Raises UserError when the prompt leaves no room for a text, QueueFull, or Closed.
        """
        context = self.model.cfg.context_length
        if len(request.prompt) >= context:
            raise UserError(
                f"the prompt has {len(request.prompt)} tokens, this model's context is {context}; shorten it"
            )
        rows = [self._row(request, index) for index in range(request.n)]
        job = Job(request, rows, deliver)
        with self._changed:
            if self._closing:
                raise Closed
            if self.n_waiting + request.n > self.settings.max_waiting + self._n_unused():
                turns = self.n_waiting / self.settings.n_slots
                raise QueueFull(max(1, min(60, round(turns * self.statistics.text_s))))
            self._lines.setdefault(request.client, deque()).extend((job, row) for row in rows)
            self._changed.notify()
        return job

    def cancel(self, job: Job) -> None:
        """End a request; its slots are free within a step. Its last deltas say "cancelled"."""
        job.cancelled = True
        with self._changed:
            self._changed.notify()

    def complete(self, request: Request) -> list[Completion]:
        """The texts of a request, when all are done."""
        deltas: SimpleQueue[Delta] = SimpleQueue()
        job = self.submit(request, deltas.put)
        n_left = request.n
        while n_left:
            delta = deltas.get()
            if delta.error:
                raise RuntimeError(delta.error)
            n_left -= delta.finish_reason is not None
        return [row.completion() for row in job.rows]

    def close(self, timeout_s: float | None = None) -> bool:
        """Take nothing new, finish what is there; True if all of it is done in time, else it is cancelled."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join(timeout_s)
        if not self._thread.is_alive():
            return True
        with self._changed:
            for job in {job for line in self._lines.values() for job, _ in line} | {
                sent.job for sent in list(self._sent.values())
            }:
                job.cancelled = True
            self._changed.notify()
        self._thread.join()
        return False

    def _new_batch(self) -> Batch:
        settings = self.settings
        context = self.model.cfg.context_length
        return Batch(self.model, settings.n_slots, context, settings.prefill_tokens, self.prefixes)

    def _n_unused(self) -> int:
        return max(0, self.settings.n_slots - self.n_running)

    def _row(self, request: Request, index: int) -> Row:
        constraint = request.constrain() if request.constrain else None
        settings = replace(request.settings, index=index, constraint=constraint)
        context = self.model.cfg.context_length
        return Row(request.prompt, settings, self.tokenizer, self._spelled, context)

    def _run(self) -> None:
        """Write until closed; whatever ends it, no client waits for ever."""
        try:
            self._write_until_closed()
        except Exception as error:
            log.exception("the engine ended")
            with self._changed:
                self._closing = True
                for job, row in [it for line in self._lines.values() for it in line]:
                    self._sent[row] = _Sent(job, time.monotonic())
                self._lines.clear()
            for row in list(self._sent):
                row.finish("error")
                self._deliver(row, f"the engine failed: {type(error).__name__}")

    def _write_until_closed(self) -> None:
        while True:
            with self._changed:
                while not (self._lines or self._sent or self._closing):
                    self._changed.wait()
                if self._closing and not self._lines and not self._sent:
                    return
                ended = self._drop_given_up() + self._admit()
            for row in ended:
                self._deliver(row)
            if self._sent:
                self._step()

    def _drop_given_up(self) -> list[Row]:
        """End what was cancelled or is late, waiting or not."""
        now = time.monotonic()
        ended: list[Row] = []
        for row, sent in self._sent.items():
            reason = sent.job.given_up(now)
            if reason is not None:
                row.finish(reason)
                self._batch.remove(row)
                ended.append(row)
        for client, line in list(self._lines.items()):
            for job, row in list(line):
                reason = job.given_up(now)
                if reason is not None:
                    line.remove((job, row))
                    row.finish(reason)
                    self._sent[row] = _Sent(job, now)
                    ended.append(row)
            if not line:
                del self._lines[client]
        return ended

    def _admit(self) -> list[Row]:
        """Give free slots to the lines in turn; rows that end before they begin come back."""
        ended: list[Row] = []
        while self._lines and self._batch.n_free:
            client, line = next(iter(self._lines.items()))
            job, row = line.popleft()
            self._lines.move_to_end(client)
            if not line:
                del self._lines[client]
            self._sent[row] = _Sent(job, time.monotonic())
            if row.finish_reason is None:
                with torch.inference_mode():
                    self._batch.add(row)
                self.statistics.prompt_tokens += len(row.prompt)
            else:
                ended.append(row)
        return ended

    def _step(self) -> None:
        started = time.monotonic()
        try:
            with torch.inference_mode():
                rows = self._batch.step()
        except Exception as error:  # one bad step must not end the service
            log.exception("a step failed; its texts are given up")
            self._fail(error)
            return
        self.statistics.steps += 1
        self.statistics.step_s += time.monotonic() - started
        self.statistics.written_tokens = self._batch.n_written
        for row in rows:
            self._deliver(row)

    def _fail(self, error: Exception) -> None:
        with torch.inference_mode():
            for row in list(self._batch.rows):
                self._batch.remove(row)
            # In place: there may be no memory for a second cache. A NaN that is left would reach other texts.
            self._batch.cache.clear()
        for row in list(self._sent):
            row.finish("error")
            self._deliver(row, f"the engine failed: {type(error).__name__}")

    def _deliver(self, row: Row, error: str = "") -> None:
        sent = self._sent[row]
        reason = row.finish_reason
        if reason is not None:
            del self._sent[row]
            statistics = self.statistics
            statistics.finished[reason] = statistics.finished.get(reason, 0) + 1
            held_s = time.monotonic() - sent.started
            statistics.text_s += 0.1 * (held_s - statistics.text_s)
        try:
            sent.job.deliver(sent.delta(row, error))
        except Exception:  # the client's side is gone; its text is too
            log.debug("a delta could not be delivered", exc_info=True)
            sent.job.cancelled = True
