"""Networks written node by node: the standard's attention, norms and recurrence, einsum, quantised operators."""

from __future__ import annotations

import numpy as np
import pytest

from onnxprune.trace.align import Attention
from onnxprune.verify import generate_inputs
from tests.integration.checks import BUDGETS, analysed, assert_no_rule_failed, assert_prunes, unreached
from tests.toolbox import Net, assert_proved, inputs_of, removal, run_once
from tests.zoo.byhand import BY_HAND
