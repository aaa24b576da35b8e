"""Lightning trains the learner: one LightningModule and one Trainer.fit for each task.

Needs: pip install lightning
"""

import lightning
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hypermask_fast as hmf


class OneTask(lightning.LightningModule):
    """Learns one task. The learner takes its own steps: it knows how its optimizers go together."""

    def __init__(self, learner, task, *, step_in_backward):
        super().__init__()
        self.learner, self.task, self.step_in_backward = learner, task, step_in_backward
        self.automatic_optimization = False

    def configure_optimizers(self):
        # Called when the module is on its device, which is where a task has to begin.
        self.learner.begin_task(self.task)
        return hmf.FactoredAdam(
            self.learner.parameters(), lr=2e-3, step_in_backward=self.step_in_backward
        )

    def training_step(self, batch, number):
        x, y = batch
        optimizer = self.optimizers(use_pl_optimizer=False)
        losses = self.learner.step(x, y, self.task, {"main": optimizer})
        self.log_dict(losses.detached().scalars())

    def on_fit_end(self):
        self.learner.end_task()


def train(step_in_backward):
    """Learn five tasks of two digits each, and return the accuracy of each after the last."""
    lightning.seed_everything(0, verbose=False)
    scenario = hmf.scenarios.split_digits()
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))
    learner = hmf.HyperMask(net, embedding_dim=16, hidden=(32,), sparsity=30.0, beta=0.01)
    for task in scenario:
        x, y = (torch.cat(part) for part in zip(*task.evaluation_batches("train"), strict=True))
        loader = DataLoader(TensorDataset(x, y), batch_size=32, shuffle=True)
        number = learner.add_task(task.name, task.classes)
        trainer = lightning.Trainer(
            max_epochs=10,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(OneTask(learner, number, step_in_backward=step_in_backward), loader)
    learner.eval()
    accuracies = []
    for number, task in enumerate(scenario):
        ((x, y),) = task.evaluation_batches("test")
        accuracies.append(float((learner(x, number).argmax(1) == y).double().mean()))
    return accuracies


if __name__ == "__main__":
    # On: the head of the hypernetwork is updated in the backward pass, in one pass over it. Off:
    # loss.backward() leaves gradients, which may be looked at, clipped or accumulated.
    accuracies = {on: train(step_in_backward=on) for on in (False, True)}
    for on, of_tasks in accuracies.items():
        print("step_in_backward", on, " ".join(f"{100 * each:.1f}" for each in of_tasks))
