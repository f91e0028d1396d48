"""How far the tables of positions in graphs reach; the plan refuses larger pictures."""

FLUX_POSITIONS = 512
"""Rows and columns of tokens that a FLUX graph has rotary angles for: 8192 px."""
