"""What one does with a trained run: encode with it, search with it."""
