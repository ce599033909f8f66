"""The computations of searches for masks: initial scores, and the masks that follow from scores. Tensors only."""
