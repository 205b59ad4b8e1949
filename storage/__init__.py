"""Where bytes live: shards, tiles, runs and artifacts on any fsspec URL."""
