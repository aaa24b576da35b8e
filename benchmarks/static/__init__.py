"""What the compiled code of the kernels says without a GPU: ``python -m benchmarks static``.

``compile`` compiles launches for a GPU that is not here, ``sass`` reads the machine code with its
control codes, ``translate`` makes Python of each instruction (``integers``, ``expressions``),
``lanes`` runs a warp of them, ``memory`` and ``multiprocessor`` say when each instruction would
issue and each load arrive, for a ``tile``, and ``figures`` and ``report`` make rows of it.

A replay computes integers, predicates and addresses as the machine would, and takes each floating-
point number for 0: which lines a load touches and which jump is taken follow from the code and the
launch's arguments, and nothing is declared by hand for a kernel. Loads give 0, so that kernels
whose addresses are in memory are not covered.
"""

TARGETS = ("sm_80", "sm_90", "sm_100", "gfx942")
