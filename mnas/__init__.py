"""mnas: one-shot neural architecture search on merged, gradient-masked tensors."""

from mnas import spaces
from mnas.choice import Choice
from mnas.cost import cost
from mnas.evaluate import evaluate, evaluate_paths
from mnas.export import export, standalone
from mnas.gradient_mask import GradientMask
from mnas.optim import MaskedOptimizer
from mnas.recalibrate import recalibrate
from mnas.sampler import FairSampler, UniformSampler
from mnas.space import SearchSpace
from mnas.supernet import Supernet

__all__ = [
    "Choice",
    "FairSampler",
    "GradientMask",
    "MaskedOptimizer",
    "SearchSpace",
    "Supernet",
    "UniformSampler",
    "cost",
    "evaluate",
    "evaluate_paths",
    "export",
    "recalibrate",
    "spaces",
    "standalone",
]
