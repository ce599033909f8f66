"""Layer tickets: the units that can leave a network as a whole, and what says which ones leave."""
