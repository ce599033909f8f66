"""Layer tickets: find the units that can leave a network, score them, and remove them."""
