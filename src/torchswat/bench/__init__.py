"""Dense and sparse side by side: products, whole training steps, and the selection of the largest."""
