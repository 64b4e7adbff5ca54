"""The trainable systems: plain PyTorch and transformers, without Ray, without the engine and without the stages.

recipe.py, recipes/           what a training does, as YAML; `sluice recipes` lists those that are shipped
data/                         shards as batches: pairs, texts, labels, conversations
towers/, connectors/, fusion/ the models, and what joins them
objectives/                   what they learn
train/                        the one loop: `python -m models.train`
export/, evaluate/            what transformers loads, with its card; what it scores: `python -m models.evaluate`
captioners/, chat/            models that write
"""
