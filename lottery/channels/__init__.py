"""Channels that a network can do without: find dead channels, and cut them out of their layers."""
