"""Small launches of every kernel, of odd sizes, that are judged by float64 on the host."""
