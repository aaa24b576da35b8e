"""Figures of runs: what is drawn as data first, then its drawing, and a page that holds them."""
