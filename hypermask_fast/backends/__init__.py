"""What an operation runs on: kernels, compiled code or the reference, and in what precision."""
