"""Every operation that the interpreter knows is run through a package and compared with torch by one of these files."""

from __future__ import annotations

import pytest

pytest.importorskip("coremltools", exc_type=ImportError)

from test_ops_conv import CASES as CONV
from test_ops_elementwise import CASES as ELEMENTWISE
from test_ops_quantization import CASES as QUANTIZATION
from test_ops_reduction import CASES as REDUCTION
from test_ops_resize import CASES as RESIZE
from test_ops_shape import CASES as SHAPE

from vigcli.coreml.ops import OPS


def test_every_operation_has_a_case() -> None:
    cases = [*CONV, *ELEMENTWISE, *QUANTIZATION, *REDUCTION, *RESIZE, *SHAPE]
    assert {case.op for case in cases} | {"classify"} == OPS.keys()  # classify: test_interpreter
