"""What stands between an image tower and a language model: features of patches to vectors among those of tokens."""
