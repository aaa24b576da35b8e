"""Times the configurations that the kernels ship."""
