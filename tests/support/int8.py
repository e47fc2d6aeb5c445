"""Whether what int8 answers on this CPU may be compared: asked of the real one, before a test says that it has another."""

import pytest

from serving.runtime import cpu

IS_RIGHT = cpu.supports(cpu.INT8) is not False
# x86 without VNNI adds products of 8 bits in 16, which saturate: its int8 answers are wrong, and the exporter refuses it.
WRONG = "this CPU computes int8 wrongly: it has none of the instructions"
int8_is_right = pytest.mark.skipif(not IS_RIGHT, reason=WRONG)
