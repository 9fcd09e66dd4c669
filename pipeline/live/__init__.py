"""A model in memory: loaded, paged, placed on devices, walked block by block."""
