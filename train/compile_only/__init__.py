"""`--compile-only`: what the training step needs on devices that need not be there."""
