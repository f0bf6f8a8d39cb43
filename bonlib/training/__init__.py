"""Encoders, losses, the loop, its checkpoint, and what an encoder is worth."""
