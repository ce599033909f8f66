"""The costs of a network: multiply-adds, memory, time and energy."""
