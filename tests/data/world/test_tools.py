import json
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onesitting.data.world import World
from onesitting.data.world.calculator import ExpressionError, calculate
from onesitting.data.world.calendar import counted_days, weekday_after
from onesitting.data.world.tools import TOOLS, call_tool, lookup_in
from onesitting.tools.protocol import validate_call

EXPRESSIONS = st.recursive(
    st.integers(0, 999).map(str),
    lambda part: st.tuples(part, st.sampled_from("+-*"), part).map(lambda t: f"({t[0]} {t[1]} {t[2]})"),
    max_leaves=8,
)


@given(EXPRESSIONS)
def test_the_calculator_agrees_with_python(expression: str):
    assert calculate(expression) == str(eval(expression))  # the reference; the calculator has no eval


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("7 / 2", "3.5"),
        ("2 + 3 * 4", "14"),
        ("-3 - -4", "1"),
        ("10 / 4 / 5", "0.5"),
        ("1 / 3", "0.3333"),
        ("6 × 7", "42"),
    ],
)
def test_the_calculator_keeps_precedence_and_decimals(expression: str, value: str):
    assert calculate(expression) == value


@pytest.mark.parametrize(
    "expression",
    ["", "2 +", "(2", "2)", "two", "2 ** 3", "1 / 0", "__import__('os')", "9" * 300, "1 2", "*3"],
)
def test_what_is_no_expression_is_refused(expression: str):
    with pytest.raises(ExpressionError):
        calculate(expression)
    assert call_tool("calculator", {"expression": expression}).startswith("error: ")


@given(st.text(max_size=60))
def test_no_text_makes_the_calculator_raise_anything_else(expression: str):
    try:
        value = calculate(expression)
    except ExpressionError:
        return
    assert Fraction(value) == Fraction(value)


def test_weekdays_count_forwards_and_backwards():
    assert weekday_after("Monday", 3) == "Thursday"
    assert weekday_after("Monday", -1) == "Sunday"
    assert weekday_after("sunday", 365) == "Monday"
    assert counted_days("Friday", 3) == ["Saturday", "Sunday", "Monday"]
    with pytest.raises(ValueError, match="Funday"):
        weekday_after("Funday", 1)


def test_the_lookup_knows_the_facts_of_its_world():
    world = World(0)
    lookup = lookup_in(0)
    price = world.state.price("kite")
    assert call_tool("lookup", {"name": "kite", "field": "price"}, lookup) == str(price)
    assert call_tool("lookup", '{"name": "unicorn", "field": "price"}', lookup) == "error: not found"
    assert call_tool("lookup", {"name": "kite", "field": "price"}) == "error: not found"


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ({"name": "calculator", "arguments": {"expression": "1 + 1"}}, None),
        ({"name": "calculator", "arguments": '{"expression": "1 + 1"}'}, None),
        (
            {"type": "function", "function": {"name": "calendar", "arguments": {"day": "Monday", "days": 3}}},
            None,
        ),
        ({"name": "oven", "arguments": {}}, "there is no tool 'oven'"),
        ({"name": "calculator", "arguments": {}}, "'expression' is missing"),
        ({"name": "calculator", "arguments": {"expression": 3}}, "'expression' is not of type string"),
        ({"name": "calendar", "arguments": {"day": "Monday", "days": True}}, "'days' is not of type integer"),
        ({"name": "calendar", "arguments": {"day": "Monday", "days": "3"}}, "'days' is not of type integer"),
        (
            {"name": "calculator", "arguments": {"expression": "1", "unit": "m"}},
            "'calculator' has no argument 'unit'",
        ),
        ({"name": "lookup", "arguments": {"name": "kite", "field": "taste"}}, "'field' can not be 'taste'"),
        ({"name": "calculator", "arguments": "{expression"}, "the arguments are not JSON"),
        ({"name": "calculator", "arguments": "[1]"}, "the arguments are not an object"),
        ({"type": "invalid", "text": "{", "error": "not JSON"}, "not JSON"),
    ],
)
def test_a_call_is_valid_or_says_what_is_wrong(call: dict[str, Any], problem: str | None):
    assert validate_call(call, TOOLS) == problem


def test_tools_fail_as_results():
    assert call_tool("oven", {}) == "error: there is no tool 'oven'"
    assert call_tool("calendar", {"day": "Funday", "days": 2}) == "error: 'Funday' is not a day of the week"
    assert call_tool("calculator", "not json") == "error: the arguments are not JSON"


def test_schemas_are_json():
    assert json.loads(json.dumps(TOOLS)) == list(TOOLS)
