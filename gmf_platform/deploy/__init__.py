"""Where a trained model goes: predictions to files."""
