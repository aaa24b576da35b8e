"""Avalanche trains the learner: its streams, metrics and loggers, and any method of this package.

Needs: pip install avalanche-lib==0.6.0
"""

import torch
from torch import nn
from torch.utils.data import Dataset

import hypermask_fast as hmf
from hypermask_fast.integrations.avalanche import LearnerStrategy  # before avalanche itself

from avalanche.benchmarks import nc_benchmark  # isort: skip
from avalanche.evaluation.metrics import accuracy_metrics, forgetting_metrics  # isort: skip
from avalanche.logging import InteractiveLogger  # isort: skip
from avalanche.training.plugins import EvaluationPlugin  # isort: skip


class Digits(Dataset):
    """The digits that come with the package, so that nothing is downloaded."""

    def __init__(self, images):
        self.inputs, self.targets = images.images / 255, images.labels.tolist()

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, place):
        return self.inputs[place], self.targets[place]


if __name__ == "__main__":
    # Or SplitCIFAR100(10, return_task_id=True): the task label of an experience is the task.
    digits = hmf.scenarios.load_digits()
    benchmark = nc_benchmark(
        Digits(digits.train),
        Digits(digits.test),
        n_experiences=5,
        task_labels=True,
        class_ids_from_zero_in_each_exp=True,
        seed=0,
    )

    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    strategy = LearnerStrategy(
        learner=hmf.HyperMask(net, embedding_dim=16, hidden=(32,), sparsity=30.0, beta=0.01),
        lr=2e-3,
        train_mb_size=32,
        train_epochs=10,
        evaluator=EvaluationPlugin(
            accuracy_metrics(experience=True, stream=True),
            forgetting_metrics(experience=True),
            loggers=[InteractiveLogger()],
        ),
    )
    for experience in benchmark.train_stream:
        strategy.train(experience)
        strategy.eval(benchmark.test_stream)
    metrics = strategy.evaluator.get_last_metrics()

    # The same tasks for hmf.Trainer; LearnerStrategy(seed=S) gives the numbers of Trainer(seed=S).
    scenario = hmf.scenarios.from_avalanche(benchmark, validation=0.1)
    print(scenario.describe())
