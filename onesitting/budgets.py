"""Budgets and moved ends as people write them, and what follows from a budget alone.

parse_budget("1h30m") -> Budget(seconds=5400);  parse_budget("tokens=20M") -> Budget(tokens=20_000_000)
parse_end_moves(["1200:1310"]) -> {1200: 1310}
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from onesitting.errors import UserError

_UNIT_S = {"d": 86_400, "h": 3600, "m": 60, "s": 1}
_NUMBER = r"\d+(?:\.\d+)?"
_TIME = re.compile(rf"(?:({_NUMBER})d)?(?:({_NUMBER})h)?(?:({_NUMBER})m)?(?:({_NUMBER})s)?")
_TOKENS = re.compile(rf"tokens=({_NUMBER})([kmgbKMGB]?)")
_MULTIPLE = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "b": 10**9}


@dataclass(frozen=True)
class Budget:
    """One of the two is given."""

    seconds: float | None = None
    tokens: int | None = None


def parse_budget(text: str, setting: str = "budget") -> Budget:
    """`90s`, `5m`, `2h`, `1h30m` as seconds; `tokens=20M` as tokens.

    Raises UserError that names the setting for anything else.
    """
    compact = "".join(text.split()).replace("_", "")
    if match := _TOKENS.fullmatch(compact):
        tokens = round(float(match[1]) * _MULTIPLE[match[2].lower()])
        if tokens < 1:
            raise UserError(f"{setting} = {text!r}: the number of tokens must be at least 1")
        return Budget(tokens=tokens)
    match = _TIME.fullmatch(compact)
    if not compact or match is None:
        hint = ""
        if re.fullmatch(_NUMBER, compact):
            hint = f"; did you mean '{compact}s' or '{compact}m'?"
        elif re.fullmatch(_NUMBER + "[kMGBgb]", compact):  # 20m is a time, 20M are tokens
            hint = f"; did you mean 'tokens={compact}'?"
        raise UserError(f"{setting} = {text!r}: write a time such as 90s, 5m or 1h30m, or tokens=20M{hint}")
    amounts = zip(match.groups(), _UNIT_S.values(), strict=True)
    seconds = sum(float(amount) * unit for amount, unit in amounts if amount)
    if seconds <= 0:
        raise UserError(f"{setting} = {text!r}: the time must be more than 0")
    return Budget(seconds=seconds)


def suite_seconds(budget_s: float | None) -> float:
    """Seconds that one pass of the question suite may take, until one has been timed.

    Measured: 8 to 13 s on two cores, up to 19 s on one that did other work, whatever the budget; 0.1 of a smaller one.
    """
    return 40.0 if budget_s is None else min(40.0, max(0.04 * budget_s, min(12.0, 0.1 * budget_s)))


def world_mb(budget: Budget) -> float:
    """Megabytes that the synthetic world writes for a budget: more than a small model on a processor reads in it.

    16 MB for five minutes (written in seconds), between 4 and 256; four bytes for each token of a budget in tokens.
    """
    mb = budget.seconds / 300 * 16 if budget.seconds is not None else (budget.tokens or 0) * 4e-6
    return round(min(256.0, max(4.0, mb)), 1)


def parse_end_moves(texts: Sequence[str]) -> dict[int, int]:
    """Steps done -> new number of steps, from texts such as `1200:1310`; raises UserError for any other text."""
    moves: dict[int, int] = {}
    for text in texts:
        match = re.fullmatch(r"(\d+):(\d+)", text)
        if match is None or not int(match[1]) < int(match[2]):
            raise UserError(
                f"end_moves has {text!r}: write steps done and the new number of steps, such as '1200:1310'"
            )
        moves[int(match[1])] = int(match[2])
    return moves
