"""Imported once by the forkserver of `processes`, so that no child has to: what a training, a study
and torch.distributed take seconds to import. It starts no thread and computes nothing, because
neither would survive the fork."""

from importlib import import_module

MODULES = (
    "torch._dynamo",  # the first optimizer of a process imports it
    "torch.nn.parallel",
    "torch.distributed.fsdp",
    "matplotlib.pyplot",
    "scipy.stats",
    *(f"mnas.commands.{name}" for name in ("evaluate", "export", "report", "search")),
    *(f"mnas.commands.{name}" for name in ("study", "train")),
)

for module in MODULES:
    import_module(module)
