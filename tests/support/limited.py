"""One of several processes that share a head, each with a limit of memory: a script."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

LIMIT = 1536 * 2**20
"""Bytes of data of a process, as ``ulimit -d`` limits them."""
WIDTH = 1400
"""H: of a head of 266,610 x 1,401 numbers, 1.49 GB of float32."""


def main(rank: int, world: int, folder: str, call: str) -> None:
    resource.setrlimit(resource.RLIMIT_DATA, (LIMIT, LIMIT))
    import torch
    import torch.distributed as dist

    import hypermask_fast as hmf

    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, y = torch.randn(8, 784), torch.randint(10, (8,))
    net = hmf.networks.MLP(784, (300, 100), 10)
    options = {"embedding_dim": 8, "hidden": (WIDTH,), "capacity": 2, "example_input": x}
    if call == "alone":
        hmf.HyperMask(net, **options)
        return
    init = f"file://{folder}/{call}"
    dist.init_process_group("gloo", init_method=init, rank=rank, world_size=world)
    with hmf.sharded_head():
        learner = hmf.HyperMask(net, **options)
    learner.keeps_start = False
    optimizer = hmf.FactoredAdam(learner.parameters(), lr=1e-3, step_in_backward=True)
    state = Path(folder) / "state"
    if call == "load":
        hmf.load_sharded(state, learner)
    else:
        learner.add_task()
        learner.begin_task(0)
        learner.step(x, y, 0, {"main": optimizer})
        learner.end_task()
        learner.add_task()
        learner.begin_task(1)
        optimizer.reset()
        learner.step(x, y, 1, {"main": optimizer})
        hmf.save_sharded(state, learner)
    losses = learner.step(x, y, 1, {"main": optimizer}).scalars().values()
    if rank == 0:
        print(*map(float, losses))
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], sys.argv[4])
