"""Where uint8 values are centred, and how many rows of them which numbers keep exactly. No imports: plans are quick."""

ORIGIN = 128
"""What is subtracted from every uint8 value, so that products fit 2**14."""
ROWS_ALWAYS_EXACT = 1024
"""Rows whose products of values in [-128, 127] sum to at most 2**24: 1,024 * 2**14."""
EXACT_SUM = 1 << 24
"""The largest sum that float32 keeps exact whatever the order of additions."""
INT32_ROWS = 131_071
"""Rows whose products of values in [-128, 127] sum to less than 2**31."""
