"""From shards to batches: an indexed reader, an order that any process computes for itself, decoding ahead in threads.

loader, tokenizer = models.data.pairs.open_pairs(recipe, {"shards": "root/shards/data/3d2c0b8e1d97"})
"""
