"""The autoencoder beside numpy and a step written anew, and what its regularizer protects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hypermask_fast.counters import LATENT, counter_normal
from hypermask_fast.methods.replay.replay import Replay
from hypermask_fast.methods.replay.settings import ReplaySettings
from hypermask_fast.methods.replay.vae import Decoder, vae_loss
from hypermask_fast.optim.factored_adam import FactoredAdam
from hypermask_fast.scenarios import split_digits
from tests.support.replay_cases import PIXELS, SHAPE, SMALL

# Of float64 sums of a few terms.
EXACT = 1e-12


def replay(dtype: torch.dtype = torch.float64, **options: object) -> Replay:
    settings = ReplaySettings(**{**SMALL, **options})
    return Replay(SHAPE, settings, torch.empty(0, dtype=dtype))


def optimizers(it: Replay, lr: float = 1e-2) -> dict[str, FactoredAdam]:
    return {g.optimizer: FactoredAdam(list(g.params), lr=lr) for g in it.parameter_groups()}


def numbers(*shape: int) -> np.ndarray:
    return torch.randn(*shape, dtype=torch.float64).numpy()


def decoded(weights: np.ndarray, z: np.ndarray, task: int) -> np.ndarray:
    """The decoder of the small settings, written from its description."""
    z = np.concatenate([z, np.tile(np.eye(4)[task], (len(z), 1))], 1)
    place = 0
    for i, (out, into) in enumerate([(5, 7), (4, 5), (PIXELS, 4)]):
        weight = weights[place : place + out * into].reshape(out, into)
        bias = weights[place + out * into : place + out * into + out]
        z = (np.maximum(z, 0) if i else z) @ weight.T + bias
        place += out * into + out
    assert place == len(weights)
    return z


def test_the_loss_is_that_of_the_page_by_hand() -> None:
    logits, mean, log_variance = 3 * numbers(4, 5), numbers(4, 3), numbers(4, 3)
    x = torch.rand(4, 5, dtype=torch.float64).numpy()
    p = 1 / (1 + np.exp(-logits))
    reconstruction = -(x * np.log(p) + (1 - x) * np.log(1 - p)).mean()
    divergence = 0.0
    for row in range(4):
        for m, v in zip(mean[row], log_variance[row], strict=True):
            divergence += -0.5 * (1 + v - m**2 - np.exp(v)) / 4
    found = vae_loss(*map(torch.from_numpy, (logits, x, mean, log_variance)))
    assert float(found) == pytest.approx(reconstruction + divergence / 5, rel=EXACT)


def test_all_tasks_are_decoded_in_one_pass() -> None:
    decoder = Decoder(3, 4, (5, 4), PIXELS)
    weights, z, tasks = numbers(2, decoder.size), numbers(2, 8, 3), [3, 1]
    found = decoder(torch.from_numpy(weights), torch.from_numpy(z), torch.tensor(tasks))
    for each, task in enumerate(tasks):
        expected = decoded(weights[each], z[each], task)
        np.testing.assert_allclose(found[each], expected, rtol=EXACT, atol=EXACT)


def test_without_conditions_the_decoder_reads_latent_variables_alone() -> None:
    decoder = Decoder(3, 0, (5, 4), PIXELS)
    assert decoder.size == 5 * 3 + 5 + 4 * 5 + 4 + PIXELS * 4 + PIXELS
    weights, z = torch.randn(1, decoder.size), torch.randn(1, 2, 3)
    assert torch.equal(
        decoder(weights, z, torch.tensor([0])), decoder(weights, z, torch.tensor([9]))
    )


def shifted(p: Tensor, grad: Tensor, lr: float) -> Tensor:
    """A first step of Adam as HNET's look-ahead takes it: eps before the bias is corrected."""
    m, v = 0.1 * grad, 0.001 * grad**2
    return p - lr * (1 - 0.999) ** 0.5 / (1 - 0.9) * m / (v.sqrt() + 1e-8)


def test_a_step_is_loss_then_the_regularizer_at_the_look_ahead_then_adam() -> None:
    lr, it = 1e-2, replay()
    it.record(1, [0])
    it.train()
    x = torch.rand(8, *SHAPE, dtype=torch.float64)
    hypernetwork, kept = it.hypernetwork, it.hypernetwork.logits(torch.tensor([0])).detach()
    named = {name: p for name, p in it.named_parameters() if name.split(".")[-1] != "embeddings"}
    table = hypernetwork.embeddings
    before = {name: p.detach().clone() for name, p in it.named_parameters()}

    noise = counter_normal((8, 3), it._seed, 1, LATENT, 1).double()
    mean, log_variance = it.encoder(x.flatten(1)).split(3, 1)
    z = mean + torch.exp(0.5 * log_variance) * noise
    weights = hypernetwork.logits(torch.tensor([1]))
    logits = it.decoder(weights, z[None], torch.tensor([1]))[0]
    loss = vae_loss(logits, x.flatten(1), mean, log_variance)
    of_loss = dict(
        zip([*named, "table"], torch.autograd.grad(loss, [*named.values(), table]), strict=True)
    )
    with torch.no_grad():
        for name, p in named.items():
            if not name.startswith("encoder"):
                p.copy_(shifted(p, of_loss[name], lr))
    reg = (hypernetwork.logits(torch.tensor([0])) - kept).square().sum()
    shared = {name: p for name, p in named.items() if not name.startswith("encoder")}
    of_reg = dict(zip(shared, torch.autograd.grad(reg, list(shared.values())), strict=True))
    expected = {}
    for name in named:
        grad = of_loss[name] + it.beta * of_reg.get(name, torch.zeros(()))
        expected[name] = before[name] - lr * grad / (grad.abs() + 1e-8)
    with torch.no_grad():
        for name, p in it.named_parameters():
            p.copy_(before[name])

    found, output_reg = it.learn(x, 1, 1, optimizers(it, lr))
    assert float(found) == pytest.approx(float(loss.detach()), rel=EXACT)
    assert float(output_reg) == pytest.approx(float(reg.detach()), rel=1e-9)
    for name, p in named.items():
        # Adam's quotient of small gradients is ill-conditioned.
        assert torch.allclose(p, expected[name], rtol=0, atol=1e-6), name
    assert torch.equal(table[0], before["hypernetwork.embeddings"][0])
    moved = before["hypernetwork.embeddings"][1] - lr * of_loss["table"][1].sign()
    assert torch.allclose(table[1], moved, atol=1e-6)


def test_what_is_replayed_comes_from_the_decoders_as_the_task_found_them() -> None:
    it = replay()
    assert it.sample(8, 0, 1) is None
    it.record(3, [2, 0])
    weights = it.hypernetwork.logits(torch.tensor([2, 0])).detach().numpy()
    with torch.no_grad():
        for p in it.hypernetwork.parameters():
            p.add_(0.1)
    found = it.sample(7, 3, 5)
    assert found is not None
    assert found.x.shape == (8, *SHAPE)
    assert found.places.tolist() == [0] * 4 + [1] * 4
    assert found.tasks == (2, 0)
    assert 0 <= float(found.x.min()) <= float(found.x.max()) <= 1
    z = it._noise((2, 4, 3), 3, 7, 5).numpy()
    for place, task in enumerate(found.tasks):
        logits = decoded(weights[place], z[place], task)
        expected = 1 / (1 + np.exp(-logits))
        np.testing.assert_allclose(
            found.x[4 * place : 4 * place + 4].flatten(1), expected, rtol=1e-10, atol=1e-12
        )
    assert torch.equal(it.sample(7, 3, 5).x, found.x)
    assert not torch.equal(it.sample(7, 3, 6).x, found.x)


@pytest.mark.parametrize("beta", [0.1, 0.0])
def test_the_regularizer_keeps_the_images_of_earlier_tasks(beta: float) -> None:
    """Digits: without it, what stands for task 0 becomes the images of task 1."""
    torch.manual_seed(0)
    scenario = split_digits(tasks=2)
    settings = ReplaySettings(
        **{"encoder_hidden": (32,), "decoder_hidden": (32,), "latent_dim": 8, "capacity": 2},
        **{"replay_embedding_dim": 8, "replay_hidden": (16,), "replay_chunk_size": 500},
        **{"replay_chunk_embedding_dim": 8, "replay_beta": beta},
    )
    it = Replay(scenario.input_shape, settings, torch.empty(0))
    z, means = torch.randn(64, 8), []
    for task in scenario:
        means.append(torch.cat([x for x, _ in task.evaluation_batches("train", 500)]).mean(0))
    found = []
    for task, data in enumerate(scenario):
        it.record(task, list(range(task)))
        stream, made = data.stream(32, seed=0, task_id=task), optimizers(it, 3e-3)
        for step in range(150):
            it.learn(stream.batch(step)[0], task, step + 1, made)
        it.clear()
        found.append(it.images(0, z))
    moved = float((found[1] - found[0]).abs().mean())
    to_own, to_other = (float((found[1].mean(0) - mean).abs().mean()) for mean in means)
    if beta:
        assert moved < 0.02
        assert to_own < to_other
    else:
        assert moved > 0.1
        assert to_other < to_own
