"""P(f) by counting what random networks compute."""
