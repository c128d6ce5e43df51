"""What a product with a curvature is, and the fastest way to compute it."""
