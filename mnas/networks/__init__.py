"""Single networks of a supernet: their scores, their cost, their batch statistics, and their
export."""

from mnas.networks.cost import cost, extremes
from mnas.networks.evaluate import agreement, evaluate, evaluate_paths
from mnas.networks.export import export, standalone
from mnas.networks.latency import Latency
from mnas.networks.recalibrate import recalibrate
from mnas.networks.search import search, suggest

__all__ = [
    "Latency",
    "agreement",
    "cost",
    "evaluate",
    "evaluate_paths",
    "export",
    "extremes",
    "recalibrate",
    "search",
    "standalone",
    "suggest",
]
