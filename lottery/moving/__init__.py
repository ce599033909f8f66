"""Masks that move while a network trains: how much moves, when, and which weights, as pure functions."""
