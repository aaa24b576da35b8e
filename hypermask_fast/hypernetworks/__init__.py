"""From a task embedding to what a target network needs, and what earlier tasks must keep of it."""
