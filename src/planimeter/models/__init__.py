"""The papers' architectures, and loading a user's own."""
