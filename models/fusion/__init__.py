"""How what was seen enters a language model."""
