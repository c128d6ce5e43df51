"""The machine that computes: its memory, and what its float32 means."""
