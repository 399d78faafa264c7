"""Training, evaluation and batch detection."""
