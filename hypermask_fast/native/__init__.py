"""C++ passes over heads and masks on CPUs: compiled at first use, cached, called by ctypes."""
