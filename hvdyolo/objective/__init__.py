"""Which cells learn which box, and the loss."""
