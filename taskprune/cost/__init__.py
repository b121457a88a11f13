"""What a model costs: exact functions of how many channels each group keeps, and measurements."""

from taskprune.cost.latency_cost import LatencyCost, measure_tables
from taskprune.cost.measured import measure_macs, measure_params
from taskprune.cost.measured_latency import LatencyReport, measure_latency
from taskprune.cost.memory import ActivationMemory
from taskprune.cost.modality_cost import modality_costs
from taskprune.cost.model import CostModel, count_macs, count_params
from taskprune.cost.operator_call import OperatorCall
from taskprune.cost.operator_timer import CachedTimer, DeviceTimer, OperatorTimer, device_timer
from taskprune.cost.protocol import Cost

__all__ = [
    "ActivationMemory",
    "CachedTimer",
    "Cost",
    "CostModel",
    "DeviceTimer",
    "LatencyCost",
    "LatencyReport",
    "OperatorCall",
    "OperatorTimer",
    "count_macs",
    "count_params",
    "device_timer",
    "measure_latency",
    "measure_macs",
    "measure_params",
    "measure_tables",
    "modality_costs",
]
