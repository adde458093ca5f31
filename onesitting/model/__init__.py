"""The transformer, its cache, its losses, its size as formulas, and its Hugging Face names."""
