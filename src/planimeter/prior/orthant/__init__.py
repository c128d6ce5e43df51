"""The probability that a Gaussian vector has given signs, which is log P(f)."""
