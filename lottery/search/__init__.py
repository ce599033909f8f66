"""What searches for masks compute: scores, what moves them, and the masks that follow. Tensors only."""
