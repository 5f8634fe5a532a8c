"""Captured graphs: a device runs the tower, a prefill or a decoding step again without the host going through it."""
