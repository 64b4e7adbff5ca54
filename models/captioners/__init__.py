"""Whatever writes captions of images: models that transformers loads, and servers that speak OpenAI's protocol."""
