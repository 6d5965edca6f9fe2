"""Faster or smaller training steps: fused kernels, rematerialization, precision."""
