"""Continual learning with hypernetwork-generated masks over one shared network, at memory speed.

The public names are imported when first used: ``import hypermask_fast`` alone loads nothing else.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypermask_fast.lazy import lazy_names, offer

if TYPE_CHECKING:
    from hypermask_fast import functional, networks, reference, scenarios
    from hypermask_fast.backends.choice import backend, explain
    from hypermask_fast.conversion.convert import unconvert
    from hypermask_fast.conversion.report import conversion_report
    from hypermask_fast.hypernetworks.chunked import ChunkedHypernetwork
    from hypermask_fast.hypernetworks.full import Hypernetwork
    from hypermask_fast.hypernetworks.sharded import sharded_head
    from hypermask_fast.inference.export import export_subnet
    from hypermask_fast.inference.one_shot import one_shot
    from hypermask_fast.inference.predictor import MultiTaskPredictor
    from hypermask_fast.layers.masked import MaskedConv2d, MaskedLinear
    from hypermask_fast.methods.exssnet.learner import ExSSNeT
    from hypermask_fast.methods.hnet.learner import HNET
    from hypermask_fast.methods.hnet_r.learner import HNETR
    from hypermask_fast.methods.hnet_tir.learner import HNETTIR
    from hypermask_fast.methods.hyperinterval.learner import HyperInterval
    from hypermask_fast.methods.hypermask.learner import HyperMask
    from hypermask_fast.methods.supsup.learner import SupSup
    from hypermask_fast.optim.factored_adam import FactoredAdam
    from hypermask_fast.planning.plan import plan
    from hypermask_fast.runs.script import Run
    from hypermask_fast.saving.learners import load, save
    from hypermask_fast.saving.sharded import load_sharded, save_sharded
    from hypermask_fast.training.distributed.own_loop import DistributedDataParallel
    from hypermask_fast.training.distributed.started import data_parallel
    from hypermask_fast.training.trainer import Trainer

__version__ = "0.2.0"

__all__ = [
    "HNET",
    "HNETR",
    "HNETTIR",
    "ChunkedHypernetwork",
    "DistributedDataParallel",
    "ExSSNeT",
    "FactoredAdam",
    "HyperInterval",
    "HyperMask",
    "Hypernetwork",
    "MaskedConv2d",
    "MaskedLinear",
    "MultiTaskPredictor",
    "Run",
    "SupSup",
    "Trainer",
    "__version__",
    "backend",
    "conversion_report",
    "data_parallel",
    "explain",
    "export_subnet",
    "functional",
    "load",
    "load_sharded",
    "networks",
    "one_shot",
    "plan",
    "reference",
    "save",
    "save_sharded",
    "scenarios",
    "sharded_head",
    "unconvert",
]

_MODULES = {
    "ChunkedHypernetwork": "hypernetworks.chunked",
    "DistributedDataParallel": "training.distributed.own_loop",
    "ExSSNeT": "methods.exssnet.learner",
    "FactoredAdam": "optim.factored_adam",
    "HNET": "methods.hnet.learner",
    "HNETR": "methods.hnet_r.learner",
    "HNETTIR": "methods.hnet_tir.learner",
    "HyperInterval": "methods.hyperinterval.learner",
    "HyperMask": "methods.hypermask.learner",
    "Hypernetwork": "hypernetworks.full",
    "MaskedConv2d": "layers.masked",
    "MaskedLinear": "layers.masked",
    "MultiTaskPredictor": "inference.predictor",
    "Run": "runs.script",
    "SupSup": "methods.supsup.learner",
    "Trainer": "training.trainer",
    "backend": "backends.choice",
    "conversion_report": "conversion.report",
    "data_parallel": "training.distributed.started",
    "explain": "backends.choice",
    "export_subnet": "inference.export",
    "load": "saving.learners",
    "load_sharded": "saving.sharded",
    "one_shot": "inference.one_shot",
    "plan": "planning.plan",
    "save": "saving.learners",
    "save_sharded": "saving.sharded",
    "sharded_head": "hypernetworks.sharded",
    "unconvert": "conversion.convert",
    "functional": "functional",
    "networks": "networks",
    "reference": "reference",
    "scenarios": "scenarios",
}
__getattr__ = lazy_names(__name__, _MODULES)
offer("predict", "hypermask_fast.inference.predict:predict")
