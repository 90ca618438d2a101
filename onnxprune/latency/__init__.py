"""Plans for a latency: layers are measured on the execution provider, and channels leave where that buys time.

A few pruned versions of the network are run and profiled, layer by layer, with its real shapes (`probe`); what was
measured is kept on disk (`table`). From it comes an additive model of the network's time (`model`), and a
multiple-choice knapsack (`knapsack`) that keeps as much importance as the time allows (`search`). The plan is then
measured for real against the original, and the model corrected until the target is met (`plan`).
"""

from __future__ import annotations

from onnxprune.latency.plan import LatencyResult, Options, plan_for_latency

__all__ = ["LatencyResult", "Options", "plan_for_latency"]
