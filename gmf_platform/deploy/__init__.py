"""Where a trained model goes: predictions to files, an object in Python, a file for others."""
