"""Candidates in merged tensors, spaces of their combinations, supernets that compute them, and
samplers of paths."""

from mnas.space.choice import Choice
from mnas.space.convert import convert
from mnas.space.coupling import Path
from mnas.space.decision import Decision
from mnas.space.sampler import FairSampler, UniformSampler
from mnas.space.search_space import SearchSpace
from mnas.space.supernet import Supernet

__all__ = [
    "Choice",
    "Decision",
    "FairSampler",
    "Path",
    "SearchSpace",
    "Supernet",
    "UniformSampler",
    "convert",
]
