"""How bytes lie on disk, whatever they are called."""
