"""`--compile-only`: memory, FLOPs and time of the training step, on devices that need not exist."""
