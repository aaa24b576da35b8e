"""Launches of the kernels at the sizes that matter: ``LAUNCHES`` of each module, by name.

The rooms are those of the kernels. The compile gate compiles launches on fake tensors,
``python -m benchmarks tune`` times them. A launch makes its tensors on torch's default device (see
``torch.device`` as a context) and returns what launches, so that a timer sees nothing else. What
only the tuner wants is in ``GRID``, and in ``ROUTES`` what "auto" does where there are kernels and
a way without them.
"""
