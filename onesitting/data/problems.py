"""What was wrong with the records of a corpus: counted, with examples, up to a limit."""

from collections import Counter
from typing import Any

from onesitting.errors import UserError

N_EXAMPLES = 5
# Enough records to judge a source by: reading stops here instead of at the end when nearly all of them are
# bad.
_EARLY = 1000


class Problems:
    """Counts records, keeps examples of bad ones, and stops when they are too many.

    Attributes:
        n_records: records read, bad and skipped ones included.
        bad: what was wrong -> how often.
        skipped: records left out that are no fault (empty ones, say) -> how often.
        examples: "file:line: what" of the first bad records.
        guesses: what was guessed about the data -> number of files.
        n_splits: cuts through documents above corpus.max_document_mb.
    """

    def __init__(self, max_bad_fraction: float = 0.01) -> None:
        self.max_bad_fraction = max_bad_fraction
        self.n_records = 0
        self.bad: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.examples: list[str] = []
        self.guesses: Counter[str] = Counter()
        self.n_splits = 0

    @property
    def n_bad(self) -> int:
        """Bad records so far."""
        return sum(self.bad.values())

    def count(self, n: int = 1) -> None:
        """Count records, good or bad."""
        self.n_records += n

    def report_bad(self, where: str, what: str, detail: str = "") -> None:
        """Note a bad record that is counted already, at file:line. Raises UserError if nearly all are bad."""
        self.bad[what] += 1
        if len(self.examples) < N_EXAMPLES:
            self.examples.append(f"{where}: {what}" + (f" ({detail})" if detail else ""))
        if self.n_records >= _EARLY and self.n_bad > max(self.max_bad_fraction, 0.5) * self.n_records:
            self.raise_if_too_many()

    def skip(self, what: str) -> None:
        """Note a record that is left out and no fault."""
        self.skipped[what] += 1

    def guess(self, what: str) -> None:
        """Note what was guessed about a file."""
        self.guesses[what] += 1

    def raise_if_too_many(self) -> None:
        """Raise UserError, with examples, if the fraction of bad records is above the limit."""
        if self.n_bad <= self.max_bad_fraction * self.n_records:
            return
        examples = "".join(f"\n  {example}" for example in self.examples)
        raise UserError(
            f"{self.n_bad} of {self.n_records} records are bad, above corpus.max_bad_fraction "
            f"({self.max_bad_fraction:g}); mend them, or raise the limit to skip them:{examples}"
        )

    def nothing(self, kind: str) -> str:
        """`no documents in 3 records, 3 empty document; …`: the message when nothing usable was read."""
        left_out = "".join(f", {n} {what}" for what, n in (self.skipped + self.bad).items())
        return f"no {kind} in {self.n_records} records{left_out}; give files with text in them"

    def as_dict(self) -> dict[str, Any]:
        """For tokens.json."""
        return {
            "n_records": self.n_records,
            "bad": dict(self.bad),
            "skipped": dict(self.skipped),
            "examples": self.examples,
            "guesses": dict(self.guesses),
            "n_splits": self.n_splits,
        }
