"""Arithmetic expressions without `eval`: + - * / and parentheses, exact, bounded."""

import re
from fractions import Fraction

_TOKEN = re.compile(r"\s*(?:(\d+(?:\.\d+)?)|([-+*/()]))")
_MAX_CHARS = 200  # also bounds the parser's recursion: one level for a parenthesis or a sign
_OTHER_SIGNS = str.maketrans({"×": "*", "÷": "/", "−": "-", "x": "*"})


class ExpressionError(ValueError):
    """The text is not an expression, or has no value."""


def calculate(expression: str) -> str:
    """The value of `expression` in decimal digits: whole where it is whole, else at most 4 decimals.

    Raises ExpressionError for anything but numbers, + - * / ( ), and for a division by zero.
    """
    if len(expression) > _MAX_CHARS:
        raise ExpressionError(f"the expression is longer than {_MAX_CHARS} characters")
    tokens = _tokens(expression.translate(_OTHER_SIGNS))
    value, position = _sum(tokens, 0)
    if position != len(tokens):
        raise ExpressionError(f"unexpected '{tokens[position]}'")
    return _decimal(value)


def _tokens(expression: str) -> list[str]:
    tokens: list[str] = []
    position, text = 0, expression.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise ExpressionError(f"cannot read '{text[position:].strip()[:12]}'")
        tokens.append(match.group(1) or match.group(2))
        position = match.end()
    return tokens


def _sum(tokens: list[str], position: int) -> tuple[Fraction, int]:
    value, position = _product(tokens, position)
    while position < len(tokens) and tokens[position] in "+-":
        sign = 1 if tokens[position] == "+" else -1
        term, position = _product(tokens, position + 1)
        value += sign * term
    return value, position


def _product(tokens: list[str], position: int) -> tuple[Fraction, int]:
    value, position = _factor(tokens, position)
    while position < len(tokens) and tokens[position] in "*/":
        divides = tokens[position] == "/"
        factor, position = _factor(tokens, position + 1)
        if divides and factor == 0:
            raise ExpressionError("division by zero")
        value = value / factor if divides else value * factor
    return value, position


def _factor(tokens: list[str], position: int) -> tuple[Fraction, int]:
    if position == len(tokens):
        raise ExpressionError("the expression ends too early")
    token = tokens[position]
    if token == "-":
        value, position = _factor(tokens, position + 1)
        return -value, position
    if token == "(":
        value, position = _sum(tokens, position + 1)
        if position == len(tokens) or tokens[position] != ")":
            raise ExpressionError("a ')' is missing")
        return value, position + 1
    if not token[0].isdigit():
        raise ExpressionError(f"unexpected '{token}'")
    return Fraction(token), position + 1


def _decimal(value: Fraction) -> str:
    if value.denominator == 1:
        return str(value.numerator)
    return f"{float(value):.4f}".rstrip("0").rstrip(".")
