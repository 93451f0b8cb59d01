"""Gated expert FFNs from tokens to tokens, as one differentiable function (CPU only so far)."""
