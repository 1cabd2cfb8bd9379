"""Problems of EvalPlus (arXiv:2305.01210), whose many inputs are tested against what the solution answers.

Its JSONL files (HumanEvalPlus, MbppPlus) hold `base_input` and `plus_input`, lists of arguments, and `atol`; here they
become a test of HumanEval's shape.
"""

import json
from collections.abc import Mapping
from typing import Any

# `_same` follows EvalPlus: floats within a tolerance, also inside containers; everything else exactly.
_TEST = """import copy, json, math

_SPACE = {{}}
exec({solution!r}, _SPACE)
_INPUTS = json.loads({inputs!r})


def _same(answer, expected):
    if isinstance(expected, float) and isinstance(answer, (int, float)):
        return answer == expected or math.isclose(answer, expected, rel_tol=1e-7, abs_tol={tolerance!r})
    if isinstance(expected, (list, tuple)):
        return type(answer) is type(expected) and len(answer) == len(expected) and all(map(_same, answer, expected))
    return answer == expected


def check(candidate):
    for arguments in _INPUTS:
        expected = _SPACE[{entry_point!r}](*copy.deepcopy(arguments))
        assert _same(candidate(*arguments), expected), f"arguments {{arguments!r:.80}}"
"""


def differential_test(row: Mapping[str, Any]) -> str:
    """The test of a row of EvalPlus'. Raises KeyError for a field that it lacks."""
    return _TEST.format(
        solution=row["prompt"] + row["canonical_solution"],
        inputs=json.dumps([*row["base_input"], *row["plus_input"]]),
        tolerance=max(1e-6, float(row["atol"])),
        entry_point=row["entry_point"],
    )
