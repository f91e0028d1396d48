"""How far the tables of positions in graphs reach; the plan refuses larger pictures, the export longer texts."""

FLUX_POSITIONS = 512
"""Rows and columns of tokens that a FLUX graph has rotary angles for: 8192 px."""

FLUX_WORDS = 4096
"""Tokens of a text that a FLUX.2 graph has rotary angles for."""
QWEN_POSITIONS = 512
"""Rows and columns of tokens that a Qwen-Image graph has rotary angles for, half of them to either side of the middle:
8192 px."""

QWEN_WORDS = 1024
"""Tokens of a prompt that it has angles for, as many as its pipeline reads at most."""

QWEN21_WORDS = 4096
"""Tokens of a prompt that a Qwen-Image 2.1 graph has angles for; its pipeline cuts none off."""
