"""Covariances of network outputs: in the limit of infinite width, or measured."""
