"""A loop of your own with Hugging Face's accelerate: devices, precision and backward are its.

Needs: pip install accelerate
"""

import torch
from accelerate import Accelerator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hypermask_fast as hmf

if __name__ == "__main__":
    torch.manual_seed(0)
    accelerator = Accelerator()  # mixed_precision="bf16" where the device has it
    scenario = hmf.scenarios.split_digits()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    learner = hmf.HyperMask(net, embedding_dim=16, hidden=(32,), sparsity=30.0, beta=0.01)
    learner = accelerator.prepare(learner)

    for task in scenario:
        x, y = (torch.cat(part) for part in zip(*task.evaluation_batches("train"), strict=True))
        loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
        optimizer = hmf.FactoredAdam(learner.parameters(), lr=2e-3)  # new for each task
        loader, optimizer = accelerator.prepare(loader, optimizer)
        number = learner.add_task(task.name, task.classes)
        learner.begin_task(number)
        learner.train()
        for _ in range(10):
            for x, y in loader:
                with accelerator.autocast():
                    losses = learner.losses(x, y, number)
                optimizer.zero_grad()
                accelerator.backward(losses.total)
                optimizer.step()
        learner.end_task()

    learner.eval()
    accuracies = []
    for number, task in enumerate(scenario.to(accelerator.device)):
        ((x, y),) = task.evaluation_batches("test")
        accuracies.append(float((learner(x, number).argmax(1) == y).double().mean()))
    accelerator.print(" ".join(f"{100 * each:.1f}" for each in accuracies))
