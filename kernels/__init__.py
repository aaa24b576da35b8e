"""Triton kernels and the ``torch.library`` ops around them, imported as ``hypermask_fast.kernels``.

Knows nothing of autograd, tasks or training, and imports Triton only when a kernel is launched.
"""

# A second import under the folder's own name would register every op twice.
if __name__ != "hypermask_fast.kernels":
    raise ImportError(
        f"this package was imported as {__name__!r}, but is only usable as "
        "'hypermask_fast.kernels': import that instead"
    )
