"""What a model costs: exact functions of how many channels each group keeps, and measurements."""

from taskprune.cost.latency import LatencyReport, measure_latency
from taskprune.cost.measured import measure_macs, measure_params
from taskprune.cost.memory import ActivationMemory
from taskprune.cost.model import CostModel, CostState, count_macs, count_params
from taskprune.cost.protocol import Cost, CostAccount

__all__ = [
    "ActivationMemory",
    "Cost",
    "CostAccount",
    "CostModel",
    "CostState",
    "LatencyReport",
    "count_macs",
    "count_params",
    "measure_latency",
    "measure_macs",
    "measure_params",
]
