"""How fast, how much memory, how it scales."""
