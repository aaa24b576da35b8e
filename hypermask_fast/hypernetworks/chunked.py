"""The hypernetwork that emits its outputs in chunks."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from hypermask_fast.hypernetworks.full import Hypernetwork, check_sizes


class ChunkedHypernetwork(Hypernetwork):
    """A hypernetwork that emits the logits in chunks (von Oswald et al. 2020).

    The input is the task embedding followed by a chunk embedding; ceil(N / chunk_size) passes are
    concatenated and the surplus of the last is cut off. Chunk embeddings start as N(0, 1).

    Args:
        num_outputs: N, the number of mask entries.
        chunk_size: Outputs of a pass.
        chunk_embedding_dim: Length of a chunk embedding.
        embedding_dim, hidden, capacity, activation, device, dtype: As in :class:`Hypernetwork`.

    Raises:
        ConfigError: A size is below 1 or the activation is unknown.
    """

    def __init__(
        self,
        num_outputs: int,
        *,
        embedding_dim: int,
        chunk_size: int,
        chunk_embedding_dim: int,
        hidden: Sequence[int] = (100,),
        capacity: int = 128,
        activation: str = "elu",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_sizes(chunk_size=chunk_size, chunk_embedding_dim=chunk_embedding_dim)
        self._chunk_size, self._chunk_embedding_dim = chunk_size, chunk_embedding_dim
        super().__init__(
            num_outputs,
            embedding_dim=embedding_dim,
            hidden=hidden,
            capacity=capacity,
            activation=activation,
            device=device,
            dtype=dtype,
        )
        chunks = -(-num_outputs // chunk_size)
        self.chunk_embeddings = nn.Parameter(
            torch.randn(chunks, chunk_embedding_dim, device=device, dtype=dtype)
        )

    def _extra_inputs(self) -> int:
        return self._chunk_embedding_dim

    def _head_outputs(self) -> int:
        return self._chunk_size

    @property
    def can_update(self) -> bool:
        return False

    def _hidden(self, ids: Tensor, trains: bool = True) -> Tensor:
        tasks, chunks = self._embedded(ids, trains), self.chunk_embeddings
        shape = (len(tasks), len(chunks), -1)
        inputs = torch.cat((tasks[:, None].expand(shape), chunks[None].expand(shape)), dim=-1)
        return self.trunk(inputs).flatten(0, 1)

    def _logits(self, ids: Tensor) -> Tensor:
        return self.head(self._hidden(ids)).view(len(ids), -1)[:, : self.num_outputs]

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, chunks={len(self.chunk_embeddings)}x{self._chunk_size}"
