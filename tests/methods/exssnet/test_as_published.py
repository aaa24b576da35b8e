"""ExSSNeT's published schedule and selection, in training."""

from __future__ import annotations

import torch

from hypermask_fast import scenarios
from hypermask_fast.methods.exssnet.learner import ExSSNeT
from hypermask_fast.methods.extra_state import weights_of
from hypermask_fast.networks import MLP
from hypermask_fast.training.trainer import Trainer


def test_the_best_epoch_on_test_data_is_kept_over_both_phases() -> None:
    """And the rate follows accuracies on the same data, anew in each phase."""
    torch.manual_seed(0)
    scenario = scenarios.split_digits(tasks=1, validation=0)
    learner = ExSSNeT(MLP(64, (12,), 2), density=0.3)
    trainer = Trainer(
        learner,
        progress=False,
        lr=0.02,
        batch_size=100,
        epochs=26,
        schedule="cosine_plateau",
        selection="best_on_test_data",
        check_every=1,
    )
    measured: list[float] = []
    kept: list[dict[str, torch.Tensor]] = []
    rates: list[float] = []

    def record(t: Trainer) -> None:
        assert t._step_fn is not None
        rates.append(t._step_fn.optimizers["main"].param_groups[0]["lr"])
        if t.step % 3 == 0:
            measured.append(t.evaluate(0, "test"))
            kept.append({name: value.clone() for name, value in weights_of(learner).items()})

    trainer.hooks.append(record)
    assert trainer.steps_of(scenario[0]) == 3 * 26
    trainer.fit(scenario[0])
    best = kept[measured.index(max(measured))]
    for name, value in weights_of(learner).items():
        if name.startswith(("scores", "net.")):
            assert torch.equal(value, best[name]), name
    assert measured[-1] < max(measured) or measured.index(max(measured)) < 25
    for phase in (rates[:39], rates[39:]):
        assert phase[0] == phase[2] == 0.02
        cosine = 0.01 * (1 + torch.arange(13).div(13).mul(torch.pi).cos())
        ratios = torch.tensor(phase[::3]) / cosine
        # Accuracy did not fall in the 11 epochs after the first.
        assert torch.allclose(ratios[:12], torch.ones(12), rtol=1e-4)
        assert torch.allclose(ratios[12], torch.tensor(0.1), rtol=1e-4)
