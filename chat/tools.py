"""The built-in tools, and the only door to them: `run` bounds time, number and size.

A tool tells the model what went wrong by raising ToolProblem: the model reads it and may try
again. Anything else it raises is a defect of the tool and ends the turn.
"""

import ast
import asyncio
import json
import math
import operator
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from zoneinfo import ZoneInfo

TOOL_TIMEOUT_S = 20.0
RESULT_CHARACTERS = 16_000


class ToolProblem(Exception):
    """What the model should know about why its call gave no result. `code`: refused, declined or expired, where
    the tool was not even asked."""

    def __init__(self, message: str, *, code: str = "") -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True, slots=True)
class Tool:
    """One thing a model may ask for: its name, what it says of itself, and what it does."""

    name: str
    description: str
    parameters: dict[str, Any]
    call: Callable[[dict[str, Any]], Awaitable[str]]
    server: str = "builtin"
    own_name: str = ""
    """what its server calls it; empty: the same"""
    server_pk: int | None = None
    """the row of tool_servers; None: it is built in"""
    timeout_s: float = TOOL_TIMEOUT_S

    @property
    def shown(self) -> str:
        """Its name on pages and in checkpoints, where its server stands beside it."""
        return self.own_name or self.name


async def run(tool: Tool | None, name: str, arguments: dict[str, Any] | None) -> str:
    """The result of one call as text. Raises ToolProblem for what the model can mend (no such
    tool, bad arguments, too slow), and whatever a defect of the tool raises."""
    if tool is None:
        raise ToolProblem(f"There is no tool named {name}.")
    if arguments is None:
        raise ToolProblem("The arguments are not a JSON object.")
    try:
        async with asyncio.timeout(tool.timeout_s):
            result = await tool.call(arguments)
    except TimeoutError:
        raise ToolProblem(f"The tool did not answer within {tool.timeout_s:g} seconds.") from None
    if len(result) > RESULT_CHARACTERS:
        return result[:RESULT_CHARACTERS] + f"\n[cut: {len(result) - RESULT_CHARACTERS} characters more]"
    return result


# --- clock ---------------------------------------------------------------------------------------


async def clock(arguments: dict[str, Any]) -> str:
    """The time now, in UTC or in an IANA time zone."""
    name = arguments.get("time_zone") or "UTC"
    if not isinstance(name, str) or len(name) > 64:
        raise ToolProblem("time_zone must be the name of a time zone.")
    try:
        zone = ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        # KeyError: unknown (ZoneInfoNotFoundError); ValueError, OSError: a path, a folder
        raise ToolProblem(f"There is no time zone {name!r}.") from None
    now = datetime.now(UTC).astimezone(zone)
    return json.dumps({"time_zone": name, "time": now.isoformat(timespec="seconds"), "weekday": now.strftime("%A")})


# --- calculator ----------------------------------------------------------------------------------

EXPRESSION_CHARACTERS = 500
EXPRESSION_DEPTH = 50
NUMBER_BITS = 4096
"""Whole numbers stay below 2^4096: no expression can make one that takes long to work with."""

Number = int | float

BINARY: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
UNARY: dict[type[ast.unaryop], Callable[[Any], Any]] = {ast.UAdd: operator.pos, ast.USub: operator.neg}


def _round(value: Number, digits: int = 0) -> Number:
    # round(1, -10**9) would make 10**(10**9) first
    if not isinstance(digits, int) or abs(digits) > 50:
        raise ToolProblem("round takes up to 50 digits.")
    return round(value, digits) if digits else round(value)


CONSTANTS: dict[str, float] = {"pi": math.pi, "e": math.e, "tau": math.tau}
FUNCTIONS: dict[str, Callable[..., Any]] = {
    "sqrt": math.sqrt,
    "abs": abs,
    "round": _round,
    "min": min,
    "max": max,
    "floor": math.floor,
    "ceil": math.ceil,
    "log": math.log,
    "log10": math.log10,
    "log2": math.log2,
    "exp": math.exp,
    "sin": math.sin,
    "cos": math.cos,
    "tan": math.tan,
}


async def calculator(arguments: dict[str, Any]) -> str:
    """The value of an arithmetic expression."""
    expression = arguments.get("expression")
    if not isinstance(expression, str):
        raise ToolProblem("expression must be a string.")
    value = calculate(expression)
    return json.dumps({"expression": expression, "value": value if isinstance(value, int) else float(f"{value:.15g}")})


def calculate(expression: str) -> Number:
    """The value of `expression`: numbers, + - * / // % ** and brackets, a few functions and
    constants. Reads the syntax tree and evaluates nothing else. Raises ToolProblem."""
    if len(expression) > EXPRESSION_CHARACTERS:
        raise ToolProblem(f"The expression is longer than {EXPRESSION_CHARACTERS} characters.")
    try:
        tree = ast.parse(expression.strip().replace("^", "**").replace("×", "*").replace("÷", "/"), mode="eval")
        value = _value(tree.body, 0)
    except ToolProblem:
        raise
    except SyntaxError:
        raise ToolProblem("This is not an arithmetic expression.") from None
    except ZeroDivisionError:
        raise ToolProblem("Division by zero.") from None
    except (ValueError, TypeError, ArithmeticError, MemoryError, RecursionError) as problem:
        # the square root of -1, round() without a number, brackets too deep to parse
        raise ToolProblem(f"This cannot be calculated: {problem}.") from None
    return value


def _value(node: ast.expr, depth: int) -> Number:
    if depth > EXPRESSION_DEPTH:
        raise ToolProblem("The expression is nested too deeply.")
    match node:
        case ast.Constant(value=value) if type(value) in (int, float):
            result = value
        case ast.Name(id=name) if name in CONSTANTS:
            result = CONSTANTS[name]
        case ast.UnaryOp(op=sign, operand=operand) if type(sign) in UNARY:
            result = UNARY[type(sign)](_value(operand, depth + 1))
        case ast.BinOp(left=left, op=ast.Pow(), right=right):
            result = _power(_value(left, depth + 1), _value(right, depth + 1))
        case ast.BinOp(left=left, op=sign, right=right) if type(sign) in BINARY:
            result = BINARY[type(sign)](_value(left, depth + 1), _value(right, depth + 1))
        case ast.Call(func=ast.Name(id=name), args=arguments, keywords=[]) if name in FUNCTIONS:
            result = FUNCTIONS[name](*(_value(each, depth + 1) for each in arguments))
        case _:
            raise ToolProblem(f"Not allowed in an expression: {ast.unparse(node)[:60]}.")
    return _bounded(result)


def _power(base: Number, exponent: Number) -> Any:
    # The size of the result is known before it is made: bits of the base times the exponent.
    if isinstance(base, int) and isinstance(exponent, int) and base.bit_length() * abs(exponent) > NUMBER_BITS:
        raise ToolProblem("The result would be too large.")
    return base**exponent


def _bounded(value: Any) -> Number:
    """The value, if it is one an answer can hold."""
    if isinstance(value, int):
        if value.bit_length() > NUMBER_BITS:
            raise ToolProblem("The result would be too large.")
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ToolProblem("The result is not a finite real number.")


BUILTIN = (
    Tool(
        "clock",
        "The current date and time.",
        {
            "type": "object",
            "properties": {
                "time_zone": {"type": "string", "description": "IANA name such as Europe/Berlin; default UTC"}
            },
            "additionalProperties": False,
        },
        clock,
    ),
    Tool(
        "calculator",
        "Calculates an arithmetic expression exactly: + - * / // % ** ( ), sqrt, log, exp, sin, cos, tan, "
        "abs, round, floor, ceil, min, max, pi, e.",
        {
            "type": "object",
            "properties": {"expression": {"type": "string", "description": "for example (17.5 * 3 - 2) / 7"}},
            "required": ["expression"],
            "additionalProperties": False,
        },
        calculator,
    ),
)

TOOLS: dict[str, Tool] = {tool.name: tool for tool in BUILTIN}
