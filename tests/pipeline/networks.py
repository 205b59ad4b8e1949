"""The small network of the tests."""

from typing import Any

SMALL: dict[str, Any] = {"T": 10, "ch": 32, "ch_mult": [1, 2], "attn": [1], "num_res_blocks": 1, "dropout": 0.1}
TABLE_KEY = "time_embedding.timembedding.0.weight"
