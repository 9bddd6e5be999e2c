"""What the frozen features are worth."""
