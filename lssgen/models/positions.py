"""How far the tables of positions in graphs reach; the plan refuses larger pictures, the export longer texts."""

FLUX_POSITIONS = 512
"""Rows and columns of tokens that a FLUX graph has rotary angles for: 8192 px."""

FLUX_WORDS = 4096
"""Tokens of a text that a FLUX.2 graph has rotary angles for."""
