"""Data sets: formats, transforms, loading, and generated pictures."""
