"""File formats: how the bytes of tensors are stored, whatever their names."""
