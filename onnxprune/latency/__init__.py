"""Plans for a latency target: layers are measured on the provider, and channels removed where that saves time.

Some pruned versions of the network are profiled layer by layer (`probe`; the times are cached on disk). From the times
and the layers' `work` comes an additive `model` of the network's time, and a multiple-choice knapsack over each group's
candidate `widths` keeps as much importance as the time allows (`search`). The pruned network is then measured against
the original, which is the user's own file, and the model corrected, until the target is met (`plan`).
"""

from __future__ import annotations

from onnxprune.latency.plan import plan_for_latency
from onnxprune.latency.result import LatencyResult, Options

__all__ = ["LatencyResult", "Options", "plan_for_latency"]
