"""Trainers, scenarios, networks and runs."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.utils.data import TensorDataset

import hypermask_fast as hmf
from hypermask_fast.runs import run
from hypermask_fast.scenarios import (
    BatchStream,
    DatasetSource,
    ImageDataset,
    ImageSet,
    Preprocess,
    Scenario,
    Split,
    Task,
    TensorSet,
)
from hypermask_fast.settings.comparison import ComparisonConfig
from hypermask_fast.settings.config import RunConfig
from hypermask_fast.studies import comparison
from hypermask_fast.studies.comparison import compare
from hypermask_fast.training.settings import TrainingSettings
from tests.malformed.learners import learner
from tests.malformed.operations import nothing
from tests.malformed.subjects import Subject
from tests.malformed.values import (
    LOADER,
    NOT_COUNTS,
    NOT_MODULES,
    NOT_NUMBERS,
    X,
    Y,
    inf,
    nan,
)
from tests.support.scenario_cases import make_dataset

torch.manual_seed(0)
IMAGES = torch.zeros(6, 1, 2, 2, dtype=torch.uint8)
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
DATASET = make_dataset()
SET = ImageSet(IMAGES, LABELS)
SPLIT = Split(SET, torch.arange(6), LABELS)
TASK = hmf.scenarios.split(DATASET, 3, validation=6)[0]
PLAIN = Preprocess()
FEATURES = torch.zeros(6, 2)
PAIR = (FEATURES, LABELS)
ITEMS = TensorDataset(*PAIR)
NOT_DATA: list[Any] = [None, 3, "digits", FEATURES, (FEATURES,), (FEATURES, None), (3, LABELS)]
NOT_DATA += [(FEATURES, LABELS + 0.5), (FEATURES, LABELS[:3]), TensorDataset(FEATURES)]


def trainer() -> hmf.Trainer:
    made = hmf.Trainer(
        hmf.HyperMask(
            hmf.networks.MLP(16, (4,), 3),
            exempt="classifier.bias",
            embedding_dim=2,
            hidden=(2,),
            capacity=3,
        ),
        progress=False,
        steps=1,
        batch_size=2,
    )
    made.add(TASK)
    return made


def on(method: str) -> Any:
    return lambda it, **a: getattr(it, method)(**a)


def call(function: Any) -> Any:
    return lambda _, **a: function(**a)


NOT_TASKS: list[Any] = [None, 3, "digits", LOADER, LOADER.dataset, X, (X, Y), [TASK], [(X, Y)]]
NOT_TASKS += [hmf.scenarios.split(DATASET, 3), X.numpy()]
TENSORS: list[Any] = [None, "x", 3, IMAGES.tolist(), IMAGES.numpy()]
COUNTS: list[Any] = ["3", 1.5, True, [3], -1, nan, 3j]
FLAGS: list[Any] = ["yes", 3, [True]]
PATHS: list[Any] = [3, None, True, ["data"], b"x", 1.5]
FIELDS = {"name": "t", "classes": (0, 1, 2), "class_names": ("a", "b", "c"), "train": SPLIT}
FIELDS |= {"validation": SPLIT, "test": SPLIT, "train_preprocess": PLAIN, "eval_preprocess": PLAIN}
NOT_SPLITS: list[Any] = [None, 3, "s", SET, (IMAGES, LABELS), LOADER.dataset, LABELS]
WORDS: list[Any] = [3, True, ["adam"], "other"]

SUBJECTS = [
    Subject("Trainer", learner, lambda it, **a: hmf.Trainer(**{"learner": it, **a}),
            {"progress": False},
            {"learner": NOT_MODULES, "lr": [*NOT_NUMBERS, nan, inf, 0.0, -1.0],
             "steps": [v for v in NOT_COUNTS if v is not None],
             "epochs": [v for v in NOT_COUNTS if v is not None],
             "batch_size": NOT_COUNTS, "optimizer": [*WORDS, None], "schedule": [*WORDS, None],
             "selection": [*WORDS, None], "moments": [*WORDS, None], "check_every": NOT_COUNTS,
             "weight_decay": [*NOT_NUMBERS, nan, -1.0], "momentum": [*NOT_NUMBERS, nan, -1.0, 2.0],
             "graph": ["yes", 3, None], "compile": ["yes", 3, None], "steps,epochs": [(1, 1)],
             "settings": [3, "x", {}], "eval_batch_size": NOT_COUNTS,
             "warmup_steps": ["3", 1.5, -1, True], "progress": FLAGS,
             "seed": ["3", None, 1.5, [3], nan, True, -1, 2**64]}),
    Subject("Trainer.fit", trainer, on("fit"), {"task": TASK}, {"task": NOT_TASKS}),
    Subject("Trainer.add", trainer, on("add"), {"task": TASK}, {"task": NOT_TASKS}),
    Subject("Trainer.steps_of", trainer, on("steps_of"), {"task": TASK}, {"task": NOT_TASKS}),
    *(Subject(f"Trainer.{name}", trainer, on(name), {"task_id": 0},
              {"task_id": [1, -1, "0", None, [0], 1.5, TASK, torch.tensor(3)],
               "split": ["tst", 3, None, ["test"]], "weights": [3, "w", {}, {"x": X}]})
      for name in ("evaluate", "confusion")),
    Subject("Trainer.load_state", trainer, on("load_state"), {"tensors": {}, "state": {}},
            {"tensors,state": [({}, {}), (None, None), (3, 3), ({"x/y": X}, {"method": None})]},
            runs=False),
    Subject("make_scenario", nothing, call(hmf.scenarios.make_scenario), {"name": "split-digits"},
            {"name": ["split-digit", 3, None, ["split-digits"]], "tasks": [*COUNTS, 0, 6],
             "validation": [*COUNTS, 10**6], "augment": [3, "yes"], "normalize": [True]}),
    Subject("make_scenario_seed", nothing, call(hmf.scenarios.make_scenario),
            {"name": "permuted-digits"}, {"seed": ["3", None, 1.5, [3], nan], "tasks": COUNTS}),
    Subject("make_scenario_root", nothing, call(hmf.scenarios.make_scenario),
            {"name": "split-mnist"}, {"root": [path for path in PATHS if path]}, runs=False),
    Subject("split_digits", nothing, call(hmf.scenarios.split_digits), {},
            {"tasks": [*COUNTS, 0, 9], "validation": [*COUNTS, 10**6], "augment": FLAGS}),
    Subject("permuted_digits", nothing, call(hmf.scenarios.permuted_digits), {},
            {"tasks": [*COUNTS, 0, None], "validation": [*COUNTS, None],
             "seed": ["3", None, 1.5, [3], nan], "identity_first": FLAGS}),
    Subject("split", nothing, call(hmf.scenarios.split), {"dataset": DATASET},
            {"dataset": [None, 3, "mnist", LOADER.dataset, SET, (X, Y)],
             "classes_per_task": [*COUNTS[:3], 0, 4, [], [1, 2], [0, 6], [3, "3"], [1.5, 4.5], nan],
             "class_order": [3, "012", [0, 0], [7], [], [1.5], ["0"], [True], [None]],
             "tasks": [*COUNTS, 0, 9], "validation": [*COUNTS, 10**6],
             "crop": COUNTS, "pad": COUNTS, "flip": FLAGS, "stratified": FLAGS,
             "validation_per_class": FLAGS, "name": [3, ["a"], True],
             "mean": [0.5, (0.5,), "ab"],
             "mean,std": [((0.5,), (0.0,)), ((0.5,), (1.0, 1.0)), ((nan,), (1.0,)),
                          (("a",), ("b",)), ((0.5,), (nan,)), (0.5, 0.5)]}),
    Subject("permuted", nothing, call(hmf.scenarios.permuted), {"dataset": DATASET, "tasks": 2},
            {"dataset": [None, 3, SET], "tasks": [*COUNTS, 0, None], "pad": [*COUNTS, None],
             "seed": ["3", None, 1.5, [3], nan], "validation": [*COUNTS, None, 10**6],
             "stratified": FLAGS, "identity_first": FLAGS, "name": [3, True]}),
    Subject("rotated", nothing, call(hmf.scenarios.rotated), {"dataset": DATASET, "tasks": 2},
            {"dataset": [None, 3, SET], "tasks": [*COUNTS, 0, None], "degrees": ["3", None, nan],
             "validation": [*COUNTS, None, 10**6], "stratified": FLAGS, "name": [3, True]}),
    Subject("load", nothing, call(hmf.scenarios.load), {"name": "digits"},
            {"name": ["digit", 3, None, ["digits"], "mnist"]}),
    *(Subject(name, nothing, call(getattr(hmf.scenarios, name)), {},
              {"root": PATHS, "root,download": [("data", "yes"), ("data", 3)]}, runs=False)
      for name in ("load_mnist", "load_fashion_mnist", "load_cifar10", "load_cifar100")),
    *(Subject(name, nothing, call(getattr(hmf.scenarios, name)), {}, {"root": PATHS}, runs=False)
      for name in ("load_folder", "from_folder", "split_mnist", "split_fashion_mnist",
                   "split_cifar100", "split_cifar100_fecam",
                   "split_cifar10_100", "permuted_mnist", "permuted_fashion_mnist",
                   "rotated_mnist", "load_tiny_imagenet", "split_tiny_imagenet")),
    Subject("ImageSet", nothing, call(ImageSet), {"images": IMAGES, "labels": LABELS},
            {"images": [*TENSORS, IMAGES.float(), IMAGES[0], IMAGES[:3]],
             "labels": [*TENSORS, LABELS.int(), LABELS[:3], LABELS[:, None]]}),
    Subject("TensorSet", nothing, call(TensorSet), {"inputs": FEATURES, "labels": LABELS},
            {"inputs": [*TENSORS, FEATURES[:3], FEATURES[0, 0]],
             "labels": [*TENSORS, LABELS.int(), LABELS[:3], LABELS[:, None]]}),
    Subject("DatasetSource", nothing, call(DatasetSource), {"dataset": ITEMS, "labels": LABELS},
            {"dataset": [None, 3, FEATURES[0, 0]], "labels": [*TENSORS, LABELS.int(), LABELS[:3]],
             "workers": [*COUNTS, None]}),
    Subject("make_task", nothing, call(hmf.scenarios.make_task),
            {"name": "a", "train": PAIR, "test": PAIR},
            {"name": [3, None], "train": NOT_DATA, "test": NOT_DATA,
             "validation": ["3", None, True, nan, 1.0, -1, 99, (FEATURES, 3)],
             "class_names": [3, "abc", ["a"]], "workers": [*COUNTS, None]}),
    Subject("from_data", nothing, call(hmf.scenarios.from_data), {"tasks": {"a": (PAIR, PAIR)}},
            {"tasks": [None, 3, [PAIR], {"a": PAIR[:1]}, {"a": 3}, [3]], "name": [3, ["a"]],
             "distinct_classes": FLAGS}),
    Subject("from_avalanche", nothing, call(hmf.scenarios.from_avalanche), {},
            {"benchmark": [None, 3, "SplitMNIST", PAIR]}, runs=False),
    Subject("ImageDataset", nothing, call(ImageDataset),
            {"name": "d", "train": SET, "test": SET, "class_names": ("a", "b", "c")},
            {"train": NOT_SPLITS[:3], "test": [None, 3, IMAGES, SPLIT], "name": [3, None],
             "class_names": [3, None, "abc", (1, 2, 3)]}),
    Subject("Split", nothing, call(Split), {"source": SET, "index": LABELS, "labels": LABELS},
            {"source": [None, 3, IMAGES],
             "index": [*TENSORS, LABELS[:3], LABELS.float(), LABELS + 9],
             "labels": [*TENSORS, LABELS[:3], LABELS.float(), LABELS.int()]}),
    Subject("Task", nothing, call(Task), FIELDS,
            {"name": [3, None], "classes": [3, None, (0, 1), (0, 1, 1), (0, 1, 2.5), "012"],
             "class_names": [3, None, ("a", "b"), "abc"], "train": NOT_SPLITS, "test": NOT_SPLITS,
             "validation": NOT_SPLITS, "train_preprocess": [None, 3, lambda x: x],
             "eval_preprocess": [None, 3, lambda x: x]}),
    Subject("Task.split", nothing, lambda _, **a: TASK.split(**a), {"name": "test"},
            {"name": ["tst", 3, None, ["test"]]}),
    Subject("Task.evaluation_batches", nothing, lambda _, **a: TASK.evaluation_batches(**a),
            {"split_name": "test"}, {"split_name": ["tst", 3], "batch_size": [*COUNTS, 0, None]}),
    Subject("Task.stream", nothing, lambda _, **a: TASK.stream(**a), {"batch_size": 2},
            {"batch_size": [*COUNTS, 0, None], "seed": ["3", None, 1.5, [3]],
             "task_id": ["3", None, 1.5]}),
    Subject("BatchStream", nothing, call(BatchStream),
            {"split": SPLIT, "preprocess": PLAIN, "batch_size": 2},
            {"split": NOT_SPLITS, "preprocess": [None, 3, lambda x: x],
             "batch_size": [*COUNTS, 0]}),
    Subject("BatchStream.batch", nothing, lambda _, **a: TASK.stream(2).batch(**a), {"step": 0},
            {"step": ["0", None, 1.5, [0], -1, True, torch.tensor(0.5), torch.tensor([0, 1])]}),
    Subject("Preprocess", nothing, call(Preprocess), {},
            {"pad": COUNTS, "crop": COUNTS, "flip": FLAGS,
             "source": ["p", 3, [1, 0], torch.rand(4), torch.tensor([-2, 0]), torch.tensor([2, 0])],
             "permutation": ["p", 3, [1, 0], torch.rand(4), torch.tensor([[0, 1]]),
                             torch.tensor([0, 0, 1, 1]), np.arange(4)]}),
    Subject("Preprocess.call", nothing, lambda _, images: PLAIN(images), {"images": IMAGES},
            {"images": [*TENSORS, IMAGES.float(), IMAGES[0]]}),
    Subject("Preprocess.draws", nothing, lambda _, draws: Preprocess(crop=1)(IMAGES, draws),
            {"draws": torch.zeros(6, 3).long()},
            {"draws": [None, 3, torch.zeros(6, 2).long(), torch.zeros(6, 3),
                       torch.zeros(5, 3).long()]}),
    Subject("Scenario", nothing, call(Scenario), {"name": "s", "tasks": [TASK]},
            {"tasks": [None, 3, [], [3], TASK, [TASK, None]], "name": [3, None]}),
    Subject("make_network", nothing, call(hmf.networks.make_network),
            {"name": "mlp", "input_shape": (1, 8, 8), "num_classes": 3},
            {"name": ["mpl", 3, None, ["mlp"]],
             "input_shape": [None, 3, "18", (), (0,), (1.5,), ("8",), (True, 8), [None]],
             "num_classes": NOT_COUNTS, "hidden": [3, "3", None, [0], [1.5], ["2"]],
             "bias": FLAGS}),
    Subject("make_resnet", nothing, call(hmf.networks.make_network),
            {"name": "resnet", "input_shape": (3, 8, 8), "num_classes": 3},
            {"input_shape": [(8,), (3, 8)], "n": NOT_COUNTS, "k": NOT_COUNTS, "bias": FLAGS,
             "track_running_stats": FLAGS}),
    Subject("make_zenkenet", nothing, call(hmf.networks.make_network),
            {"name": "zenkenet", "input_shape": (3, 32, 32), "num_classes": 3},
            {"input_shape": [(3, 8, 8), (32, 32)], "dropout": FLAGS}),
    Subject("MLP", nothing, call(hmf.networks.MLP),
            {"in_features": 5, "hidden": (4,), "num_classes": 3},
            {"in_features": NOT_COUNTS, "hidden": [3, "3", None, [0], [1.5]],
             "num_classes": NOT_COUNTS, "bias": FLAGS}),
    Subject("LeNet300_100", nothing, call(hmf.networks.LeNet300_100), {"num_classes": 3},
            {"num_classes": NOT_COUNTS}),
    Subject("ResNet", nothing, call(hmf.networks.ResNet), {"n": 1, "k": 1, "num_classes": 3},
            {"n": NOT_COUNTS, "k": NOT_COUNTS, "num_classes": NOT_COUNTS, "in_channels": NOT_COUNTS,
             "bias": FLAGS, "track_running_stats": FLAGS}),
    Subject("ZenkeNet", nothing, call(hmf.networks.ZenkeNet), {"num_classes": 3},
            {"num_classes": NOT_COUNTS, "in_channels": NOT_COUNTS, "dropout": FLAGS}),
    Subject("ZenkeNet64", nothing, call(hmf.networks.ZenkeNet64), {"num_classes": 3},
            {"num_classes": NOT_COUNTS, "in_channels": NOT_COUNTS, "dropout": FLAGS}),
    Subject("RunConfig", nothing, call(RunConfig), {"training": TrainingSettings(steps=1)},
            {"method": [None, 3, "hypermask"], "scenario": [None, "split-mnist"],
             "network": [3, "mlp"],
             "training": [None, {}], "run": [None, 3], "preset": [3, "split-mnst", ["a"]]}),
    Subject("RunConfig.from_options", nothing, call(RunConfig.from_options), {"steps": 1},
            {"sparsity": [*NOT_NUMBERS, nan, 101], "steps": ["3", 1.5, True, 0],
             "preset": [3, "split-mnst"], "network": [3, None, "mpl"],
             "scenario": [3, None, "mnist"],
             "method": [3, None, "hypermsk"], "device": [3, None, "gpu"], "mlp_hidden": [3, "3"],
             "seed": ["3", None, 1.5, -1]}),
    Subject("RunConfig.from_preset", nothing, call(RunConfig.from_preset), {"name": "split-mnist"},
            {"name": [3, None, "split-mnst", ["a"]], "sparsity": NOT_NUMBERS}),
    Subject("RunConfig.from_toml", nothing, call(RunConfig.from_toml),
            {"source": "[training]\nsteps = 1\n"},
            {"source": [3, None, "missing.toml", b"x", ["a"], "[method", "sparsity = 'x'\n"]}),
    Subject("RunConfig.replace", nothing,
            lambda _, **a: RunConfig.from_preset("split-mnist").replace(**a), {},
            {"sparsity": NOT_NUMBERS, "preset": ["a", 3]}),
    Subject("plan", nothing, call(hmf.plan), {"config": RunConfig.from_preset("split-digits")},
            {"config": [None, 3, "split-mnist", {}], "memory": ["3", 1.5, [3], True, -1],
             "processes": NOT_COUNTS}),
    Subject("run.train", nothing, call(run.train),
            {"config": RunConfig.from_preset("split-digits"), "out": "/proc/none"},
            {"config": [None, 3, "split-mnist"], "out": [None, 3, ["a"]],
             "memory": ["3", 1.5, [3], -1]}, runs=False),
    Subject("Run", trainer, lambda it, **a: hmf.Run(**{"trainer": it, **a}),
            {"out": "/proc/none"},
            {"trainer": [*NOT_MODULES, learner()], "out": PATHS, "log_every": NOT_COUNTS,
             "checkpoint_every": [*NOT_NUMBERS, nan, inf, -1.0]}, runs=False),
    Subject("run.load", nothing, call(run.load), {"path": "missing"},
            {"path": [None, 3, ["a"], "missing", b"x"]}, runs=False),
    Subject("save", learner, lambda it, **a: hmf.save(**{"learner": it, **a}),
            {"path": "/proc/none"},
            {"learner": NOT_MODULES, "path": [*PATHS, "/proc", "/proc/version", "/none/a.hmf"],
             "network": [3, "mlp", "none:mlp", "math:none", "math:pi", "__main__:net",
                         "hypermask_fast.doctor:examine"]}, runs=False),
    Subject("load", nothing, call(hmf.load), {"path": "/proc/none"},
            {"path": [*PATHS, "missing", "/proc", "/proc/version"], "net": NOT_MODULES[1:]},
            runs=False),
    Subject("save_sharded", learner, lambda it, **a: hmf.save_sharded(**{"learner": it, **a}),
            {"path": "/proc/none"},
            {"learner": NOT_MODULES, "path": [*PATHS, "/proc", "/proc/version"],
             "optimizer": [3, "adam", [3], {"main": 3}]}, runs=False),
    Subject("load_sharded", learner, lambda it, **a: hmf.load_sharded(**{"learner": it, **a}),
            {"path": "/proc/none"},
            {"learner": NOT_MODULES, "path": [*PATHS, "missing", "/proc", "/proc/version"],
             "optimizer": [3, "adam", [3], {"main": 3}]}, runs=False),
    Subject("ComparisonConfig", nothing, call(ComparisonConfig),
            {"runs": {"hypermask": RunConfig.from_preset("split-digits")}},
            {"runs": [None, 3, {}, {"hypermask": 3},
                      {"hnet": RunConfig.from_preset("split-digits")}],
             "seeds": NOT_COUNTS, "calibrate": ["yes", 1, None, True],
             "calibrate_on": [3, None, "test", "train"],
             "infer": [3, ["entrpy"], "entrpy", [3], ["entropy", "entropy"]]}),
    Subject("ComparisonConfig.from_preset", nothing, call(ComparisonConfig.from_preset),
            {"preset": "split-digits", "methods": ["hypermask", "hnet"]},
            {"preset": [3, None, "split-mnst", ["a"]],
             "methods": [3, "hnt", ["hnet", "hnet"], [3]],
             "options": [3, "lr", {"lr": -1.0}, {"lrr": 1.0}, {3: 1.0}]}),
    Subject("compare", nothing, call(compare),
            {"config": ComparisonConfig.from_preset("split-digits"), "out": "/proc/none"},
            {"config": [None, 3, "split-mnist", RunConfig.from_preset("split-digits")],
             "out": [None, 3, ["a"]], "memory": ["3", 1.5, [3], -1],
             "show_progress": ["yes", 3, None]}, runs=False),
    Subject("comparison.resume", nothing, call(comparison.resume), {"path": "missing"},
            {"path": [None, 3, ["a"], "missing"]}, runs=False),
    Subject("run.resume", nothing, call(run.resume), {"path": "missing"},
            {"path": [None, 3, ["a"], "missing"]}, runs=False),
]  # fmt: skip
