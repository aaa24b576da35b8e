"""The settings of a run: names, types, checks, TOML, presets, and what is built from them."""
