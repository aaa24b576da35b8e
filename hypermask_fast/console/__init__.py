"""What a command shows: the terminal, its streams, warnings, and what goes on before a step."""
