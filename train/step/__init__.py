"""The training step: its specification, its optimizer, the function, and one compiled program for each phase."""
